"""A service becomes a plan: which children to start, how, and what the front is told.

Everything that follows from the scheme is written here, so that a child's life, the
sockets and the front need not know which scheme they are part of. There is one so far:
`ports`, where every worker has a port of its own and the front connects to it.

No I/O, no clock: ports, the environment and the interpreter's path are arguments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from penstock_proxy.config import Address, FrontConfig, FrontService, Target, Traffic
from penstock_supervisor.services import Config, Restart, Service
from penstock_worker import contract

FRONT_START_S: Final = 30.0
"""Not a service's `timeouts.start`: that is about the user's program."""
FRONT_RESTART: Final = Restart(max_restarts=20, within=60.0, backoff=0.1, backoff_max=2.0)
"""A front that comes back serves everybody: worth more tries than one worker of many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPlan:
    """One child to keep alive."""

    role: Literal["front", "worker"]
    service: str
    """Empty for a front."""
    slot: int
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str | None = None
    channel: bool
    """It speaks ours, and says itself when it is ready; otherwise its port is asked."""
    address: Address | None = None
    """Where it has to listen."""
    inherited: tuple[int, ...] = ()
    start_s: float
    stop_s: float
    restart: Restart

    @property
    def name(self) -> str:
        """As in logs and prefixes."""
        return f"{self.service or self.role}/{self.slot}"

    @property
    def origin(self) -> str:
        """The table of the configuration that it comes from; empty for a front."""
        return f"service.{self.service}" if self.service else ""


def worker_plans(
    service: Service,
    addresses: Sequence[Address],
    environment: Mapping[str, str],
    python: str,
) -> tuple[ChildPlan, ...]:
    """One plan for each address, by slot. None if there is nothing to run."""
    if service.app is None and service.command is None:
        return ()
    return tuple(
        ChildPlan(
            role="worker",
            service=service.name,
            slot=slot,
            argv=_argv(service, address, python),
            environment=_environment(service, slot, address, environment),
            directory=service.directory,
            channel=service.app is not None,
            address=address,
            start_s=service.timeouts.start,
            stop_s=service.timeouts.stop,
            restart=service.restart,
        )
        for slot, address in enumerate(addresses)
    )


def front_plan(
    config: Config,
    listeners: Sequence[int],
    environment: Mapping[str, str],
    argv: Sequence[str],
) -> ChildPlan:
    """The one front of all services; `listeners` are descriptors that it inherits."""
    return ChildPlan(
        role="front",
        service="",
        slot=0,
        argv=tuple(argv),
        environment=environment,
        channel=True,
        inherited=tuple(listeners),
        start_s=FRONT_START_S,
        stop_s=max(service.timeouts.stop for service in config.services),
        restart=FRONT_RESTART,
    )


def front_config(
    config: Config,
    listeners: Mapping[str, Sequence[int]],
    places: Mapping[str, Sequence[Address]],
    joined: Callable[[str, int], bool],
    up: Callable[[str, int], bool],
) -> FrontConfig:
    """What a front is told when it starts, by service name; a later one starts informed.

    `places` are the workers' or upstreams' addresses, names already resolved.
    """
    return FrontConfig(
        services=tuple(
            FrontService(
                **{key: getattr(service, key) for key in Traffic.model_fields},
                name=service.name,
                listeners=tuple(listeners[service.name]),
                targets=_targets(service, places.get(service.name, ()), joined, up),
            )
            for service in config.services
        )
    )


def _targets(
    service: Service,
    places: Sequence[Address],
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
            for slot, (upstream, address) in enumerate(zip(service.upstreams, places, strict=True))
        )
    return tuple(
        Target(
            slot=slot,
            address=str(address),
            weight=service.weights[slot] if slot < len(service.weights) else 1,
            joined=joined(service.name, slot),
            up=up(service.name, slot),
        )
        for slot, address in enumerate(places)
    )


def _argv(service: Service, address: Address, python: str) -> tuple[str, ...]:
    if service.app is not None:
        return (python, "-m", "penstock_worker.serve", service.app)
    assert service.command is not None
    return tuple(word.replace("{port}", str(address.port)) for word in service.command)


def _environment(
    service: Service, slot: int, address: Address, inherited: Mapping[str, str]
) -> dict[str, str]:
    return {
        # Into a pipe Python would keep its lines for minutes; whoever wants that says so.
        "PYTHONUNBUFFERED": "1",
        **inherited,
        **service.env,
        contract.PORT: str(address.port),
        contract.HOST: address.host,
        contract.SERVICE: service.name,
        contract.SLOT: str(slot),
        contract.NODE_SLOT: str(slot),
    }
