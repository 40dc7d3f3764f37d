"""Turns services into plans: which children to start and how, and the configuration of proxies.

Everything that depends on the scheme is decided here. The life of a child, the sockets and the
proxy need not know which scheme they are part of. Where a worker's connections come from:

    ports      the proxy connects to a port of the worker's own
    handoff    the proxy accepts, and passes the connection itself over a link
    shared     every worker accepts from the one listening socket
    reuseport  every worker accepts from a socket of its own on the same port

No I/O, no clock: ports, the environment and the interpreter's path are arguments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from penstock_proxy.config import Health, ProxyConfig, ServiceConfig, Target
from penstock_proxy.net.address import Address
from penstock_supervisor.config import per_proxy
from penstock_supervisor.config.model import Config, Restart, Service
from penstock_supervisor.names.upstream_member import UpstreamMember
from penstock_worker import contract
from penstock_worker.listener import limits
from penstock_worker.listener.limits import DirectLimits
from penstock_worker.net.trusted_proxies import AcceptProxy, format_accept_proxy

if TYPE_CHECKING:
    from penstock_supervisor.process.privileges import Privileges

Slot = tuple[str, int]
"""A worker's place in the run: name of the service, and number."""
MemberKey = tuple[str, int]
"""An entry in the proxies' pools: name of the service, and number of the member. A worker has a
number of its own in the whole run, and so has a server that an upstream stands for."""

PROXY_START_S: Final = 30.0
"""Not a service's `timeouts.start`, which is for the user's program."""
_LOCAL_PEERS: Final = ("127.0.0.0/8", "::1")
"""Peers that a worker trusts on its own port: the proxies, which run on this host."""
PROXY_RESTART: Final = Restart(
    max_restarts=20, within=60.0, backoff=0.1, backoff_max=2.0, retry_after=5.0
)
"""More restarts than for a worker, and sooner, because a proxy serves the clients of every
service."""


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
    """Where it is started, without links; None: in the supervisor's own directory."""
    runs_our_code: bool
    """It reports readiness over its channel. Other programs are observed from outside."""
    address: Address | None = None
    """Where it has to listen; None: it does not open a port."""
    socket: Address | None = None
    """Where proxies connect to it, if not to its port."""
    inherits_listener: bool = False
    """It inherits a listening socket, or a bound one for datagrams."""
    awaits_accept: bool = field(default=False, compare=False)
    """It accepts nothing before it is told ACCEPT. See `awaiting_accept`."""
    listens_at: Address | None = None
    """Where that socket is bound."""
    link_count: int = 0
    """Number of links over which it gets connections, one from each proxy."""
    inherited_fds: tuple[int, ...] = ()
    """Other descriptors that it inherits."""
    privileges: "Privileges | None" = None
    """Its user and capabilities; None: the supervisor's own."""
    start_s: float
    stop_s: float
    stop_signal: str = "SIGTERM"
    stop_to: Literal["leader", "group"] = "leader"
    """Who gets the signal: the process itself, or what it started as well."""
    service_stop_s: Mapping[str, float] = field(default_factory=dict)
    """Of a proxy: the time to stop of each service."""
    restart: Restart
    health: Health | None = None
    """How a worker is checked."""
    origin: "Origin | None" = field(default=None, compare=False, repr=False)
    """What the plan of a worker was made from."""

    @property
    def name(self) -> str:
        """The name in logs and in front of its output."""
        return f"{self.service or self.role}/{self.slot}"

    @property
    def reached_at(self) -> Address | None:
        """Where proxies connect to it; None: its connections come in another way."""
        return self.socket or self.address

    @property
    def config_table(self) -> str:
        """The table of the configuration that defines it; empty for a proxy."""
        return f"service.{self.service}" if self.service else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Facts of the machine and the run that the workers of one service need."""

    environment: Mapping[str, str]
    python: str
    directory: str | None = None
    """Where its program is started, without links. None: in the supervisor's own directory."""
    service_address: Address
    """Where the service's clients connect."""
    stdout: int = -1
    """A descriptor for access logs that workers write to stdout."""
    proxies: int = 1
    privileges: "Privileges | None" = None
    """User and capabilities of the workers."""
    sockets: Path | None = None
    """The directory of workers' unix sockets, if there is one."""


class Origin(NamedTuple):
    """What the plan of a worker was made from. A process that ended is started again from the
    same, whatever configuration is in force by then."""

    service: Service
    context: WorkerContext


