"""The parts of a run, made in order and connected with each other.

Owns which part is given which other part. Several of them call each other in a circle: the
rotation calls the watch over workers, which replaces a worker, which changes the rotation. Such a
call is made by a lambda here, so that no part has to be completed later.

Must not know when a run starts or ends (`supervisor`), nor what a part does with another one.
"""

from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, closing
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from penstock_proxy.net.address import Address
from penstock_supervisor.child_events import ChildEvents
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.events import Events
from penstock_supervisor.children.output import Output
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.running import Running, spawn
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.config.model import Config
from penstock_supervisor.observability.collect import SnapshotCollector
from penstock_supervisor.observability.rollout_measurements import RolloutMeasurements
from penstock_supervisor.observability.stats_poll import StatsPoll
from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.proxies import Proxies
from penstock_supervisor.rollout.reconfiguration import Reconfiguration
from penstock_supervisor.rollout.records import RolloutRecords
from penstock_supervisor.rollout.removals import Removals
from penstock_supervisor.rollout.replacements import Replacements
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.rollout_driver import RolloutDriver
from penstock_supervisor.rollout.rollout_parts import RolloutParts
from penstock_supervisor.rollout.rollouts import Rollouts
from penstock_supervisor.rollout.stop_sequence import StopSequence
from penstock_supervisor.rollout.versions import RunVersions
from penstock_supervisor.rollout.worker_watch import WorkerWatch
from penstock_supervisor.rotation.reuseport import ReuseportSockets
from penstock_supervisor.rotation.rotation import Rotation
from penstock_supervisor.rotation.worker_checks import WorkerChecks
from penstock_supervisor.snapshot import Snapshot
from penstock_worker.telemetry.log_writer import LogWriter
from penstock_worker.telemetry.loop_lag import LoopLag


class _Closable(Protocol):
    def close(self) -> None: ...


_Part = TypeVar("_Part", bound=_Closable)


class Basis(NamedTuple):
    """What is there before a run opens anything."""

    config: Config
    environment: Mapping[str, str]
    python: str
    outputs: tuple[int, int | LogWriter]
    """Where the children's stdout and stderr are written to."""
    events: Events
    slots: Slots
    condition: Condition
    stop_sequence: StopSequence
    records: RolloutRecords


class Hooks(NamedTuple):
    """What the parts ask of the run."""

    make_child: Callable[[ChildPlan, Child | None], Child]
    fail: Callable[[str], bool]
    is_over: Callable[[], bool]
    take_snapshot: Callable[[float], Awaitable[Snapshot]]


class Parts(NamedTuple):
    resources: Resources
    output: Output
    worker_checks: WorkerChecks
    rotation: Rotation
    proxies: Proxies
    replacements: Replacements
    rollouts: Rollouts
    reconfiguration: Reconfiguration
    worker_watch: WorkerWatch
    snapshots: SnapshotCollector
    observer: ChildEvents
    spawn: Callable[..., Running]
    """Starts a process; it still needs `tasks`."""


def assemble(
    stack: AsyncExitStack,
    loop: AbstractEventLoop,
    basis: Basis,
    upstreams: Mapping[str, list[Address]],
    hooks: Hooks,
) -> Parts:
    """Make all parts; `stack` closes them. StartError: an address or a file cannot be opened."""
    slots = basis.slots
    stdout, stderr = basis.outputs

    def worker_changed(child: Child | None, state: str) -> None:
        reuseport.worker_changed(child, state)
        replacements.changed(child)
        basis.condition.notify()

    def opened(part: _Part) -> _Part:
        return stack.enter_context(closing(part))

    resources = opened(
        Resources(basis.config, basis.environment, upstreams, stdout=stdout, python=basis.python)
    )
    basis.stop_sequence.services = resources.services
    services = resources.services
    guardian = opened(Guardian(loop, resources.privileges))
    output = opened(Output(loop, stdout=stdout, stderr=stderr))
    loop_lag = opened(LoopLag(loop))
    loop_lag.start()
    stats_poll = StatsPoll(basis.events, lambda child: rotation.member_state(child))  # noqa: PLW0108
    worker_checks = WorkerChecks(
        [one for one in services.values() if not one.has_proxy],
        slots.send_to,
        lambda *change: rotation.worker_changed(*change),  # noqa: PLW0108 — not there yet
        lambda *answer: rotation.worker_checked(*answer),  # noqa: PLW0108
    )
    rotation = opened(
        Rotation(
            loop, services, slots, worker_checks, worker_changed,
            lambda *check: worker_watch.checked(*check),  # noqa: PLW0108
        )
    )  # fmt: skip
    proxies = opened(Proxies(loop, resources, slots, rotation))
    versions = RunVersions(resources, slots)
    replacements = Replacements(loop, slots, rotation, basis.condition, versions, hooks.make_child)
    reconfiguration = opened(
        Reconfiguration(
            loop, resources, slots, proxies, rotation, worker_checks, basis.condition,
            partial(_forget_service, replacements, stats_poll, slots),
        )
    )  # fmt: skip
    driver = RolloutDriver(
        RolloutParts(
            loop, replacements, versions, reconfiguration,
            RolloutMeasurements(hooks.take_snapshot), basis.condition,
            Removals(reconfiguration, versions, replacements, basis.condition),
        )
    )  # fmt: skip
    rollouts = Rollouts(loop, replacements, driver, basis.condition, basis.records)
    reuseport = ReuseportSockets(
        resources.listeners,
        slots,
        lambda child, why: replacements.request(child, "channel", why),
    )
    worker_watch = opened(WorkerWatch(loop, services, slots, rotation, replacements, hooks.is_over))
    snapshots = SnapshotCollector(
        resources,
        slots,
        worker_checks,
        stats_poll,
        loop_lag,
        proxies.certificate_reload,
        worker_watch,
    )
    observer = ChildEvents(
        resources=resources,
        slots=slots,
        rotation=rotation,
        proxies=proxies,
        worker_checks=worker_checks,
        reuseport=reuseport,
        replacements=replacements,
        worker_watch=worker_watch,
        stats_poll=stats_poll,
        events=basis.events,
        condition=basis.condition,
        on_cut=basis.stop_sequence.was_cut,
        fail=hooks.fail,
        is_over=hooks.is_over,
    )
    start = partial(spawn, loop=loop, guardian=guardian, output=output)
    return Parts(
        resources, output, worker_checks, rotation, proxies, replacements, rollouts,
        reconfiguration, worker_watch, snapshots, observer, start,
    )  # fmt: skip


def _forget_service(
    replacements: Replacements, stats_poll: StatsPoll, slots: Slots, service: str
) -> None:
    """Nothing is left of it."""
    replacements.forget(service)
    stats_poll.forget(service, slots.children())
