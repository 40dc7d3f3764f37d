"""A whole run: opens, starts, watches, stops. Executes what the tables and plans say.

Owns the order of things (sockets before children, proxy before workers when leaving) and
the facts of the whole: has it started, is it over, did it fail. What one child does is `child`,
what it is started with is `children.plan`, and what follows from its reports is `child_events`.

Once it has started nothing but a stop ends a run: a worker that cannot be kept alive is
reported and left alone, while the others serve. Only without a proxy nobody could serve.
"""

import asyncio
import logging
import os
import socket
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from functools import partial
from signal import Signals
from typing import Any, Final

from penstock_proxy.messages import REOPEN
from penstock_supervisor.child_events import ChildEvents
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.events import Events
from penstock_supervisor.children.output import Output
from penstock_supervisor.children.plan import ChildPlan, Slot
from penstock_supervisor.children.running import Running, spawn
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.config import warnings
from penstock_supervisor.config.model import Config
from penstock_supervisor.control import endpoints
from penstock_supervisor.errors import StartError
from penstock_supervisor.observability.collect import SnapshotCollector
from penstock_supervisor.observability.stats_poll import LoopLag, StatsPoll
from penstock_supervisor.process import rlimits
from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.proxies import Proxies
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.rolling_restart import RollingRestart
from penstock_supervisor.rotation.reuseport import ReuseportSockets
from penstock_supervisor.rotation.rotation import Rotation
from penstock_supervisor.rotation.worker_checks import WorkerChecks
from penstock_supervisor.snapshot import Snapshot
from penstock_worker import contract

__all__ = ["PROXY", "StartError", "Supervisor"]

PROXY: Final = (sys.executable, "-P", "-m", "penstock_proxy")
"""-P: the directory we happen to stand in must not shadow what the proxy imports."""
_HASTE_S: Final = 5.0
"""Time to leave when the start failed: nobody is being served, and somebody is waiting."""

_log = logging.getLogger("penstock.supervisor")


