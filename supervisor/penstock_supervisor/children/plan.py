"""A service becomes a plan: which children to start, how, and what the proxy is told.

Everything that follows from the scheme is written here, so that a child's life, the
sockets and the proxy need not know which scheme they are part of. Where a worker's
connections come from:

    ports      the proxy connects to a port of the worker's own
    handoff    the proxy accepts, and passes the connection itself over a link
    shared     every worker accepts from the one listening socket
    reuseport  every worker accepts from a socket of its own on the same port

No I/O, no clock: ports, the environment and the interpreter's path are arguments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from penstock_proxy.config import ProxyConfig, ServiceConfig, Target
from penstock_proxy.net.address import Address
from penstock_supervisor.config import per_proxy
from penstock_supervisor.config.model import Config, Restart, Service
from penstock_worker import contract
from penstock_worker.listener import limits
from penstock_worker.listener.limits import Limits
from penstock_worker.net.trusted_proxies import AcceptProxy, format_accept_proxy

if TYPE_CHECKING:
    from penstock_supervisor.process.privileges import Privileges

Slot = tuple[str, int]
"""Name of the service, and number."""

PROXY_START_S: Final = 30.0
"""Not a service's `timeouts.start`: that is about the user's program."""
_PROXIES: Final = ("127.0.0.0/8", "::1")
"""Whose connections come to a worker's own port: it is of this host."""
PROXY_RESTART: Final = Restart(max_restarts=20, within=60.0, backoff=0.1, backoff_max=2.0)
"""A proxy that comes back serves everybody: worth more tries than one worker of many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPlan:
    """One child to keep alive."""

    role: Literal["proxy", "worker"]
    service: str
    """Empty for a proxy."""
    slot: int
    scheme: str = ""
    """Empty for a proxy."""
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str | None = None
    ours: bool
    """It runs our code, and says itself when it is ready; otherwise it is watched."""
    address: Address | None = None
    """Where it has to listen; None: it does not open a port."""
    listens: bool = False
    """It is given a listening socket, or a bound one for datagrams."""
    links: int = 0
    """Connections are passed to it over so many links, one from each proxy."""
    inherited: tuple[int, ...] = ()
    privileges: "Privileges | None" = None
    """As whom it runs; None: as we are."""
    start_s: float
    stop_s: float
    restart: Restart

    @property
    def name(self) -> str:
        """As in logs and prefixes."""
        return f"{self.service or self.role}/{self.slot}"

    @property
    def origin(self) -> str:
        """The table of the configuration that it comes from; empty for a proxy."""
        return f"service.{self.service}" if self.service else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """What this machine and this run have for the workers of one service."""

    environment: Mapping[str, str]
    python: str
    main: Address
    """Where the service's clients connect."""
    stdout: int = -1
    """A descriptor that workers can inherit, for an access log that they write."""
    proxies: int = 1
    privileges: "Privileges | None" = None
    """As whom workers run."""


def worker_plan(
    service: Service, slot: int, own: Address | None, context: WorkerContext
) -> ChildPlan:
    """The plan for one slot; `own` is its port, under `ports`."""
    where = own or context.main
    logs = _logs(service)
    inherited = (context.stdout,) if logs == "stdout" else ()
    return ChildPlan(
        role="worker",
        service=service.name,
        slot=slot,
        scheme=service.scheme,
        argv=_argv(service, where, context.python),
        environment={
            **_environment(service, slot, where, context.environment),
            **_log_variable(service, logs, context.stdout),
            **_header_variable(service),
            **_bounds_variable(service, slot),
        },
        directory=service.directory,
        ours=service.app is not None,
        address=own,
        listens=not service.has_proxy,
        links=context.proxies if service.scheme == "handoff" else 0,
        inherited=inherited,
        privileges=context.privileges,
        start_s=service.timeouts.start,
        stop_s=service.timeouts.stop,
        restart=service.restart,
    )


def proxy_plan(
    config: Config,
    slot: int,
    listeners: Sequence[int],
    environment: Mapping[str, str],
    argv: Sequence[str],
    privileges: "Privileges | None" = None,
) -> ChildPlan:
    """A proxy, of all services; `listeners` are descriptors that it inherits."""
    return ChildPlan(
        role="proxy",
        service="",
        slot=slot,
        argv=tuple(argv),
        environment=environment,
        ours=True,
        inherited=tuple(listeners),
        privileges=privileges,
        start_s=PROXY_START_S,
        stop_s=max(service.timeouts.stop for service in config.services if service.has_proxy),
        restart=PROXY_RESTART,
    )


