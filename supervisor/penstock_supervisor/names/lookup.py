"""One look-up of an upstream's name: the hosts file, then name servers, then the C library.

The order is that of nsswitch.conf(5) as it is nearly everywhere. What is special in that file
(mDNS, LDAP) the C library knows, which blocks and says no TTL: it is asked in a thread, and only
where the others know nothing. Where `dns.servers` names servers, it is not asked at all: it would
ask others.

Must not know which names are watched, and what follows from an answer.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from penstock_proxy.net.address import Address
from penstock_supervisor import blocking
from penstock_supervisor.config.upstream_address import Kind, UpstreamAddress
from penstock_supervisor.names import hosts_file, name_servers
from penstock_supervisor.names.answers import (
    Endpoint,
    Family,
    Found,
    LookupFailedError,
    LookupTimeoutError,
    NotFoundError,
    family_of,
)
from penstock_supervisor.names.name_servers import ANSWER_S, NameServers
from penstock_supervisor.names.srv import chosen

LOOKUP_S: Final = 10.0
"""For all of one look-up: a service has many targets."""
LOCAL_TTL_S: Final = 30.0
"""Of what the hosts file and the C library say: they have no TTL."""
_READ_AGAIN_S: Final = 1.0
"""Look-ups within this time share what they read of this machine."""
_NO_SUCH_NAME: Final = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
_FAMILIES: Final[tuple[Family, ...]] = (4, 6)

Servers = tuple[str, ...]
"""Addresses of name servers, with their ports; empty: those of this machine."""


class _System(NamedTuple):
    """What this machine says about names."""

    hosts: str
    servers: NameServers
    asks_library: bool


class _Hosts(NamedTuple):
    """Addresses of one name."""

    hosts: tuple[str, ...]
    ttl_s: float
    unanswered: frozenset[Family] = frozenset()


class Lookups:
    """Made once for a run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._room = name_servers.room_for_questions()
        self._read: tuple[Servers, float, asyncio.Future[_System]] | None = None

    async def look_up(self, upstream: UpstreamAddress, servers: Servers) -> Found:
        """What it stands for now. LookupFailedError. It takes LOOKUP_S at most."""
        try:
            async with asyncio.timeout(LOOKUP_S):
                system = await self._system(servers)
                if upstream.kind is Kind.SRV:
                    return await _service(system, upstream.address.host)
                return await _name(system, upstream)
        except TimeoutError:
            text = f"no name server has answered within {LOOKUP_S:g} s"
            raise LookupTimeoutError(text) from None

    async def _system(self, servers: Servers) -> _System:
        read = self._read
        if read is None or read[0] != servers or self._clock() - read[1] > _READ_AGAIN_S:
            try:
                future = blocking.start("resolver", _read_system, servers, self._room)
            except blocking.BlockedError as error:
                raise LookupFailedError(str(error)) from None
            self._read = read = (servers, self._clock(), future)
        # Others wait for the same.
        return await asyncio.shield(read[2])


def _read_system(servers: Servers, room: asyncio.Semaphore) -> _System:
    resolver = name_servers.configured(servers)
    return _System(hosts_file.read(), NameServers(resolver, room), not servers)


async def _name(system: _System, upstream: UpstreamAddress) -> Found:
    name, port = upstream.address.host, upstream.address.port
    answer = await (_all_of if upstream.kind is Kind.ALL else _preferred)(system, name)
    endpoints = _endpoints(answer.hosts, name, port)
    where = str(Address(name, port))
    unanswered = frozenset((where, family) for family in answer.unanswered)
    return Found(endpoints, answer.ttl_s, unanswered)


def _endpoints(hosts: Sequence[str], name: str, port: int, weight: int = 1) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(Address(host, port), weight, str(Address(name, port))) for host in hosts)