class Supervisor:
    """One `penstock run`. Made once, run once.

    From the call of `on_started` on, `listening` and `workers` (addresses by service) and
    `admin` ("" if there is none) are where things really are: the configuration may have
    said port 0, or nothing.
    """

    def __init__(
        self,
        config: Config,
        *,
        environment: Mapping[str, str],
        on_started: Callable[["Supervisor"], None] = lambda _: None,
        events: Events | None = None,
        proxy: Sequence[str] = PROXY,
        python: str = sys.executable,
        stdout: int = 1,
        stderr: int = 2,
    ) -> None:
        """`stdout` and `stderr` are descriptors that the children's lines are written to."""
        self.config = config
        self.listening: dict[str, str] = {}
        self.workers: dict[str, tuple[str, ...]] = {}
        self.admin = ""
        self._environment = environment
        self._on_started = on_started
        self._events = events or Events()
        self._proxy_argv = proxy
        self._python = python
        self._outputs = (stdout, stderr)
        self._stats_poll = StatsPoll(self._events)
        self._condition = Condition()
        self._slots = Slots()
        self._started_at = 0.0
        self._failure: StartError | None = None
        self._started = False
        self._stopping = False
        self._halting = False

    # What may be asked of a run from outside.

    async def run(self) -> int:
        """Everything until told to stop; return the exit status. StartError: it cannot be.

        Whatever way this is left, nothing of it is left running.
        """
        rlimits.raise_to_hard()
        for line in warnings.of(self.config, os.geteuid()):
            _log.warning("%s", line)
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        async with AsyncExitStack() as stack:
            start = self._open(stack, loop)
            async with asyncio.TaskGroup() as tasks:
                await self._open_endpoints(stack)
                self._tasks = tasks
                self._spawn = partial(start, tasks=tasks)
                checking = tasks.create_task(self._worker_checks.run())
                try:
                    self._events.happened("setup", "supervisor", text="everything is open")
                    await self._serve()
                finally:
                    checking.cancel()
        if self._failure is not None:
            raise self._failure
        return 0

    def stop(self, *, now: bool = False) -> None:
        """Drain and leave; called again, or `now`, leave at once."""
        if not self._stopping and not now:
            longest = max(service.timeouts.stop for service in self.config.services)
            _log.info("stopping: finishing what is served, at most %g s; again: at once", longest)
            self._stopping = True
        elif not self._halting:
            _log.warning("stopping at once")
            self._stopping = self._halting = True
            for child in self._slots.children():
                child.halt()
        self._condition.notify()

    def roll(self) -> bool:
        """Replace all workers, one after the other, without losing a request."""
        return self._roll(tuple(self._slots.current))

    def replace(self, service: str, slot: int) -> bool:
        """Replace one worker when its successor is ready; KeyError if there is none."""
        return self._roll((slot_of(self._slots.current[service, slot]),))

    def signal(self, service: str, slot: int, number: Signals) -> bool:
        """Signal one worker, which ends it as any signal does. KeyError: there is none."""
        return self._slots.current[service, slot].signal(number)

    def send(
        self, service: str, slot: int, message: Any, handle: socket.socket | None = None
    ) -> bool:
        """Send a program's message to a worker. KeyError: no such worker; False: it is away."""
        return self._slots.current[service, slot].send(message, handle)

    def reopen_logs(self) -> None:
        """Have whoever writes access logs open them anew, after they were moved away."""
        self._resources.hand_over_logs()
        self._proxies.send_to_all({"cmd": REOPEN})
        for child in self._slots.workers():
            if contract.ACCESS_LOG in child.plan.environment:
                child.send({"cmd": contract.REOPEN})

    async def take_snapshot(self, deadline_s: float) -> Snapshot:
        """Describe the run now; children have `deadline_s` to tell what only they know."""
        return await self._snapshots.take(
            deadline_s,
            uptime_s=asyncio.get_running_loop().time() - self._started_at,
            ready=self._is_ready(),
            stopping=self._stopping,
        )

    def _roll(self, slots: tuple[Slot, ...]) -> bool:
        """False: now is not the time."""
        if not self._started or self._is_over():
            _log.warning("workers are replaced only while everything runs")
            return False
        self._rolling_restart.roll(self._tasks, slots)
        return True

    # The way of a run.

    def _open(self, stack: AsyncExitStack, loop: AbstractEventLoop) -> Callable[..., Running]:
        """Make and join all parts; what has to be closed is `stack`'s. Returns how a process is
        started, but for the `tasks` that it may need. StartError."""
        stdout, stderr = self._outputs
        self._resources = stack.enter_context(
            closing(Resources(self.config, self._environment, stdout=stdout, python=self._python))
        )
        guardian = stack.enter_context(closing(Guardian(loop, self._resources.privileges)))
        output = stack.enter_context(closing(Output(loop, stdout=stdout, stderr=stderr)))
        loop_lag = stack.enter_context(closing(LoopLag()))
        self._worker_checks = WorkerChecks(
            [one for one in self.config.services if not one.has_proxy],
            self._send_to_worker,
            lambda *change: self._rotation.worker_changed(*change),  # noqa: PLW0108 — not there yet
        )
        self._rotation = stack.enter_context(
            closing(
                Rotation(
                    loop,
                    self.config.services,
                    self._slots,
                    self._worker_checks,
                    self._worker_changed,
                )
            )
        )
        self._proxies = stack.enter_context(
            closing(Proxies(loop, self._resources, self._slots, self._rotation))
        )
        self._snapshots = SnapshotCollector(
            self._resources,
            self._slots,
            self._worker_checks,
            self._stats_poll,
            loop_lag,
            self._proxies.certificate_reload,
        )
        self._reuseport = ReuseportSockets(self._resources.listeners, self._slots)
        self._rolling_restart = RollingRestart(
            self._slots, self._rotation, self._condition, self._successor
        )
        self._observer = ChildEvents(
            resources=self._resources,
            slots=self._slots,
            rotation=self._rotation,
            proxies=self._proxies,
            worker_checks=self._worker_checks,
            reuseport=self._reuseport,
            rolling_restart=self._rolling_restart,
            stats_poll=self._stats_poll,
            events=self._events,
            condition=self._condition,
            fail=self._fail,
            is_over=self._is_over,
        )
        return partial(spawn, loop=loop, guardian=guardian, output=output)

    async def _open_endpoints(self, stack: AsyncExitStack) -> None:
        """Note where everything is, and let people ask."""
        for service in self.config.services:
            self.listening[service.name] = str(self._resources.listeners[service.name].address)
            self.workers[service.name] = self._resources.worker_addresses(service.name)
        if (admin := self._resources.admin) is not None:
            self.admin = str(admin.address)
        await endpoints.serve(stack, self._resources, self)

    def _add_children(self) -> None:
        self._proxies.add(self._proxy_argv, self._child, self._tasks)
        for service in self.config.services:
            for slot in range(service.workers if service.has_program else 0):
                plan = self._resources.worker_plan(service, slot)
                self._slots.add(self._child(plan))
                if not service.has_proxy:
                    self._worker_checks.add(service.name, slot)

    async def _serve(self) -> None:
        with self._halt_on_error():
            self._add_children()
            # Workers that accept by themselves do so when they are ready; whoever connects
            # before waits for them.
            for child in self._slots.children() if self._listen(proxied=False) else ():
                child.start()
            await self._condition.wait_until(lambda: self._is_over() or self._slots.has_started())
            if not self._is_over() and self._listen(proxied=True):
                self._accept()
            await self._condition.wait_until(self._is_over)
            await self._stop_all()

    def _accept(self) -> None:
        """Everything works: an open port means that somebody answers."""
        self._started = True
        self._proxies.accept()
        _log.info("started")
        self._on_started(self)

    def _listen(self, *, proxied: bool) -> bool:
        """Let clients connect; False if somebody else was faster."""
        try:
            self._resources.listen(proxied=proxied)
        except StartError as error:
            self._failure = error
        return self._failure is None

    async def _stop_all(self) -> None:
        """The proxies finish first: what they still serve needs its workers."""
        self._rolling_restart.cancel()
        for listeners in self._resources.listeners.values():
            listeners.close()
        haste = None if self._failure is None else _HASTE_S
        self._proxies.stop(haste)
        if not self._failure:
            for child in self._slots.workers():
                if not self._resources.services[child.plan.service].has_proxy:
                    child.stop(haste)
            await self._condition.wait_until(lambda: self._proxies.at_rest)
        for child in self._slots.workers():
            child.stop(haste)
        await self._condition.wait_until(
            lambda: all(child.at_rest for child in self._slots.children())
        )

    @contextmanager
    def _halt_on_error(self) -> Iterator[None]:
        """After a mistake of our own the children must not have to wait for the guardian."""
        try:
            yield
        except BaseException:
            for child in self._slots.children():
                child.halt()
            raise

    def _is_over(self) -> bool:
        return self._stopping or self._failure is not None

    def _is_ready(self) -> bool:
        if not self._started or self._is_over() or not self._proxies.can_accept:
            return False
        return self._rotation.services_up() >= {service.name for service in self.config.services}

    def _successor(self, child: Child) -> tuple[Child, bool]:
        service = self._resources.services[child.plan.service]
        beside = self._resources.move_worker(service, child.plan.slot)
        plan = self._resources.worker_plan(service, child.plan.slot)
        return self._child(plan, after=child), beside

    def _child(self, plan: ChildPlan, after: Child | None = None) -> Child:
        return Child(plan, asyncio.get_running_loop(), self._spawn, self._observer, after)

    # The rotation moved.

    def _worker_changed(self, slot: Slot, state: str) -> None:
        self._reuseport.worker_changed(slot, state)
        self._condition.notify()

    def _send_to_worker(
        self, service: str, slot: int, message: Any, handle: socket.socket | None
    ) -> bool:
        current = self._slots.current.get((service, slot))
        return current is not None and current.send(message, handle)

    def _fail(self, why: str) -> bool:
        if not self._is_over():
            self._failure = StartError(why)
            self._condition.notify()
        return self._failure is not None