def proxy_config(
    config: Config,
    slot: int,
    listeners: Mapping[str, Sequence[int]],
    addresses: Mapping[str, Sequence[Address]],
    joined: Callable[[str, int], bool],
    up: Callable[[str, int], bool],
) -> ProxyConfig:
    """What the proxy in this slot is told when it starts, by service name; a later one starts
    informed.

    `addresses` are the workers' or upstreams' addresses, names already resolved.
    """
    return ProxyConfig(
        services=tuple(
            ServiceConfig(
                **per_proxy.keys_for_proxy(service, config.proxies, slot),
                name=service.name,
                tls=bool(service.tls.files),
                verifies=service.tls.client_certificates != "off",
                listeners=tuple(listeners[service.name]),
                scheme="handoff" if service.scheme == "handoff" else "ports",
                targets=_targets(service, addresses.get(service.name, ()), joined, up),
            )
            for service in config.services
            if service.has_proxy
        )
    )


def _targets(
    service: Service,
    addresses: Sequence[Address],
    joined: Callable[[str, int], bool],
    up: Callable[[str, int], bool],
) -> tuple[Target, ...]:
    if service.upstreams:
        return tuple(
            Target(
                slot=slot,
                address=str(address),
                weight=upstream.weight,
                joined=True,
                up=up(service.name, slot),
            )
            for slot, (upstream, address) in enumerate(
                zip(service.upstreams, addresses, strict=True)
            )
        )
    # Without ports nobody is joined before his link is there, which comes as an order.
    reached = service.has_ports
    return tuple(
        Target(
            slot=slot,
            address=str(addresses[slot]) if reached else "",
            weight=service.weights[slot] if slot < len(service.weights) else 1,
            joined=reached and joined(service.name, slot),
            up=reached and up(service.name, slot),
        )
        for slot in range(service.workers)
    )


def _argv(service: Service, address: Address, python: str) -> tuple[str, ...]:
    if service.app is not None:
        return (python, "-m", "penstock_worker.serve", service.app)
    assert service.command is not None
    given = {"{port}": str(address.port), "{fd}": str(contract.LISTEN_START)}
    return tuple(_filled(word, given) for word in service.command)


def _filled(word: str, given: Mapping[str, str]) -> str:
    for name, value in given.items():
        word = word.replace(name, value)
    return word


def _logs(service: Service) -> str:
    """Where a worker writes the access log, because no proxy sees its requests; or "off"."""
    if service.scheme == "ports" or service.app is None or service.mode != "http":
        return "off"
    return service.access_log


def _log_variable(service: Service, where: str, stdout: int) -> dict[str, str]:
    if where == "off":
        return {}
    place = str(stdout) if where == "stdout" else str(Path(where).absolute())
    return {contract.ACCESS_LOG: f"{service.access_log_format}:{place}"}


def _header_variable(service: Service) -> dict[str, str]:
    """For a worker that reads PROXY headers: those that clients' proxies send, where it gets
    the connection itself, or those that the proxy sends."""
    terms = None
    if service.scheme != "ports" and service.accept_proxy:
        terms = AcceptProxy(service.timeouts.head, service.trusted_proxies)
    elif service.scheme == "ports" and service.send_proxy and service.app is not None:
        terms = AcceptProxy(service.timeouts.head, _PROXIES)
    return {} if terms is None else {contract.ACCEPT_PROXY: format_accept_proxy(terms)}


def _bounds_variable(service: Service, slot: int) -> dict[str, str]:
    """For a worker whose clients are its own. A bound on connections is the proxy's, where one
    accepts them; elsewhere each worker has its share of it."""
    if service.scheme == "ports" or service.app is None or service.mode == "udp":
        return {}
    most = 0
    if not service.has_proxy:
        most = per_proxy.share(service.max_connections, service.workers, slot)
    told = Limits(
        direct=True,
        connections=most,
        keepalive_s=service.timeouts.keepalive,
        log_field=service.limits.log_field,
    )
    return {contract.BOUNDS: limits.format_limits(told)}


def _environment(
    service: Service, slot: int, address: Address, inherited: Mapping[str, str]
) -> dict[str, str]:
    # A unix socket has neither: a program that asks for PORT is told at once.
    where = {contract.PORT: str(address.port), contract.HOST: address.host}
    return {
        # Into a pipe Python would keep its lines for minutes; whoever wants that says so.
        "PYTHONUNBUFFERED": "1",
        **inherited,
        **service.env,
        **({} if address.path else where),
        contract.SCHEME: service.scheme,
        contract.SERVICE: service.name,
        contract.SLOT: str(slot),
        contract.NODE_SLOT: str(slot),
    }
