"""Opens and reads all that another configuration needs, and finds out whether it can be had.

Owns the first step of a change (`reconfiguration`). Whatever is wrong is found here, all of it at
once, and then nothing is changed and nothing stays open. What can still fail afterwards is what
nobody can know before: that a process does not follow.

An address that one service gives up and another one takes keeps its socket. So it is not closed for
a moment, and clients that wait in its queue are served.

A change that was superseded has left all that it was to take away. What of that the new
configuration has is adopted: a service that is there, an address that is open.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from socket import SOCK_DGRAM, SOCK_STREAM
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

from penstock_supervisor import blocking
from penstock_supervisor.config.change_report import refused
from penstock_supervisor.config.changes import compare
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.errors import ReloadRefused, StartError
from penstock_supervisor.listeners import resolver
from penstock_supervisor.listeners.listener import SockAddress, sockaddr_of
from penstock_supervisor.listeners.service_listeners import ServiceListeners
from penstock_supervisor.process import rlimits
from penstock_supervisor.rollout import directories
from penstock_supervisor.rollout.certificate_reload import ServiceCertificates
from penstock_supervisor.rollout.descriptors import needed_for_change
from penstock_supervisor.rollout.directories import Directories
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.revision import Revision, number_upstreams, numbers_given
from penstock_supervisor.rollout.slot_ports import Assignment

READ_S: Final = 10.0
"""For the files of a service, or a directory, on a disk that may not answer; and for all names."""

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class Sockets(NamedTuple):
    """Which listeners are used, and how, at one moment; see `Resources`."""

    listeners: dict[str, ServiceListeners]
    retiring: dict[str, tuple[ServiceListeners, ...]]
    withheld: set[str]


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A change that can be made."""

    before: Revision
    """What there is to go back to: where changes were left, what was there before the first."""
    after: Revision
    present: frozenset[str]
    """The services that there are: those in force, and those that a change has left."""
    left: "Prepared | None" = None
    """The change that was superseded, and goes on with this one."""
    sockets: Sockets | None = None
    """As they were at `before`; None: nothing of this change is in use."""
    ports: Assignment
    """Of workers, by the configuration that is not in force: first the new one, then the other."""
    certificates: dict[str, ServiceCertificates | None] = field(default_factory=dict)
    """In the same way, of the services whose table `tls` has changed."""
    listeners: dict[str, ServiceListeners] = field(default_factory=dict)
    """Of all services of the new configuration."""
    opened: set[str] = field(default_factory=set)
    """Services whose listeners are new: they are new themselves, or have another address."""
    again: set[str] = field(default_factory=set)
    """Services that go back to an address that they were to give up."""
    taken: dict[str, str] = field(default_factory=dict)
    """Services that take an address over, and which service gives it up."""
    on_failure: ExitStack = field(default_factory=ExitStack)
    """Closes what was opened."""

    @property
    def added(self) -> frozenset[str]:
        """Services that end if it is taken back."""
        return (self.present | self.after.services.keys()) - self.before.services.keys()

    @property
    def removed(self) -> frozenset[str]:
        """Services that end with it."""
        return self.present - self.after.services.keys()


async def prepare(resources: Resources, new: Config, left: Prepared | None = None) -> Prepared:
    """ReloadRefused: it cannot be done, and nothing is changed. `left`: a change that this one goes
    on with."""
    present = resources.present
    problems = list(refused(compare(present, new)))
    if problems:
        # Nothing else that would be found is of any use.
        raise ReloadRefused(tuple(problems))
    if shortage := rlimits.shortage(needed_for_change(present, new)):
        problems.append(shortage)
    try:
        after = await _resolve(resources, new, problems)
        resources.check_links(new)
        earlier = None if left is None else left.ports
        ports = resources.ports.choose(new.services, resources.used_ports(), earlier)
    except StartError as error:
        raise ReloadRefused((*problems, str(error))) from None
    prepared = Prepared(
        before=resources.revision if left is None else left.before,
        after=after,
        present=frozenset(resources.present_services()),
        left=left,
        ports=ports,
    )
    with ExitStack() as on_failure:
        on_failure.callback(prepared.on_failure.close)
        await _read_certificates(resources, prepared, problems)
        problems += _Listeners(resources, prepared).open()
        if problems:
            raise ReloadRefused(tuple(problems))
        on_failure.pop_all()
    addresses = {name: one.address for name, one in prepared.listeners.items()}
    prepared.after = after._replace(addresses=addresses)
    return prepared


async def check(resources: Resources, new: Config) -> bool:
    """True: it can be had. ReloadRefused. Nothing stays open."""
    (await prepare(resources, new)).on_failure.close()
    return True


async def _resolve(resources: Resources, new: Config, problems: list[str]) -> Revision:
    before = resources.revision
    resolved = await resolver.resolve_within(READ_S, new.services)
    found, faulty = await _within(
        "directories", "directory", _directories, resources.directories, new
    )
    problems += faulty
    upstreams = number_upstreams(new.services, resolved, before)
    return Revision(
        before.number + 1,
        new,
        upstreams,
        found,
        upstreams_numbered=numbers_given(upstreams, before),
    )


