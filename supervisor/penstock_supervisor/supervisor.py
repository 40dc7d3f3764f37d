"""A whole run: opens sockets, starts children, serves, stops.

Owns the order of things when it starts (sockets before children), and the state of the whole: has
it started, is it over, has it failed. `rollout.stop_sequence` has the order of the end. `child`
runs a single child, `children.plan` decides what it is started with, and `child_events` what
follows from its reports.

Once a run has started, only a stop ends it. A child that cannot be kept alive is reported and
tried again now and then, and the others serve. The exception is a run in which nothing can serve
and nothing is tried again, because `restart.retry_after` is 0 everywhere.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from signal import Signals
from typing import Any, Final

from penstock_proxy.messages import REOPEN
from penstock_proxy.net.address import Address
from penstock_supervisor.assembly import Basis, Hooks, assemble
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.events import Events
from penstock_supervisor.children.plan import ChildPlan, Slot
from penstock_supervisor.children.running import Running
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.config import warnings
from penstock_supervisor.config.model import Config
from penstock_supervisor.control import endpoints
from penstock_supervisor.errors import StartError
from penstock_supervisor.kernel import procfs
from penstock_supervisor.listeners import resolver
from penstock_supervisor.process import rlimits
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.resources import descriptors_needed
from penstock_supervisor.rollout.stop_sequence import StopSequence
from penstock_supervisor.snapshot import Snapshot
from penstock_worker import contract
from penstock_worker.telemetry.log_writer import LogWriter

__all__ = ["PROXY", "StartError", "Supervisor"]

PROXY: Final = (sys.executable, "-P", "-m", "penstock_proxy")
"""-P: files in the working directory must not shadow modules that the proxy imports."""
_FAILED_START_STOP_S: Final = 5.0
"""Time to stop after a failed start. It is short: no client is served, and somebody waits."""

_log = logging.getLogger("penstock.supervisor")


class Supervisor:
    """One `penstock run`; `run` can be called once.

    From the call of `on_started` on, `listening` and `workers` (addresses by service) and `admin`
    (empty if there is none) have the actual addresses. The configuration may have port 0, or no
    addresses of workers.
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
        stderr: int | LogWriter = 2,
    ) -> None:
        """The children's output is written to the descriptors `stdout` and `stderr`, or by the
        writer that has our own messages as well."""
        self.config = config
        self.listening: dict[str, str] = {}
        self.workers: dict[str, tuple[str, ...]] = {}
        self.admin = ""
        self._on_started = on_started
        self._events = events or Events()
        self._proxy_argv = proxy
        self._condition = Condition()
        self._slots = Slots()
        self._stop_sequence = StopSequence(
            config.services, self._slots, self._condition, time.monotonic
        )
        self._basis = Basis(
            config, environment, python, (stdout, stderr), self._events, self._slots,
            self._condition, self._stop_sequence,
        )  # fmt: skip
        self._started_at = 0.0
        self._failure: StartError | None = None
        self._started = False
        self._stopping = False
        self._stopping_now = False

    # Called from outside.

    async def run(self) -> int:
        """Run until `stop`, and return the exit status. StartError: it failed.

        However it ends, no process is left.
        """
        procfs.require_proc()
        rlimits.raise_to_hard(descriptors_needed(self.config))
        for line in warnings.check(self.config, os.geteuid()):
            _log.warning("%s", line)
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        upstreams = resolver.resolve_in_thread(self.config.services)
        upstreams.add_done_callback(lambda _: self._condition.notify())
        await self._condition.wait_until(lambda: upstreams.done() or self._stopping)
        if not upstreams.done():
            upstreams.cancel()
            return 0
        async with AsyncExitStack() as stack:
            spawn_process = self._open(stack, loop, upstreams.result())
            async with asyncio.TaskGroup() as tasks:
                await self._open_endpoints(stack)
                self._tasks = tasks
                self._spawn_process = partial(spawn_process, tasks=tasks)
                checks_task = tasks.create_task(self._worker_checks.run())
                try:
                    self._events.emit("setup", "supervisor", text="everything is open")
                    await self._serve()
                finally:
                    checks_task.cancel()
        if self._failure is not None:
            raise self._failure
        return 0

    def stop(self, *, now: bool = False) -> None:
        """Drain and stop. Called again, or with `now`: cut what is open. Once more: kill."""
        if not self._stopping and not now:
            longest_s = self._stop_sequence.longest_s
            _log.info("stopping: finishing what is served, at most %g s; again: at once", longest_s)
            self._stopping = True
        elif not self._stopping_now:
            _log.warning("stopping at once: cutting what is served")
            self._stopping = self._stopping_now = True
            self._stop_sequence.at_once()
        else:
            for child in self._slots.children():
                child.stop_now()
        self._condition.notify()

    def roll(self) -> bool:
        """Replace all workers, one after the other, without losing a request."""
        return self._roll(tuple(self._slots.current))

    def replace(self, service: str, slot: int) -> bool:
        """Replace one worker as soon as its successor is ready. KeyError: no such slot."""
        return self._roll((slot_of(self._slots.current[service, slot]),))

    def signal(self, service: str, slot: int, number: Signals) -> bool:
        """Signal one worker. An exit that follows is handled like any other. KeyError: no such
        slot. False: it has no process."""
        return self._slots.current[service, slot].signal(number)

    def send(
        self, service: str, slot: int, message: Any, handle: socket.socket | None = None
    ) -> bool:
        """Send a message of the program to a worker. KeyError: no such slot. False: it has no
        open channel. OSError (ENOBUFS): it has not taken the earlier ones; see `drain`."""
        channel = self._slots.current[service, slot].channel
        return channel is not None and channel.send_for_program(message, handle)

    async def drain(self, service: str, slot: int) -> None:
        """Wait until `send` has room again. KeyError: no such slot."""
        if (channel := self._slots.current[service, slot].channel) is not None:
            # Several may wait for the same room, and one of them may be cancelled.
            await asyncio.shield(channel.room())

    def reopen_logs(self) -> None:
        """Have proxies and workers open their access logs again, after a rotation of the files."""
        if self._started:
            self._tasks.create_task(self._reopen_logs())

    async def _reopen_logs(self) -> None:
        # In a thread: the disk of a log may be slow, or a network's.
        await asyncio.to_thread(self._resources.hand_over_logs)
        self._proxies.send_to_all({"cmd": REOPEN})
        for child in self._slots.workers():
            if contract.ACCESS_LOG in child.plan.environment:
                child.send({"cmd": contract.REOPEN})

    async def take_snapshot(self, deadline_s: float) -> Snapshot:
        """The state of the run now. Children have `deadline_s` to answer with their statistics."""
        return await self._snapshots.take(
            deadline_s,
            uptime_s=asyncio.get_running_loop().time() - self._started_at,
            ready=self._is_ready(),
            stopping=self._stopping,
            log_lines_lost=self._output.lines_lost,
        )

    def _roll(self, slots: tuple[Slot, ...]) -> bool:
        """False: the run has not started yet, or is over."""
        if not self._started or self._is_over():
            _log.warning("workers are replaced only while everything runs")
            return False
        self._rolling_restart.roll(self._tasks, slots)
        return True

    # The course of a run.

    def _open(
        self,
        stack: AsyncExitStack,
        loop: AbstractEventLoop,
        upstreams: Mapping[str, list[Address]],
    ) -> Callable[..., Running]:
        """Make all parts; `stack` closes them. Returns the function that starts a process, which
        still needs `tasks`. Raises StartError."""
        hooks = Hooks(self._make_successor, self._fail, self._is_over)
        parts = assemble(stack, loop, self._basis, upstreams, hooks)
        self._resources = parts.resources
        self._output = parts.output
        self._worker_checks = parts.worker_checks
        self._rotation = parts.rotation
        self._proxies = parts.proxies
        self._rolling_restart = parts.rolling_restart
        self._worker_watch = parts.worker_watch
        self._snapshots = parts.snapshots
        self._observer = parts.observer
        return parts.spawn

    async def _open_endpoints(self, stack: AsyncExitStack) -> None:
        """Publish all addresses, and open the admin port and the control socket."""
        for service in self.config.services:
            self.listening[service.name] = str(self._resources.listeners[service.name].address)
            self.workers[service.name] = self._resources.worker_addresses(service.name)
        if (admin := self._resources.admin) is not None:
            self.admin = str(admin.address)
        await endpoints.serve(stack, self._resources, self)

    def _add_children(self) -> None:
        self._proxies.add(self._proxy_argv, self._make_child, self._tasks)
        for service in self.config.services:
            for slot in range(service.workers if service.has_program else 0):
                plan = self._resources.worker_plan(service, slot)
                self._slots.add(self._make_child(plan))
                if not service.has_proxy:
                    self._worker_checks.add(service.name, slot)

    async def _serve(self) -> None:
        with self._stop_children_on_error():
            self._add_children()
            self._worker_watch.start()
            # Workers that accept themselves do so as soon as they are ready. Clients that
            # connect before that wait in the accept queue.
            for child in self._slots.children() if self._listen(proxied=False) else ():
                child.start()
            await self._condition.wait_until(lambda: self._is_over() or self._slots.has_started())
            if not self._is_over() and self._listen(proxied=True):
                self._complete_start()
            await self._condition.wait_until(self._is_over)
            await self._stop_all()

    def _complete_start(self) -> None:
        """Every service is ready: let the proxies accept."""
        self._started = True
        self._proxies.accept()
        _log.info("started")
        self._on_started(self)

    def _listen(self, *, proxied: bool) -> bool:
        """Let clients connect. False: another process has taken an address meanwhile."""
        try:
            self._resources.listen(proxied=proxied)
        except StartError as error:
            self._failure = error
        return self._failure is None

    async def _stop_all(self) -> None:
        self._rolling_restart.cancel()
        for listeners in self._resources.listeners.values():
            listeners.close()
        at_most_s = None if self._failure is None else _FAILED_START_STOP_S
        await self._stop_sequence.run(self._proxies, at_most_s)

    @contextmanager
    def _stop_children_on_error(self) -> Iterator[None]:
        """After a bug of the supervisor, kill the children now, and not only by the guardian."""
        try:
            yield
        except BaseException:
            for child in self._slots.children():
                child.stop_now()
            raise

    def _is_over(self) -> bool:
        return self._stopping or self._failure is not None

    def _is_ready(self) -> bool:
        if not self._started or self._is_over() or not self._proxies.can_accept:
            return False
        return self._rotation.services_up() >= {service.name for service in self.config.services}

    def _make_successor(self, child: Child) -> tuple[Child, bool]:
        service = self._resources.services[child.plan.service]
        can_overlap = self._resources.move_worker(service, child.plan.slot)
        plan = self._resources.worker_plan(service, child.plan.slot)
        return self._make_child(plan, after=child), can_overlap

    def _make_child(self, plan: ChildPlan, after: Child | None = None) -> Child:
        return Child(plan, asyncio.get_running_loop(), self._spawn_process, self._observer, after)

    def _fail(self, why: str) -> bool:
        if not self._is_over():
            self._failure = StartError(why)
            self._condition.notify()
        return self._failure is not None
