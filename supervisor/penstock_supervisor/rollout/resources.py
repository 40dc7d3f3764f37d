"""All sockets, ports and addresses of a run. Opened before the first child, closed after the last.

Owns the listeners of all services, the admin port, the control socket, the addresses of workers
and upstreams, and the configuration in force (`Revision`). Makes from them the plan of each child
and the configuration of each proxy. A reload changes them (`reconfiguration`); whoever asks
`services` or `listeners` has those of the moment, so nobody keeps a copy. Must not know which
children run.

See docs/decisions/0007-supervisor-owns-listeners.md.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from penstock_supervisor.children import plan
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.plan import ChildPlan, MemberKey, WorkerContext
from penstock_supervisor.config.environment import default_run_dirs
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.control_socket import ControlSocket, UnsafeDirectoryError
from penstock_supervisor.listeners.listener import Listener
from penstock_supervisor.listeners.service_listeners import ServiceListeners
from penstock_supervisor.listeners.worker_ports import is_free
from penstock_supervisor.listeners.worker_sockets import WorkerSockets
from penstock_supervisor.process import log_files, privileges
from penstock_supervisor.process.socket_activation import dup_high
from penstock_supervisor.process.spawn import SpawnError
from penstock_supervisor.rollout.directories import Directories
from penstock_supervisor.rollout.revision import Revision, number_upstreams, numbers_given
from penstock_supervisor.rollout.slot_ports import SlotPorts

if TYPE_CHECKING:
    from penstock_proxy.config import ProxyConfig, Target
    from penstock_proxy.net.address import Address

_log = logging.getLogger("penstock.supervisor")


class Resources:
    """Made once for a run. StartError: something cannot be opened."""

    admin: Listener | None = None
    control: ControlSocket | None = None
    is_serving = False
    """The run has started: sockets listen, also those of services with a proxy."""

    def __init__(
        self,
        config: Config,
        environment: Mapping[str, str],
        upstreams: "Mapping[str, list[Address]]",
        *,
        stdout: int,
        python: str = sys.executable,
    ) -> None:
        """`upstreams` are their resolved addresses, by service."""
        self.directories = Directories(environment.get("PWD"))
        self.revision = _first_revision(config, upstreams, self.directories)
        self.planned = self.revision
        """What workers are planned by."""
        self.services = self.revision.services
        """All that there are: also one that a reload removes, as long as its workers run."""
        # Of these, those that proxies do not serve any more; and those whose newest sockets proxies
        # must not have yet, because another one accepts there.
        self.unserved, self.withheld = set[str](), set[str]()
        self._upstreams = dict(self.revision.upstreams)
        self.listeners: dict[str, ServiceListeners] = {}
        """Of all these services. Those of addresses that a service gives up are in `retiring`."""
        self.retiring: dict[str, tuple[ServiceListeners, ...]] = {}
        self.privileges = privileges.for_own_programs(config)
        """Of our own programs: the proxies and the guardian."""
        user = self.privileges.identity
        self._environment = dict(environment) if user is None else user.environment(environment)
        self._python = python
        self._stack = ExitStack()
        try:
            self._open()
            self._stdout = dup_high(stdout)
            self._stack.callback(os.close, self._stdout)
            self.hand_over_logs()
        except BaseException as error:
            self._stack.close()
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise StartError(f"cannot open all that is needed: {error.strerror}") from None
            raise

    def _open(self) -> None:
        self._stack.callback(self._close_listeners)
        config = self.config
        for service in config.services:
            self.listeners[service.name] = self.open_listeners(service, config.proxies)
        if self.config.admin:
            self.admin = Listener(self.config.admin, "admin")
            self._stack.callback(self.admin.close)
        self.control = _open_control_socket(self.config)
        if self.control is not None:
            self._stack.callback(self.control.close)
        self._worker_sockets = WorkerSockets(self.control, self.privileges.identity)
        self._stack.callback(self._worker_sockets.close)
        self.check_links(config)
        self.ports = SlotPorts(self.config.services, self.used_ports())
        addresses = {name: one.address for name, one in self.listeners.items()}
        self.revision = self.planned = self.revision._replace(addresses=addresses)

    def check_links(self, config: Config) -> None:
        """StartError: workers are to be reached by sockets, and there can be none."""
        self._worker_sockets.check(config.services)

    def open_listeners(
        self, service: Service, proxies: int, *, eager: bool = True
    ) -> ServiceListeners:
        """Bind all sockets of a service; the caller closes them. StartError."""
        return ServiceListeners(service, proxies, self.privileges.identity, eager=eager)

    def close(self) -> None:
        self._stack.close()

    def _close_listeners(self) -> None:
        for listeners in self._every_listeners():
            listeners.close()

    def _every_listeners(self) -> Iterator[ServiceListeners]:
        yield from self.listeners.values()
        for retiring in self.retiring.values():
            yield from retiring

    def use(self, revision: Revision) -> None:
        """From now on this is in force. Services that it does not have stay, for those of their
        workers that run, until `forget`."""
        self.revision = self.planned = revision
        self.services.update(revision.services)
        self._upstreams.update(revision.upstreams)
        self.unserved.difference_update(revision.services)

    def moved(self, new: Config) -> dict[str, str]:
        """The directory of each service that leads to another one than in the revision in force."""
        try:
            found = self.directories.resolve(new)
        except StartError:
            # It is refused when the new configuration is prepared.
            return {}
        before = self.revision.directories
        return {name: path for name, path in found.items() if before.get(name, path) != path}

    def plan_by(self, revision: Revision) -> None:
        """From now on workers are planned by it, whatever is in force: a roll-out goes back."""
        self.planned = revision

    def forget(self, name: str) -> None:
        """Nothing is left of a service that is not configured any more."""
        if name not in self.revision.services:
            self.services.pop(name, None)
            self._upstreams.pop(name, None)
            self.unserved.discard(name)
            for one in (self.listeners.pop(name, None), *self.retiring.pop(name, ())):
                if one is not None:
                    # Another service may have taken them over.
                    one.close(but=self._every_listeners())
            self.withheld.discard(name)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.revision.config

    @property
    def present(self) -> Config:
        """The configuration in force, and the services that a superseded one has left in it."""
        others = (
            self.services[name] for name in self.present_services() - self.revision.services.keys()
        )
        services = (*self.config.services, *others)
        return self.config.model_copy(update={"services": services})

    def present_services(self) -> set[str]:
        """All that clients may be on, and that end only when a change takes them away."""
        return self.services.keys() - self.unserved

    def hand_over_logs(self, config: Config | None = None) -> None:
        """Give log files to the user that the writers run as, before these open the files."""
        log_files.create_for_user(config or self.config, self.privileges.identity)

    # What is open.

    def listening(self) -> dict[str, str]:
        """Where the clients of each service connect, of those that are configured."""
        return {name: str(self.listeners[name].address) for name in self.revision.services}

    def open_services(self) -> set[str]:
        """The configured services that clients can connect to."""
        names = self.revision.services.keys()
        return {name for name in names if self.listeners[name].is_listening}

    def worker_addresses(self, name: str) -> tuple[str, ...]:
        """The addresses of a service's upstreams, or of its workers."""
        upstreams = tuple(upstream.address for upstream in self.services[name].upstreams)
        return upstreams or tuple(map(str, self.ports.own(name)))

    def listen(self, *, proxied: bool) -> None:
        """Let clients of the services with or without a proxy connect. StartError."""
        for name, listeners in self.listeners.items():
            if self.services[name].has_proxy is proxied:
                listeners.listen()
        self.is_serving |= proxied

    def stop_listening(self) -> None:
        """The run ends: close our copies of all sockets that clients come to."""
        self._close_listeners()

    def worker_fds(self, child: ChildPlan) -> tuple[int, ...]:
        """The descriptors of the sockets that a worker inherits. StartError."""
        for retiring in self.retiring.get(child.service, ()):
            if child.listens_at == retiring.address:
                # It was planned before the address changed.
                return retiring.worker_fds(child.slot)
        return self.listeners[child.service].worker_fds(child.slot)

    def release_socket(self, child: ChildPlan) -> None:
        """This worker's slot is removed: called before it is told to go, so that nobody comes to it
        any more and it can accept what waits."""
        if (listeners := self.listeners.get(child.service)) is not None:
            listeners.release_slot(child.slot)

    def listener_fds(self) -> int:
        """How many listening sockets the supervisor has open."""
        views = sum(1 for listeners in self._every_listeners() for _ in listeners.views())
        return views + (self.admin is not None and self.admin.fileno() >= 0)

    def used_ports(self) -> set[int]:
        """Ports that no worker may get. To somebody who tries to bind one it may look free."""
        listening = [listeners.address for listeners in self._every_listeners()]
        if self.admin is not None:
            listening.append(self.admin.address)
        return {address.port for address in listening if not address.path}

    # Plans of proxies.

    def proxy_listeners(self, name: str, slot: int) -> Iterator[ServiceListeners]:
        """The listeners of a service that a proxy accepts from, the newest last. Those of a new
        service are given to proxies when it has workers that serve."""
        yield from self.retiring.get(name, ())
        is_usable = self.listeners[name].is_listening or not self.is_serving
        if is_usable and name not in self.withheld:
            yield self.listeners[name]

    def proxy_fds(self, name: str, slot: int) -> tuple[int, ...]:
        return tuple(fd for one in self.proxy_listeners(name, slot) for fd in one.proxy_fds(slot))

    def proxy_plans(self, argv: Sequence[str]) -> Iterator[ChildPlan]:
        """One a proxy. Empty if no service has a proxy."""
        return (self.proxy_plan(argv, slot) for slot in range(self.proxies_wanted))

    @property
    def proxies_wanted(self) -> int:
        """How many proxies there are to be."""
        is_needed = any(service.has_proxy for service in self._served())
        return self.config.proxies if is_needed else 0

    def proxy_plan(self, argv: Sequence[str], slot: int) -> ChildPlan:
        served = self._served()
        inherited = [fd for one in served for fd in self.proxy_fds(one.name, slot)]
        config = self.config.model_copy(update={"services": served})
        return plan.proxy_plan(config, slot, inherited, self._environment, argv, self.privileges)

    def _served(self) -> tuple[Service, ...]:
        """All services that there are, but those that proxies do not serve any more."""
        return tuple(one for one in self.services.values() if one.name not in self.unserved)

    def proxy_config(
        self,
        slot: int,
        workers: "Mapping[str, Sequence[Target]]",
        up: "Callable[[MemberKey], bool]",
        *,
        inherits: bool = True,
    ) -> "ProxyConfig":
        """The configuration of a proxy. `workers` are those that there are now, by service.

        A restarted proxy serves at once with what was known, and checks meanwhile. It inherits
        the listeners; `inherits=False` is for one that runs.
        """
        served = self._served()
        return plan.proxy_config(
            self.config.model_copy(update={"services": served}),
            slot,
            {one.name: self.proxy_fds(one.name, slot) if inherits else () for one in served},
            self._upstreams,
            workers,
            up,
        )

    # Plans of workers.

    def worker_plan(self, service: Service, slot: int) -> ChildPlan:
        """The plan of a slot's first worker."""
        return self._worker_plan(service.name, slot, self.ports.first(service.name, slot))

    def successor_plan(self, child: Child, *, renewed: bool = True) -> tuple[ChildPlan, bool]:
        """The plan of the worker that takes this one's place, and whether it can run beside it: it
        needs a port that this one does not have. `renewed`: by the configuration in force; else it
        is started as this one was."""
        service, slot, own = child.plan.service, child.plan.slot, child.plan.address
        other = None if own is None else self.ports.other(service, slot, own)
        address, beside = other or own, own is None or other is not None
        if renewed:
            return self._worker_plan(service, slot, address), beside
        same = child.plan if address is None else plan.with_address(child.plan, address)
        return same, beside

    def needs_new_process(self, child: Child) -> bool:
        """Does it differ from a worker that is started by the configuration in force?"""
        service, slot, own = child.plan.service, child.plan.slot, child.plan.address
        if own is not None and own not in self.ports.of(service, slot):
            return True
        return plan.needs_new_process(child.plan, self._worker_plan(service, slot, own))

    def current_settings(self, child: ChildPlan) -> ChildPlan:
        """The plan of a worker that goes on, with the settings in force."""
        wanted = self._worker_plan(child.service, child.slot, child.address)
        return plan.with_settings_of(child, wanted)

    def before_start(self, child: ChildPlan, taken: Collection[int]) -> ChildPlan:
        """The plan of a worker that is about to start. It has another port if somebody has taken
        its own meanwhile, which is none of `taken`. SpawnError: no other port is free."""
        address = child.address
        if address is not None and not is_free(address.port):
            assert child.origin is not None
            taken = self.used_ports() | set(taken)
            spare = self.ports.exchange(child.origin.service, child.slot, address, taken)
            child = plan.with_address(child, spare)
        if child.socket is not None:
            try:
                self._worker_sockets.clear(child.socket)
            except OSError as error:
                text = f"{child.socket.path} is in the way: {error.strerror}"
                raise SpawnError("link", text, temporary=True) from None
        if child.link_count:
            # Whatever it was planned by: a proxy to which it has no link would never pick it, and
            # there may be those of before again, if a roll-out goes back.
            links = max(self.config.proxies, self.planned.config.proxies)
            child = plan.with_links(child, links)
        return child

    def _worker_plan(self, name: str, slot: int, own: "Address | None") -> ChildPlan:
        by = self.planned
        context = WorkerContext(
            environment=self._environment,
            python=self._python,
            directory=by.directories.get(name),
            service_address=by.addresses[name],
            stdout=self._stdout,
            proxies=by.config.proxies,
            privileges=self.privileges._replace(no_new_privileges=self.config.no_new_privileges),
            sockets=self._worker_sockets.path,
        )
        return plan.worker_plan(by.services[name], slot, own, context)


def _first_revision(
    config: Config, resolved: "Mapping[str, list[Address]]", directories: Directories
) -> Revision:
    """Without the addresses of its listeners, which are not open yet."""
    upstreams, found = number_upstreams(config.services, resolved), directories.resolve(config)
    return Revision(1, config, upstreams, found, upstreams_numbered=numbers_given(upstreams))


def _open_control_socket(config: Config) -> ControlSocket | None:
    """Open it in the configured directory, or in the first default one that works.

    None: there is no directory for it. A run works without.
    """
    if config.run_dir is not None:
        try:
            return ControlSocket(Path(config.run_dir)) if config.run_dir else None
        except OSError as error:
            raise StartError(f"run_dir: {config.run_dir}: {error.strerror}") from None
        except UnsafeDirectoryError as error:
            raise StartError(f"run_dir: {error}") from None
    for path in default_run_dirs():
        try:
            return ControlSocket(path)
        except UnsafeDirectoryError as error:
            _log.error("no control socket in %s", error)
        except OSError as error:
            _log.debug("no control socket in %s: %s", path, error.strerror)
    _log.warning("no control socket: no directory for it; name one with run_dir")
    return None
