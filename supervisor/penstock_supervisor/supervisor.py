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
import itertools
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
from typing import TYPE_CHECKING, Any, Final

from penstock_supervisor.assembly import Basis, Hooks, assemble
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.events import Events
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.running import Running
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.config import warnings
from penstock_supervisor.config.model import Config
from penstock_supervisor.control import endpoints
from penstock_supervisor.errors import (
    IS_STOPPING,
    STILL_STARTS,
    NotNowError,
    ReloadRefused,
    StartError,
)
from penstock_supervisor.kernel import procfs
from penstock_supervisor.names.first_lookup import Endpoints, look_up_all
from penstock_supervisor.names.lookup import Lookups
from penstock_supervisor.process import rlimits
from penstock_supervisor.rollout import log_reopening
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.descriptors import descriptors_needed
from penstock_supervisor.rollout.records import RolloutRecords
from penstock_supervisor.rollout.reloading import Reloading
from penstock_supervisor.rollout.stop_sequence import StopSequence
from penstock_supervisor.rollout.versions import has_slot
from penstock_supervisor.snapshot import ReloadAnswer, RolloutView, Snapshot
from penstock_worker.telemetry.log_writer import LogWriter

if TYPE_CHECKING:
    from penstock_supervisor.rollout.resources import Resources

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
        read_config: Callable[[], Config] | None = None,
        config_file: str = "",
        on_started: Callable[["Supervisor"], None] = lambda _: None,
        events: Events | None = None,
        proxy: Sequence[str] = PROXY,
        python: str = sys.executable,
        stdout: int = 1,
        stderr: int | LogWriter = 2,
    ) -> None:
        """The children's output is written to the descriptors `stdout` and `stderr`, or by the
        writer that has our own messages as well.

        `read_config` makes the configuration again, for a reload (ConfigError: it is broken); None:
        it never changes. `config_file`: where it comes from, as an absolute path; empty: no file.
        """
        self.config = config
        self.config_file = config_file
        self.admin = ""
        self._published: Resources | None = None
        """From the moment on that all addresses are known."""
        self._on_started = on_started
        self._events = events or Events()
        self._proxy_argv = proxy
        self._condition = Condition()
        self._slots = Slots()
        self._member_numbers = itertools.count(1)
        services = {service.name: service for service in config.services}
        self._stop_sequence = StopSequence(services, self._slots, self._condition, time.monotonic)
        self._records = RolloutRecords(self._events, time.monotonic, time.time)  # noqa: TID251
        self._basis = Basis(
            config, environment, python, (stdout, stderr), self._events, self._slots,
            self._condition, self._stop_sequence, self._records,
        )  # fmt: skip
        self._read_config = read_config or (lambda: config)
        self._started_at = 0.0
        self._failure: StartError | None = None
        self._started = False
        self._stopping = False
        self._stopping_now = False
        self._reopening = set[asyncio.Task[None]]()

    @property
    def listening(self) -> dict[str, str]:
        return {} if self._published is None else self._published.listening()

    @property
    def workers(self) -> dict[str, tuple[str, ...]]:
        known = self._published
        return (
            {} if known is None else {one: known.worker_addresses(one) for one in known.listening()}
        )

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
        first = look_up_all(Lookups(loop.time), self.config.services, self.config.dns.servers)
        upstreams = loop.create_task(first)
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
                watches = [tasks.create_task(run()) for run in self._watches]
                try:
                    self._events.emit("setup", "supervisor", text="everything is open")
                    await self._serve()
                finally:
                    for watch in watches:
                        watch.cancel()
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
        """Reload, and have the log say how it goes. False: not while it starts or stops."""
        if why_not := self._why_not_now():
            _log.warning("nothing is reloaded: %s", why_not)
            return False
        self._tasks.create_task(self._reload_and_log())
        return True

    async def _reload_and_log(self) -> None:
        try:
            await self.reload()
        except ReloadRefused:
            pass  # It is in the log: whoever asks, the operator reads it there.
        except NotNowError as error:
            _log.warning("nothing is reloaded: %s", error)
        except Exception:  # noqa: BLE001
            # A fault of ours must not end what serves.
            _log.exception("nothing is reloaded: a bug of penstock")

    async def reload(
        self, services: tuple[str, ...] = (), *, dry_run: bool = False
    ) -> ReloadAnswer:
        """Read the configuration anew, and begin a roll-out. It is answered when it has begun.

        ReloadRefused: nothing is changed. NotNowError; KeyError: there is no such service.
        """
        if why_not := self._why_not_now():
            raise NotNowError(why_not)
        return await self._reloading.request(services, dry_run=dry_run)

    def _why_not_now(self) -> str:
        """Why no reload can begin now; empty: it can."""
        if self._is_over():
            return IS_STOPPING
        return "" if self._started else STILL_STARTS

    def rollouts(self) -> tuple[RolloutView, ...]:
        """Those that run and the last ones that ended, oldest first."""
        return self._records.views()

    async def rollout_changed(self) -> None:
        """Return at the next change of any roll-out."""
        await self._records.changed()

    def replace(self, service: str, slot: int) -> None:
        """Replace one worker: a roll-out of its own. KeyError: no such slot. NotNowError."""
        if why_not := self._why_not_now():
            raise NotNowError(why_not)
        known = slot_of(self._slots.current[service, slot])
        goal = self._rollouts.goal
        if not has_slot(goal, known):
            raise NotNowError("it is being removed: a reload wants the run without it")
        self._rollouts.request(goal, slots=[known])

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
            task = self._tasks.create_task(
                log_reopening.reopen(self._resources, self._proxies, self._slots)
            )
            self._reopening.add(task)
            task.add_done_callback(self._reopening.discard)

    async def take_snapshot(self, deadline_s: float) -> Snapshot:
        """The state of the run now. Children have `deadline_s` to answer with their statistics."""
        return await self._snapshots.take(
            deadline_s,
            uptime_s=asyncio.get_running_loop().time() - self._started_at,
            ready=self._is_ready(),
            stopping=self._stopping,
            log_lines_lost=self._output.lines_lost,
            records=self._records,
        )

    # The course of a run.

    def _open(
        self,
        stack: AsyncExitStack,
        loop: AbstractEventLoop,
        upstreams: Mapping[str, Endpoints],
    ) -> Callable[..., Running]:
        """Make all parts; `stack` closes them. Returns the function that starts a process, which
        still needs `tasks`. Raises StartError."""
        hooks = Hooks(self._make_child, self._fail, self._is_over, self.take_snapshot)
        parts = assemble(stack, loop, self._basis, upstreams, hooks)
        self._resources = parts.resources
        self._output = parts.output
        self._worker_checks = parts.worker_checks
        self._rotation = parts.rotation
        self._proxies = parts.proxies
        self._replacements = parts.replacements
        self._rollouts = parts.rollouts
        self._reloading = Reloading(
            self._read_config,
            parts.resources.moved,
            lambda: parts.resources.present,
            parts.reconfiguration.check,
            parts.rollouts,
            self._records,
        )
        self._worker_watch = parts.worker_watch
        self._watches = (parts.worker_checks.run, parts.names.run)
        self._snapshots = parts.snapshots
        self._observer = parts.observer
        return parts.spawn

    async def _open_endpoints(self, stack: AsyncExitStack) -> None:
        """Publish all addresses, and open the admin port and the control socket."""
        self._published = self._resources
        if (admin := self._resources.admin) is not None:
            self.admin = str(admin.address)
        await endpoints.serve(stack, self._resources, self)

    def _add_children(self) -> None:
        self._proxies.add(self._proxy_argv, self._make_child, self._tasks)
        for service in self.config.services:
            for slot in range(service.workers if service.has_program else 0):
                plan = self._resources.worker_plan(service, slot)
                child = self._make_child(plan)
                self._slots.add(child)
                self._rotation.add(child)

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
        self._rollouts.start(self._tasks)
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
        # Nobody waits for a disk that does not answer.
        self._reloading.cancel()
        for task in self._reopening:
            task.cancel()
        self._rollouts.cancel()
        self._replacements.cancel()
        self._resources.stop_listening()
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
        return self._rotation.services_up() >= self._resources.open_services()

    def _make_child(self, plan: ChildPlan, after: Child | None = None) -> Child:
        number = next(self._member_numbers) if plan.role == "worker" else 0
        loop = asyncio.get_running_loop()
        return Child(plan, loop, self._spawn_process, self._observer, after, number)

    def _fail(self, why: str) -> bool:
        if not self._is_over():
            self._failure = StartError(why)
            self._condition.notify()
        return self._failure is not None
