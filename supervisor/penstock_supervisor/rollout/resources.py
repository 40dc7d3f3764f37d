"""All sockets, ports and addresses of a run. Opened before the first child, closed after the last.

Owns the listeners of all services, the admin port, the control socket, and the addresses of
workers and upstreams. Makes from them the plan of each child and the configuration of each
proxy. Must not know which children run.

See docs/decisions/0007-supervisor-owns-listeners.md.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from penstock_supervisor.children import plan
from penstock_supervisor.children.plan import ChildPlan, Slot, WorkerContext
from penstock_supervisor.config.loader import default_run_dirs
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.kernel.listening_processes import describe_holder
from penstock_supervisor.listeners.control_socket import ControlSocket, UnsafeDirectoryError
from penstock_supervisor.listeners.listener import Listener
from penstock_supervisor.listeners.service_listeners import ServiceListeners
from penstock_supervisor.listeners.worker_ports import choose_addresses, is_free, spare_address
from penstock_supervisor.process import log_files, privileges
from penstock_supervisor.process.socket_activation import MIN_HIGH_FD, dup_high
from penstock_supervisor.process.spawn import SpawnError

if TYPE_CHECKING:
    from penstock_proxy.config import ProxyConfig
    from penstock_proxy.net.address import Address

_FIXED_FDS: Final = 24
"""Standard streams, the event loop, the guardian, the admin port, the control socket."""
_CHILD_FDS: Final = 5
"""Its pidfd, its channel and two pipes; one to spare."""
_HIGH_FDS: Final = 6
"""The copies of a worker's sockets that are open while it is started."""

_log = logging.getLogger("penstock.supervisor")


