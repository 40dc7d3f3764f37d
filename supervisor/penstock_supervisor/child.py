"""One child: executes what its table says, and feeds it what happened.

Owns everything that belongs to one slot (process, pipes, channel, timer, readiness task,
the history of its exits), so that an end of any of them is handled in one place. It does
not know the other children, nor when the run starts or ends: that is `runner`, which it
tells through `Above`.
"""

import logging
import random
import signal
from asyncio import AbstractEventLoop, Task, TaskGroup, TimerHandle
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from penstock_proxy.orders import DRAIN
from penstock_supervisor import readiness
from penstock_supervisor.lifecycle import Command, Event, Life, State
from penstock_supervisor.output import Capture, Output
from penstock_supervisor.processes import Exit, Guardian, Process, Program, SpawnError
from penstock_supervisor.restarts import Restarts
from penstock_supervisor.schemes import ChildPlan
from penstock_worker import channel, contract
from penstock_worker.channel import Channel, Message

_log = logging.getLogger(__name__)

_LOST_S: Final = 1.0
"""From the end of a front's channel to its death: it may be about to exit by itself."""


class Above(Protocol):
    """Whom a child reports to. None of these may raise."""

    def spawned(self, child: "Child") -> None:
        """A new process is there, and its channel if it has one."""

    def joined(self, child: "Child") -> None: ...
    def left(self, child: "Child") -> None: ...
    def heard(self, child: "Child", message: Message) -> None: ...

    def hopeless(self, child: "Child", why: str) -> bool:
        """It failed to start in a way that rarely mends itself. True: the run ends for it."""

    def gave_up(self, child: "Child", why: str) -> bool:
        """Nobody will start it again. True: the run ends for it, and says why itself."""

    def moved(self, child: "Child") -> None:
        """Its state may be another one."""


class Surroundings(NamedTuple):
    """What every child of a run needs from it."""

    loop: AbstractEventLoop
    tasks: TaskGroup
    guardian: Guardian
    output: Output
    above: Above


