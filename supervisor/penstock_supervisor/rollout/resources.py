"""Every socket and port of a run: opened before anything is started, closed after everything.

Owns the listening sockets of all services, the admin port, the addresses of workers and of
upstreams, and with them answers what a child is started with and what a proxy is told. It
does not know who runs.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from penstock_supervisor.children import plan
from penstock_supervisor.children.plan import ChildPlan, Slot, WorkerContext
from penstock_supervisor.config.loader import default_run_dirs
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners import resolver
from penstock_supervisor.listeners.control_socket import ControlSocket, UnsafeDirectoryError
from penstock_supervisor.listeners.listener import Listener
from penstock_supervisor.listeners.service_listeners import ServiceListeners
from penstock_supervisor.listeners.worker_ports import choose_addresses, spare_address
from penstock_supervisor.process import log_files, privileges
from penstock_supervisor.process.socket_activation import dup_high

if TYPE_CHECKING:
    from penstock_proxy.config import ProxyConfig
    from penstock_proxy.net.address import Address

_log = logging.getLogger("penstock.supervisor")


class Resources:
    """Made once for a run; StartError says what cannot be had."""

    def __init__(
        self,
        config: Config,
        environment: Mapping[str, str],
        *,
        stdout: int,
        python: str = sys.executable,
    ) -> None:
        self.config = config
        self.services = {service.name: service for service in config.services}
        self.listeners: dict[str, ServiceListeners] = {}
        self.admin: Listener | None = None
        self.control: ControlSocket | None = None
        self.addresses: dict[str, list[Address]] = {}
        """Of workers with ports of their own, by slot."""
        self.privileges = privileges.for_own_programs(config)
        """Of what is ours: proxies and the guardian."""
        user = self.privileges.identity
        self._environment = dict(environment) if user is None else user.environment(environment)
        self._python = python
        self._stack = ExitStack()
        try:
            self._open()
            self._stdout = dup_high(stdout)
            self._stack.callback(os.close, self._stdout)
            self.hand_over_logs()
        except BaseException:
            self._stack.close()
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
        self.control = _control(self.config)
        if self.control is not None:
            self._stack.callback(self.control.close)
        self._upstreams = resolver.resolve(self.config.services)
        self.addresses = choose_addresses(self.config.services, self._taken())

    def close(self) -> None:
        self._stack.close()

    def hand_over_logs(self) -> None:
        """Before whoever writes them opens them, at the start or anew."""
        log_files.create_for_user(self.config, self.privileges.identity)

    def worker_addresses(self, name: str) -> tuple[str, ...]:
        """The addresses of a service's workers, or of what it is a proxy for."""
        named = tuple(upstream.address for upstream in self.services[name].upstreams)
        return named or tuple(map(str, self.addresses[name]))

    def listen(self, *, proxied: bool) -> None:
        """Let clients of the services with or without a proxy connect. StartError."""
        for name, listeners in self.listeners.items():
            if self.services[name].has_proxy is proxied:
                listeners.listen()

    def proxy_plans(self, argv: Sequence[str]) -> Iterator[ChildPlan]:
        """None if no service has a proxy."""
        if any(service.has_proxy for service in self.config.services):
            for slot in range(self.config.proxies):
                inherited = [fd for one in self.listeners.values() for fd in one.proxy_fds(slot)]
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
        """What a new proxy is told; `current` are the addresses of those that it can pick.

        Not `addresses`: a successor that is still starting has another one.
        """
        addresses = {
            name: [current[name, number] or place for number, place in enumerate(of)]
            for name, of in self.addresses.items()
        }
        return plan.proxy_config(
            self.config,
            slot,
            {name: listeners.proxy_fds(slot) for name, listeners in self.listeners.items()},
            {**addresses, **self._upstreams},
            joined=lambda service, number: joined((service, number)),
            # What a proxy knew before: the next one serves at once and checks meanwhile.
            up=lambda service, number: up((service, number)),
        )

    def worker_plan(self, service: Service, slot: int) -> ChildPlan:
        own = self.addresses[service.name][slot] if service.has_ports else None
        context = WorkerContext(
            environment=self._environment,
            python=self._python,
            service_address=self.listeners[service.name].address,
            stdout=self._stdout,
            proxies=self.config.proxies,
            privileges=self.privileges._replace(no_new_privileges=self.config.no_new_privileges),
        )
        return plan.worker_plan(service, slot, own, context)

    def listener_fds(self) -> int:
        """Listening sockets that are open here."""
        views = sum(1 for listeners in self.listeners.values() for _ in listeners.views())
        return views + (self.admin is not None and self.admin.fileno() >= 0)

    def move_worker(self, service: Service, slot: int) -> bool:
        """Give the slot another port, because the one it has is in use; False: there is none."""
        if not service.has_ports:
            return True
        try:
            address = spare_address(service, self._taken())
        except StartError:
            return False
        self.addresses[service.name][slot] = address
        return True

    def _taken(self) -> set[int]:
        """Ports that are ours, whatever they look like to a probe."""
        listening = [listeners.address for listeners in self.listeners.values()]
        if self.admin is not None:
            listening.append(self.admin.address)
        own = [address for addresses in self.addresses.values() for address in addresses]
        return {address.port for address in (*listening, *own) if not address.path}


def _control(config: Config) -> ControlSocket | None:
    """In the directory that is named, or in the first that can be had; a run works without."""
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