class Resources:
    """Made once for a run. StartError: something cannot be opened."""

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
        self.config = config
        self.services = {service.name: service for service in config.services}
        self.listeners: dict[str, ServiceListeners] = {}
        self.admin: Listener | None = None
        self.control: ControlSocket | None = None
        self.addresses: dict[str, list[Address]] = {}
        """By service, then by slot. Only of workers with ports of their own."""
        self.privileges = privileges.for_own_programs(config)
        """Of our own programs: the proxies and the guardian."""
        user = self.privileges.identity
        self._environment = dict(environment) if user is None else user.environment(environment)
        self._upstreams = upstreams
        self._python = python
        self._directory = _working_directory(config)
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
        for service in self.config.services:
            listeners = self.listeners[service.name] = ServiceListeners(
                service, self.config.proxies, self.privileges.identity
            )
            self._stack.callback(listeners.close)
        if self.config.admin:
            self.admin = Listener(self.config.admin, "admin")
            self._stack.callback(self.admin.close)
        self.control = _open_control_socket(self.config)
        if self.control is not None:
            self._stack.callback(self.control.close)
        self.addresses = choose_addresses(self.config.services, self._used_ports())

    def close(self) -> None:
        self._stack.close()

    def hand_over_logs(self) -> None:
        """Give log files to the user that the writers run as, before these open the files."""
        log_files.create_for_user(self.config, self.privileges.identity)

    def worker_addresses(self, name: str) -> tuple[str, ...]:
        """The addresses of a service's upstreams, or of its workers."""
        upstreams = tuple(upstream.address for upstream in self.services[name].upstreams)
        return upstreams or tuple(map(str, self.addresses[name]))

    def listen(self, *, proxied: bool) -> None:
        """Let clients of the services with or without a proxy connect. StartError."""
        for name, listeners in self.listeners.items():
            if self.services[name].has_proxy is proxied:
                listeners.listen()

    def proxy_plans(self, argv: Sequence[str]) -> Iterator[ChildPlan]:
        """One a proxy. Empty if no service has a proxy."""
        if any(service.has_proxy for service in self.config.services):
            for slot in range(self.config.proxies):
                inherited = [
                    fd for listeners in self.listeners.values() for fd in listeners.proxy_fds(slot)
                ]
                yield plan.proxy_plan(
                    self.config, slot, inherited, self._environment, argv, self.privileges
                )

    def proxy_config(
        self,
        slot: int,
        current: "Mapping[Slot, Address | None]",
        joined: "Callable[[Slot], bool]",
        up: "Callable[[Slot], bool]",
    ) -> "ProxyConfig":
        """The configuration of a new proxy. `current` are the addresses of current workers.

        These may differ from `addresses`, which may have that of a successor that is starting.
        """
        addresses = {
            name: [current[name, number] or address for number, address in enumerate(by_slot)]
            for name, by_slot in self.addresses.items()
        }
        return plan.proxy_config(
            self.config,
            slot,
            {name: listeners.proxy_fds(slot) for name, listeners in self.listeners.items()},
            {**addresses, **self._upstreams},
            joined=lambda service, number: joined((service, number)),
            # A restarted proxy serves at once with what was known, and checks meanwhile.
            up=lambda service, number: up((service, number)),
        )

    def worker_plan(self, service: Service, slot: int) -> ChildPlan:
        own = self.addresses[service.name][slot] if service.has_ports else None
        return self._worker_plan(service, slot, own)

    def _worker_plan(self, service: Service, slot: int, own: "Address | None") -> ChildPlan:
        context = WorkerContext(
            environment=self._environment,
            python=self._python,
            directory=self._directory,
            service_address=self.listeners[service.name].address,
            stdout=self._stdout,
            proxies=self.config.proxies,
            privileges=self.privileges._replace(no_new_privileges=self.config.no_new_privileges),
        )
        return plan.worker_plan(service, slot, own, context)

    def with_free_port(self, before: ChildPlan, taken: Collection[int]) -> ChildPlan:
        """The plan, with another port if somebody has taken its own meanwhile.

        The ports in `taken` are not used. SpawnError: no other port is free.
        """
        own = before.address
        if own is None or is_free(own.port):
            return before
        service = self.services[before.service]
        holder = describe_holder(own.port)
        try:
            address = spare_address(service, self._used_ports() | set(taken))
        except StartError as error:
            text = f"port {own.port} of {before.name} is taken by {holder}, and {error}"
            raise SpawnError("worker_ports", text, temporary=True) from None
        _log.warning(
            "%s: its port %d is taken by %s; it gets %d",
            before.name,
            own.port,
            holder,
            address.port,
        )
        if self.addresses[service.name][before.slot] == own:
            self.addresses[service.name][before.slot] = address
        return self._worker_plan(service, before.slot, address)

    def listener_fds(self) -> int:
        """How many listening sockets the supervisor has open."""
        views = sum(1 for listeners in self.listeners.values() for _ in listeners.views())
        return views + (self.admin is not None and self.admin.fileno() >= 0)

    def move_worker(self, service: Service, slot: int) -> bool:
        """Give the slot another port, because its port is still in use. False: none is free."""
        if not service.has_ports:
            return True
        try:
            address = spare_address(service, self._used_ports())
        except StartError:
            return False
        self.addresses[service.name][slot] = address
        return True

    def _used_ports(self) -> set[int]:
        """Ports of this run. To somebody who tries to bind one it may look free."""
        listening = [listeners.address for listeners in self.listeners.values()]
        if self.admin is not None:
            listening.append(self.admin.address)
        workers = [address for addresses in self.addresses.values() for address in addresses]
        return {address.port for address in (*listening, *workers) if not address.path}


def descriptors_needed(config: Config) -> int:
    """How many descriptors the supervisor has open at the most, with some to spare."""
    proxied = any(service.has_proxy for service in config.services)
    proxies = config.proxies if proxied else 0
    count = _FIXED_FDS + _CHILD_FDS * proxies
    for service in config.services:
        links = 2 * proxies if service.scheme == "handoff" else 0
        listeners = service.workers if service.scheme == "reuseport" else max(1, proxies)
        workers = service.workers if service.has_program else 0
        count += listeners + workers * (_CHILD_FDS + links)
    return max(count, MIN_HIGH_FD + _HIGH_FDS + proxies)


def _working_directory(config: Config) -> str | None:
    """Where programs are started. By its path: a deployment may have put another directory there
    when a worker is started again. StartError: it is deleted, and a program is started there."""
    try:
        return str(Path.cwd())
    except OSError:
        for service in config.services:
            if service.has_program and not Path(service.directory or ".").is_absolute():
                raise StartError(
                    f"service.{service.name}.directory: the directory that this was started in is "
                    "deleted; name another one, or change to one that exists"
                ) from None
    return None


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