def worker_plan(
    service: Service, slot: int, own_address: Address | None, context: WorkerContext
) -> ChildPlan:
    """The plan for one slot; `own_address` is its own port, with the scheme `ports`."""
    address = own_address or context.service_address
    own_socket = _own_socket(service, own_address, context.sockets)
    access_log = _worker_access_log(service)
    inherited_fds = (context.stdout,) if access_log == "stdout" else ()
    return ChildPlan(
        role="worker",
        service=service.name,
        slot=slot,
        scheme=service.scheme,
        argv=_command(service, address, own_socket, context.python),
        environment={
            **_environment(service, slot, address, context.environment),
            **({} if own_socket is None else {contract.SOCKET: own_socket.path}),
            **_access_log_variable(service, access_log, context.stdout),
            **_accept_proxy_variable(service),
            **_limits_variable(service, slot),
            **_uncaught_variable(service),
        },
        directory=context.directory,
        runs_our_code=service.app is not None,
        address=own_address,
        socket=own_socket,
        inherits_listener=not service.has_proxy,
        listens_at=None if service.has_proxy else context.service_address,
        link_count=context.proxies if service.scheme == "handoff" else 0,
        inherited_fds=inherited_fds,
        privileges=context.privileges,
        start_s=service.timeouts.start,
        stop_s=service.timeouts.stop,
        stop_signal=service.stop_signal,
        stop_to="leader" if service.app is not None else service.stop_to,
        restart=service.restart,
        health=per_proxy.checks_of(service),
        origin=Origin(service, context),
    )


def awaiting_accept(plan: ChildPlan) -> ChildPlan:
    """The plan of a worker that accepts only when it is told so, if it can be told: one that
    accepts by itself, and runs our code."""
    return replace(plan, awaits_accept=plan.runs_our_code and plan.inherits_listener)


def accepting(plan: ChildPlan) -> ChildPlan:
    """The plan of one that has been told: it accepts at once when it is started again."""
    return replace(plan, awaits_accept=False)


_SETTINGS: Final = ("start_s", "stop_s", "stop_signal", "stop_to", "restart", "health")
"""What only the supervisor does with a worker. A change of these needs no new process."""


def with_settings_of(running: ChildPlan, new: ChildPlan) -> ChildPlan:
    """The plan of a worker that goes on, with the settings of another configuration."""
    return replace(running, **{name: getattr(new, name) for name in _SETTINGS})


def needs_new_process(old: ChildPlan, new: ChildPlan) -> bool:
    """Does a worker that was started by the old plan differ from one started by the new one? Which
    port of its slot it has is no difference."""
    if old.address is not None and new.address is not None:
        new = with_address(new, old.address)
    if old.link_count > new.link_count > 0:
        # One link too many does no harm.
        new = with_links(new, old.link_count)
    return with_settings_of(old, new) != new


def with_address(before: ChildPlan, address: Address) -> ChildPlan:
    """The plan with another port, but otherwise as it was made."""
    assert before.origin is not None
    moved = worker_plan(before.origin.service, before.slot, address, before.origin.context)
    own = ("argv", "environment", "address", "socket")
    return replace(before, **{name: getattr(moved, name) for name in own})


def with_links(before: ChildPlan, count: int) -> ChildPlan:
    """The plan with links to so many proxies, but otherwise as it was made."""
    return replace(before, link_count=count)


def proxy_plan(
    config: Config,
    slot: int,
    listeners: Sequence[int],
    environment: Mapping[str, str],
    argv: Sequence[str],
    privileges: "Privileges | None" = None,
) -> ChildPlan:
    """The plan of a proxy, which serves all services. `listeners` are descriptors to inherit."""
    stop_s = {one.name: one.timeouts.stop for one in config.services if one.has_proxy}
    return ChildPlan(
        role="proxy",
        service="",
        slot=slot,
        argv=tuple(argv),
        environment=environment,
        runs_our_code=True,
        inherited_fds=tuple(listeners),
        privileges=privileges,
        start_s=PROXY_START_S,
        stop_s=max(stop_s.values(), default=PROXY_START_S),
        service_stop_s=stop_s,
        restart=_proxy_restart(config),
    )


def _proxy_restart(config: Config) -> Restart:
    """A proxy is given up for good only if all that it serves would be, too."""
    for_good = all(service.restart.retry_after == 0 for service in config.services)
    return PROXY_RESTART.model_copy(update={"retry_after": 0.0}) if for_good else PROXY_RESTART