def _directories(known: Directories, new: Config) -> tuple[dict[str, str], list[str]]:
    """Where the programs are started, and what is wrong with that."""
    found = known.resolve(new)
    return found, list(directories.problems(found, new.services))


async def _within(
    kind: str, key: str, function: Callable[[*_Arguments], _Result], *args: *_Arguments
) -> _Result:
    """Look at files, however slow their disk is. StartError: it does not answer."""
    try:
        return await blocking.within(READ_S, kind, function, *args)
    except blocking.BlockedError as error:
        raise StartError(f"{key}: cannot be read: {error}") from None


async def _read_certificates(resources: Resources, prepared: Prepared, problems: list[str]) -> None:
    # Those of services that a change has left are not watched any more.
    before = resources.revision.services
    for name, service in prepared.after.services.items():
        old = before.get(name)
        if old is not None and old.tls == service.tls:
            # Their files are watched.
            continue
        prepared.certificates[name] = None
        if service.tls.files:
            try:
                read = await _within(
                    "certificates", f"service.{name}.tls", ServiceCertificates, service
                )
            except StartError as error:
                problems.append(str(error))
            else:
                prepared.certificates[name] = read
    prepared.certificates.update(dict.fromkeys(prepared.removed))


class _Listeners:
    """Those of the new configuration: kept, taken over from another service, or new."""

    def __init__(self, resources: Resources, prepared: Prepared) -> None:
        self._resources = resources
        self._prepared = prepared
        self._proxies = prepared.after.config.proxies
        self._given_up: dict[SockAddress | None, tuple[str, ServiceListeners]] = dict(
            self._find_given_up()
        )

    def open(self) -> Iterator[str]:
        """Find or open all; what is wrong is yielded."""
        for service in self._prepared.after.services.values():
            try:
                if problem := self._find(service):
                    yield problem
            except StartError as error:
                yield str(error)

    def _find(self, service: Service) -> str:
        """Why it cannot have its address, or empty."""
        name, prepared = service.name, self._prepared
        if (kept := self._kept(service)) is not None:
            if name in self._resources.withheld and prepared.left is not None:
                prepared.taken[name] = prepared.left.taken[name]
            self._keep(service, kept)
        elif (earlier := self._earlier(service)) is not None:
            prepared.again.add(name)
            self._keep(service, earlier)
        elif (given := self._given_up.get(_wanted(service))) is None:
            self._open(service)
        else:
            giver, listeners = given
            if problem := self._why_not(service, self._resources.services[giver]):
                return problem
            prepared.taken[name] = giver
            self._keep(service, listeners.handed_to(service))
        return ""

    def _keep(self, service: Service, listeners: ServiceListeners) -> None:
        opened = listeners.open_for_proxies(self._proxies)
        self._prepared.on_failure.callback(listeners.close_silent, opened)
        self._prepared.listeners[service.name] = listeners

    def _open(self, service: Service) -> None:
        is_new = service.name not in self._prepared.present
        opened = self._resources.open_listeners(service, self._proxies, eager=is_new)
        self._prepared.on_failure.callback(opened.close)
        self._prepared.opened.add(service.name)
        self._prepared.listeners[service.name] = opened

    def _kept(self, service: Service) -> ServiceListeners | None:
        """The sockets of this service, if its address is the same."""
        if service.name not in self._prepared.present:
            return None
        listeners = self._resources.listeners[service.name]
        return listeners if _is_at(listeners, service) else None

    def _earlier(self, service: Service) -> ServiceListeners | None:
        """Sockets that this service was to give up, if it has their address again."""
        retiring = self._resources.retiring.get(service.name, ())
        return next((one for one in retiring if _is_at(one, service)), None)

    def _find_given_up(self) -> Iterator[tuple[SockAddress, tuple[str, ServiceListeners]]]:
        """The addresses that a service gives up, which one it is, and its sockets."""
        after, resources = self._prepared.after.services, self._resources
        for name in self._prepared.present:
            retiring = resources.retiring.get(name, ())
            # What proxies do not have yet is another service's.
            current = () if name in resources.withheld else (resources.listeners[name],)
            for one in (*retiring, *current):
                if name not in after or not _is_at(one, after[name]):
                    yield one.sockaddr, (name, one)

    def _why_not(self, service: Service, giver: Service) -> str:
        """Why this service cannot take the other one's address, or empty."""
        where = f"{service.listen} is the address of {giver.name} now"
        if not (giver.has_proxy and service.has_proxy):
            return (
                f"service.{service.name}.listen: {where}, and only services with a proxy can hand "
                "over an address while they run"
            )
        if giver.socket_mode != service.socket_mode:
            return f"service.{service.name}.socket_mode: {where}; only a restart changes its mode"
        return ""


def _is_at(listeners: ServiceListeners, service: Service) -> bool:
    same = listeners.service.listen == service.listen
    return same or _wanted(service) == listeners.sockaddr


def _wanted(service: Service) -> SockAddress | None:
    return sockaddr_of(service.listen, SOCK_DGRAM if service.mode == "udp" else SOCK_STREAM)
