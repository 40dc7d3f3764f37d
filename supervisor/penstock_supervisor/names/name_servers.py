"""Asks name servers (DNS).

dnspython does the protocol: what is in resolv.conf(5) with its search domains, several servers in
turn, TCP for an answer that is too long for a datagram, chains of aliases. Owns what of an answer
is used, and what each of its errors means for us. Must not know which names are asked for, and
when.

It is imported when the first name is looked up: most runs have none.
"""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from penstock_proxy.net.address import parse_address
from penstock_supervisor.names.answers import (
    Family,
    LookupFailedError,
    LookupTimeoutError,
    NotFoundError,
    SrvRecord,
)

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

ANSWER_S: Final = 5.0
"""For one question, with all of its servers and search domains."""
AT_ONCE: Final = 64
"""Questions. Each has a socket, and servers have bounds, too."""


class Addresses(NamedTuple):
    """Of one family; empty: the name has none."""

    hosts: tuple[str, ...]
    ttl_s: float


class Services(NamedTuple):
    records: tuple[SrvRecord, ...]
    ttl_s: float


class NameServers:
    """Those of one moment. `resolver`: None, if this machine has none. `room`: for questions at the
    same time; see `room_for_questions`."""

    def __init__(self, resolver: "Resolver | None", room: asyncio.Semaphore) -> None:
        self._resolver = resolver
        self._room = room

    @property
    def are_known(self) -> bool:
        return self._resolver is not None

    async def addresses(self, name: str, family: Family) -> Addresses:
        """LookupFailedError."""
        answer = await self._ask(name, "A" if family == 4 else "AAAA")
        hosts = (str(record.address) for record in answer.rrset or ())
        return Addresses(tuple(filter(_is_of_a_host, hosts)), _ttl_of(answer))

    async def services(self, name: str) -> Services:
        """LookupFailedError."""
        answer = await self._ask(name, "SRV")
        records = tuple(
            SrvRecord(one.priority, one.weight, one.port, one.target.to_text(omit_final_dot=True))
            for one in answer.rrset or ()
        )
        return Services(records, _ttl_of(answer))

    async def _ask(self, name: str, kind: str) -> Any:
        """The answer, which may have no records of this kind. LookupFailedError."""
        import dns.asyncbackend
        import dns.exception
        import dns.resolver

        if self._resolver is None:
            raise LookupFailedError("this machine has no name server")
        try:
            async with self._room, asyncio.timeout(ANSWER_S):
                return await self._resolver.resolve(
                    name,
                    kind,
                    raise_on_no_answer=False,
                    search=True,
                    lifetime=ANSWER_S,
                    # Not the default one: it looks for other libraries than asyncio.
                    backend=dns.asyncbackend.get_backend("asyncio"),
                )
        except (dns.exception.Timeout, TimeoutError):
            text = f"no name server has answered within {ANSWER_S:g} s"
            raise LookupTimeoutError(text) from None
        except dns.resolver.NXDOMAIN:
            raise NotFoundError("no such name") from None
        except dns.resolver.NoNameservers as error:
            raise LookupFailedError(_refusals(error)) from None
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise LookupFailedError(str(error) or type(error).__name__) from None


def room_for_questions() -> asyncio.Semaphore:
    return asyncio.Semaphore(AT_ONCE)


def configured(servers: Sequence[str]) -> "Resolver | None":
    """Asks `servers`, which are addresses with ports, or those in resolv.conf; None: it has none.
    Blocks: it reads a file."""
    import dns.asyncresolver
    import dns.resolver
    from dns.nameserver import Do53Nameserver

    try:
        resolver = dns.asyncresolver.Resolver(configure=not servers)
    except (dns.resolver.NoResolverConfiguration, OSError):
        return None
    if servers:
        addresses = map(parse_address, servers)
        resolver.nameservers = [Do53Nameserver(one.host, one.port) for one in addresses]
    return resolver


def _is_of_a_host(text: str) -> bool:
    """The others are nobody's: to 0.0.0.0 the kernel connects as to ourselves."""
    address = ip_address(text)
    return not (address.is_unspecified or address.is_multicast)


def _ttl_of(answer: Any) -> float:
    """The shortest in the chain; without a record, that of the negative answer (RFC 2308)."""
    return float(answer.chaining_result.minimum_ttl)


def _refusals(error: Any) -> str:
    """What each server has said: the library's own words have the question and all answers."""
    said = (
        f"the name server {one[0].removeprefix('Do53:').replace('@', ':')} says {one[3]}"
        for one in error.kwargs.get("errors", ())
    )
    return "; ".join(dict.fromkeys(said)) or "no name server has an answer"