def proxy_config(
    config: Config,
    slot: int,
    listeners: Mapping[str, Sequence[int]],
    upstreams: Mapping[str, Sequence[UpstreamMember]],
    workers: Mapping[str, Sequence[Target]],
    up: Callable[[MemberKey], bool],
) -> ProxyConfig:
    """The configuration that the proxy in this slot gets when it starts.

    By service: `listeners`, the members of `upstreams`, the `workers` that there are now, with
    their state, so that a proxy that is started later knows which it may pick. `up` says the same
    of an upstream.
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
                targets=(
                    tuple(
                        one.target(up=up((service.name, one.number)))
                        for one in upstreams[service.name]
                    )
                    if service.upstreams
                    else tuple(workers.get(service.name, ()))
                ),
            )
            for service in config.services
            if service.has_proxy
        )
    )


def worker_weight(service: Service, slot: int) -> int:
    """Its share of the requests, compared with that of the others."""
    return service.weights[slot] if slot < len(service.weights) else 1


def _own_socket(service: Service, port: Address | None, directory: Path | None) -> Address | None:
    if port is not None and directory is not None and service.wants_sockets:
        return Address(path=str(directory / f"{port.port}.sock"))
    return None


def _command(
    service: Service, address: Address, own_socket: Address | None, python: str
) -> tuple[str, ...]:
    if service.app is not None:
        return (python, "-m", "penstock_worker.serve", service.app)
    assert service.command is not None
    placeholders = {"{port}": str(address.port), "{fd}": str(contract.LISTEN_START)}
    if own_socket is not None:
        placeholders["{socket}"] = own_socket.path
    return tuple(_substitute(word, placeholders) for word in service.command)


def _substitute(word: str, placeholders: Mapping[str, str]) -> str:
    for name, value in placeholders.items():
        word = word.replace(name, value)
    return word


def _worker_access_log(service: Service) -> str:
    """The access log that a worker writes itself, if no proxy sees its requests; else "off"."""
    if service.scheme == "ports" or service.app is None or service.mode != "http":
        return "off"
    return service.access_log


def _access_log_variable(service: Service, access_log: str, stdout: int) -> dict[str, str]:
    if access_log == "off":
        return {}
    destination = str(stdout) if access_log == "stdout" else str(Path(access_log).absolute())
    return {contract.ACCESS_LOG: f"{service.access_log_format}:{destination}"}


def _accept_proxy_variable(service: Service) -> dict[str, str]:
    """The variable for a worker that reads PROXY headers. With `ports` our own proxy sends them,
    otherwise a proxy in front of this machine."""
    if service.scheme != "ports" and service.accept_proxy:
        accept_proxy = AcceptProxy(service.timeouts.head, service.trusted_proxies)
    elif service.scheme == "ports" and service.send_proxy and service.app is not None:
        accept_proxy = AcceptProxy(service.timeouts.head, _LOCAL_PEERS)
    else:
        return {}
    return {contract.ACCEPT_PROXY: format_accept_proxy(accept_proxy)}


def _limits_variable(service: Service, slot: int) -> dict[str, str]:
    """The variable for a worker that talks to clients itself. If a proxy accepts, that proxy also
    enforces `max_connections`; otherwise each worker gets a share."""
    if service.scheme == "ports" or service.app is None or service.mode == "udp":
        return {}
    max_connections = 0
    if not service.has_proxy:
        max_connections = per_proxy.share(service.max_connections, service.workers, slot)
    worker_limits = DirectLimits(
        direct=True,
        connections=max_connections,
        keepalive_s=service.timeouts.keepalive,
        log_field=service.limits.log_field,
    )
    return {contract.BOUNDS: limits.format_limits(worker_limits)}


def _uncaught_variable(service: Service) -> dict[str, str]:
    return {} if service.app is None else {contract.ON_UNCAUGHT: service.on_uncaught}


def _environment(
    service: Service, slot: int, address: Address, inherited: Mapping[str, str]
) -> dict[str, str]:
    # Not for a unix socket: a program that needs PORT then fails at once.
    port_and_host = {contract.PORT: str(address.port), contract.HOST: address.host}
    return {
        # Otherwise Python buffers its output to a pipe, for minutes. The user can override it.
        "PYTHONUNBUFFERED": "1",
        **inherited,
        **service.env,
        **({} if address.path else port_and_host),
        contract.SCHEME: service.scheme,
        contract.SERVICE: service.name,
        contract.SLOT: str(slot),
        contract.NODE_SLOT: str(slot),
    }