class Child:
    """A slot and whatever process is in it at the moment."""

    def __init__(self, plan: ChildPlan, surroundings: Surroundings) -> None:
        self.plan = plan
        self.name = plan.name
        self.restarts: Counter[str] = Counter()
        """Restarts so far, by reason."""
        self.exits: Counter[str] = Counter()
        """Every end of a process, by exit status or name of the signal."""
        self.last_exit = ""
        self.stats: dict[str, Any] = {}
        """Its last answer to STATS."""
        self.was_up = False
        """It was ready at least once."""
        self.stop_s = plan.stop_s
        self._around = surroundings
        self._life = Life(plan.name)
        self._since = surroundings.loop.time()
        self._spawned_at = self._since
        self._up_at: float | None = None
        self._restarts = Restarts(
            max_restarts=plan.restart.max_restarts,
            within_s=plan.restart.within,
            backoff_s=plan.restart.backoff,
            backoff_max_s=plan.restart.backoff_max,
            random=random.random,
            first_at_once=plan.role == "front",
        )
        self._process: Process | None = None
        self._captures: tuple[Capture, ...] = ()
        self._channel: Channel | None = None
        self._timer: TimerHandle | None = None
        self._asking: Task[None] | None = None
        self._wait_s = 0.0
        self._why = self._reason = ""
        """The reason for the exit that is being handled or is certain to come."""
        self._no_use = False
        """The child itself said that another start would not help."""
        self._doomed = False
        """The run ends because of this child: no more starts, and one line for all of it."""

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def at_rest(self) -> bool:
        return self._life.at_rest

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def has_channel(self) -> bool:
        return self._channel is not None and not self._channel.closed

    def misled(self) -> str:
        """Where it listens instead of where it should, or nothing."""
        asked = self.state is State.STARTING and not self.plan.channel and self.pid is not None
        found = readiness.where_it_listens(self.pid or 0) if asked else ()
        if not found or str(self.plan.address) in found:
            return ""
        return f"{self.name} listens on {' and '.join(found)} — it must use PORT or {{port}}"

    def since_s(self) -> float:
        """Seconds in this state."""
        return self._around.loop.time() - self._since

    def start(self) -> None:
        self._handle(Event.START)

    def stop(self, at_most_s: float | None = None) -> None:
        """Ask it to leave; it has its plan's time, or less."""
        if at_most_s is not None:
            self.stop_s = min(self.stop_s, at_most_s)
        self._handle(Event.STOP)

    def halt(self) -> None:
        """End it without asking."""
        self._handle(Event.HALT)

    def send(self, message: Message) -> None:
        """Dropped if there is nobody to take it."""
        if self._channel is not None:
            self._channel.send(message)

    def _handle(self, event: Event) -> None:
        before = self.state
        for command in self._life.handle(event):
            _EXECUTE[command](self)
        if self.state is not before:
            self._since = self._around.loop.time()
            _log.debug("%s: %s", self.name, self.state.name.lower())
            if self.state is State.UP:
                self._went_up()
        self._around.above.moved(self)

    def _went_up(self) -> None:
        self.was_up = True
        self._up_at = self._since
        took = self._since - self._spawned_at
        _log.info("%s is ready after %.1f s (pid %s)", self.name, took, self.pid)

    # Commands.

    def _spawn(self) -> None:
        loop = self._around.loop
        self._spawned_at, self._up_at = loop.time(), None
        self._why, self._reason, self._no_use = "", "", False
        try:
            self._process, mine = self._make_process()
        except SpawnError as error:
            origin = f"{self.plan.origin}.{error.key}" if self.plan.origin else self.name
            self._why, self._reason = f"{origin}: {error}", "spawn"
            # An exit like any other, but not in the middle of the commands of a start.
            loop.call_soon(self._failed_to_spawn)
            return
        self._captures = self._around.output.capture(
            self.name, self._process.stdout, self._process.stderr
        )
        if mine is not None:
            self._channel = Channel(loop, mine, self._heard, self._lost)
        elif self.plan.address is not None:
            self._asking = self._around.tasks.create_task(self._ask())
        _log.debug("%s: started as pid %d", self.name, self._process.pid)
        self._around.above.spawned(self)

    def _make_process(self) -> tuple[Process, Any]:
        plan, mine, theirs = self.plan, None, None
        environment, inherited = dict(plan.environment), plan.inherited
        if plan.channel:
            mine, theirs = channel.pair()
            environment[contract.CHANNEL_FD] = str(theirs.fileno())
            inherited = (*inherited, theirs.fileno())
        program = Program(
            plan.argv, environment, plan.directory, inherited, captured=plan.role != "front"
        )
        try:
            process = Process(program, self._around.loop, self._around.guardian, self._exited)
        except SpawnError:
            if mine is not None:
                mine.close()
            raise
        finally:
            if theirs is not None:
                theirs.close()
        return process, mine

    def _failed_to_spawn(self) -> None:
        self._doomed = self._around.above.hopeless(self, self._why)
        self._ended(f"{self.name} could not be started: {self._why}")

    def _terminate(self) -> None:
        if self.plan.role == "front" and self.has_channel:
            self.send({"cmd": DRAIN})
        elif self._process is not None:
            self._process.signal(signal.SIGTERM)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def _arm(self, delay_s: float) -> None:
        self._disarm()
        self._timer = self._around.loop.call_later(delay_s, self._deadline)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _alarm(self) -> None:
        if not self._around.above.gave_up(self, self._why):
            _log.critical("GIVING UP on %s, nobody starts it again: %s", self.name, self._why)

    # What happens to it.

    async def _ask(self) -> None:
        assert self.plan.address is not None
        await readiness.until_it_answers(self.plan.address)
        self._handle(Event.READY)

    def _heard(self, message: Message) -> None:
        if message["cmd"] == contract.READY:
            self._handle(Event.READY)
        elif message["cmd"] == contract.FAILED:
            self._no_use = True
            self._why = str(message.get("reason", "it does not say why"))
        else:
            self._around.above.heard(self, message)

    def _lost(self) -> None:
        """The channel ended. A worker can go on without; a front is deaf to joins and leaves."""
        leaving = self.state is State.STOPPING
        if self.plan.role == "front" and not leaving and (process := self._process) is not None:
            self._around.loop.call_later(_LOST_S, process.signal, signal.SIGKILL)

    def _deadline(self) -> None:
        self._timer = None
        if self.state is State.STARTING:
            self._why, self._reason = self._diagnosis(), "start_timeout"
            self._doomed = self._around.above.hopeless(self, self._why)
            if not self._doomed:
                _log.error("%s", self._why)
        elif self.state is State.STOPPING:
            _log.warning("%s did not leave within %g s and is killed", self.name, self.stop_s)
        self._handle(Event.DEADLINE)

    def _diagnosis(self) -> str:
        """Why it is not ready, and where the process really listens if it does."""
        plan, pid = self.plan, self.pid
        if plan.address is None or plan.channel:
            return f"{self.name}: not ready within {plan.start_s:g} s"
        text = f"{self.name}: nothing answered on {plan.address} within {plan.start_s:g} s"
        found = readiness.where_it_listens(pid) if pid is not None else ()
        if not found:
            return f"{text}; its process listens nowhere"
        return (
            f"{text}; its process listens on {' and '.join(found)} — it must use PORT or {{port}}"
        )

    def _exited(self, end: Exit) -> None:
        for capture in self._captures:
            capture.read_last_words()
        self._release()
        self.last_exit = str(end)
        self.exits[self.last_exit.removeprefix("status ")] += 1
        if self.state is State.STOPPING:
            _log.info("%s %s", self.name, end.described)
            self._handle(Event.EXITED)
            return
        lived = self._around.loop.time() - self._spawned_at
        what = f"{self.name} {end.described} after {lived:.1f} s"
        if self.state is not State.LATE:
            self._reason = "exit" if end.signal is None else "signal"
            said, self._why = self._why, what
            if self._no_use and said:
                self._why = f"{self.name}: {said}"
                what = f"{what}: {said}"
        # A front is our own program: one that does not even start is a broken installation.
        broken = self.plan.role == "front" and not self.was_up
        if self._no_use or broken or end.status == contract.EXIT_FAILED:
            self._no_use = True
            self._doomed = self._around.above.hopeless(self, self._why)
        self._ended(what)

    def _ended(self, what: str) -> None:
        """There is no process any more: shall there be another?"""
        if self.state is State.STOPPING:
            self._handle(Event.EXITED)
            return
        now, of = self._around.loop.time(), self.plan.restart
        wait_s = self._restarts.exited(now, 0.0 if self._up_at is None else now - self._up_at)
        times = self._restarts.recent
        if wait_s is None and not self._no_use:
            self._why = f"{self._why}; it ended {times} times within {of.within:g} s"
        if wait_s is None or self._no_use or self._doomed:
            self._handle(Event.SPENT)
            return
        self._wait_s = wait_s
        self.restarts[self._reason] += 1
        _log.warning("%s; restart %d of %d in %.1f s", what, times, of.max_restarts, wait_s)
        self._handle(Event.EXITED)

    def _release(self) -> None:
        """Let go of what belonged to the process; its pipes end by themselves."""
        self._process = None
        self._captures = ()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None


_EXECUTE: Final[dict[Command, Callable[[Child], None]]] = {
    Command.SPAWN: Child._spawn,
    Command.TERMINATE: Child._terminate,
    Command.KILL: Child._kill,
    Command.ARM_START: lambda child: child._arm(child.plan.start_s),
    Command.ARM_KILL: lambda child: child._arm(child.stop_s),
    Command.ARM_BACKOFF: lambda child: child._arm(child._wait_s),
    Command.DISARM: Child._disarm,
    Command.JOIN: lambda child: child._around.above.joined(child),
    Command.LEAVE: lambda child: child._around.above.left(child),
    Command.GIVE_UP: Child._alarm,
}