async def _all_of(system: _System, name: str) -> _Hosts:
    """Of both families."""
    if local := hosts_file.addresses(system.hosts, name):
        return _Hosts(local, LOCAL_TTL_S)
    answers = await asyncio.gather(
        *(system.servers.addresses(name, family) for family in _FAMILIES), return_exceptions=True
    )
    hosts: list[str] = []
    ttls, failures, unanswered = [], [], set()
    for family, answer in zip(_FAMILIES, answers, strict=True):
        if isinstance(answer, LookupFailedError):
            failures.append(answer)
            if not isinstance(answer, NotFoundError):
                unanswered.add(family)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            hosts += answer.hosts
            ttls.append(answer.ttl_s)
    if hosts:
        return _Hosts(tuple(hosts), min(ttls), frozenset(unanswered))
    return await _from_library(system, name, _worst(failures))


async def _preferred(system: _System, name: str) -> _Hosts:
    """Of IPv4, where most local servers listen; of IPv6, if there is none."""
    if local := hosts_file.addresses(system.hosts, name):
        return _Hosts(_sorted(local), LOCAL_TTL_S)
    failure: LookupFailedError = NotFoundError("it has no address")
    try:
        for family in _FAMILIES:
            answer = await system.servers.addresses(name, family)
            if answer.hosts:
                return _Hosts(answer.hosts, answer.ttl_s)
    except LookupFailedError as error:
        failure = error
    found = await _from_library(system, name, failure)
    return found._replace(hosts=_sorted(found.hosts))


def _sorted(hosts: Sequence[str]) -> tuple[str, ...]:
    """Only those of the preferred family."""
    least = min(family_of(Address(host)) for host in hosts)
    return tuple(host for host in hosts if family_of(Address(host)) == least)


def _worst(failures: Sequence[LookupFailedError]) -> LookupFailedError:
    """What is said of a name of which nothing was found: that there is nothing only if nobody has
    failed."""
    others = [one for one in failures if not isinstance(one, NotFoundError)]
    return next(iter((*others, *failures)), NotFoundError("it has no address"))


async def _from_library(system: _System, name: str, failure: LookupFailedError) -> _Hosts:
    """What the C library knows, where there is nothing in the DNS. `failure`, if nobody does."""
    is_open = isinstance(failure, NotFoundError) or not system.servers.are_known
    if not (system.asks_library and is_open):
        raise failure
    try:
        found = await blocking.within(ANSWER_S, "resolver", _getaddrinfo, name)
    except blocking.BlockedError as error:
        raise LookupTimeoutError(str(error)) from None
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            raise NotFoundError("no such name") from None
        raise LookupFailedError(error.strerror or str(error)) from None
    except (OSError, UnicodeError) as error:
        raise LookupFailedError(str(error)) from None
    return _Hosts(found, LOCAL_TTL_S)


def _getaddrinfo(name: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


async def _service(system: _System, name: str) -> Found:
    """The records of a service, each with all addresses of its target."""
    services = await system.servers.services(name)
    records = chosen(services.records)
    if not records:
        raise NotFoundError("it has no SRV record")
    targets = list(dict.fromkeys(record.target for record in records))
    answers = dict(zip(targets, await _resolved(system, targets), strict=True))
    endpoints: dict[Address, Endpoint] = {}
    ttls, unanswered = [services.ttl_s], set[tuple[str, Family]]()
    for record in records:
        answer = answers[record.target]
        if isinstance(answer, _Hosts):
            ttls.append(answer.ttl_s)
            for one in _endpoints(answer.hosts, record.target, record.port, record.weight):
                endpoints.setdefault(one.address, one)
        elif not isinstance(answer, NotFoundError):
            where = str(Address(record.target, record.port))
            unanswered.update((where, family) for family in _FAMILIES)
    if not endpoints:
        failures = [one for one in answers.values() if isinstance(one, LookupFailedError)]
        raise _worst(failures)
    return Found(tuple(endpoints.values()), min(ttls), frozenset(unanswered))


async def _resolved(system: _System, names: Sequence[str]) -> list[_Hosts | LookupFailedError]:
    """Side by side. What has not answered shortly before all must have ended is left out."""

    async def one(name: str) -> _Hosts | LookupFailedError:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await _preferred(system, name)
        except TimeoutError:
            return LookupTimeoutError(f"{name}: no answer within {ANSWER_S:g} s")
        except LookupFailedError as error:
            return error

    return list(await asyncio.gather(*map(one, names)))
