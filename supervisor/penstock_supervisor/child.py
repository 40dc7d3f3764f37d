"""One child: executes what its table says, and feeds it what happened.

Owns everything that belongs to one slot (process, pipes, channel, timer, readiness task,
the history of its exits), so that an end of any of them is handled in one place. It does
not know the other children, nor when the run starts or ends: that is `runner`, which it
tells through `Above`.
"""

import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.orders import DRAIN
from penstock_supervisor import diagnosis, readiness
from penstock_supervisor.above import Surroundings
from penstock_supervisor.errors import StartError
from penstock_supervisor.history import History
from penstock_supervisor.lifecycle import Command, Event, Life, State
from penstock_supervisor.links import Link
from penstock_supervisor.processes import Exit, Process, SpawnError
from penstock_supervisor.schemes import ChildPlan
from penstock_supervisor.spawning import spawn
from penstock_worker import contract
from penstock_worker.channel import MAX_HANDLES, Channel

if TYPE_CHECKING:
    from asyncio import Task, TimerHandle

    from penstock_supervisor.output import Capture

_log = logging.getLogger(__name__)

_LOST_S: Final = 1.0
"""From the end of a child's channel to ours of it: it may be about to exit by itself."""
_MOST_LINK_ENDS: Final = 1 << 13
_MOST_WORDS: Final = 16 << 10
"""Of what a worker says of itself, in a log."""


class Child:
    """A slot and whatever process is in it at the moment."""

    _postponed = False
    """It was not even started, for want of something of ours."""

    def __init__(
        self, plan: ChildPlan, surroundings: Surroundings, after: "Child | None" = None
    ) -> None:
        """`after`: the one in this slot before, whose history goes on."""
        self.plan = plan
        self.name = plan.name
        self.history: History = after.history if after else History(plan)
        self.stats: dict[str, Any] = {}
        """Its last answer to STATS."""
        self.stop_s = plan.stop_s
        self.links: tuple[Link, ...] = ()
        """To each front by its slot, for the process that runs now."""
        self.speaks = False
        """It has said something of ours, and can be asked."""
        self._around = surroundings
        self._life = Life(plan.name)
        self._since = surroundings.loop.time()
        self._spawned_at = self._since
        self._up_at: float | None = None
        self._process: Process | None = None
        self._passed: tuple[int, ...] = ()
        """Inodes of the listening sockets that it was given. Not descriptors: the run may
        close those, and something else gets their numbers."""
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
        return diagnosis.misled(self.plan, self.pid) if self.state is State.STARTING else ""

    def since_s(self) -> float:
        """Seconds in this state."""
        return self._around.loop.time() - self._since

    def start(self) -> None:
        self._handle(Event.START)

    def start_instead(self, reason: str) -> None:
        """Start in the place of one that still runs. Too often is a giveup, as with exits."""
        self.history.restarts[reason] += 1
        if self.history.intensity.exited(self._around.loop.time(), 0.0) is None:
            times, within = self.history.intensity.recent, self.plan.restart.within
            self._why = f"{self.name} had to be replaced {times} times within {within:g} s"
            self._handle(Event.SPENT)
        else:
            self._handle(Event.START)

    def stop(self, at_most_s: float | None = None) -> None:
        """Ask it to leave; it has its plan's time, or less."""
        if at_most_s is not None:
            self.stop_s = min(self.stop_s, at_most_s)
        self._handle(Event.STOP)

    def halt(self) -> None:
        """End it without asking."""
        self._handle(Event.HALT)

    def signal(self, number: signal.Signals) -> bool:
        """To all that it is; False if it is away. What follows is as if others had done it."""
        if self._process is None:
            return False
        self._process.signal(number)
        return True

    def send(
        self,
        message: Any,
        handle: socket.socket | None = None,
        on_sent: Callable[[bool], None] | None = None,
    ) -> bool:
        """False if there is nobody to take it. ValueError, TypeError: it cannot be sent.

        `on_sent` hears whether the handle was taken.
        """
        return self._channel is not None and self._channel.send(message, handle, on_sent)

    def part_with_links(self) -> tuple[Link, ...]:
        """Whoever calls this closes them."""
        links, self.links = self.links, ()
        return links

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
        self.history.was_up = True
        self._up_at = self._since
        took = self._since - self._spawned_at
        _log.info("%s is ready after %.1f s (pid %s)", self.name, took, self.pid)
        self._around.above.event(self, "listening", text=str(self.plan.address or ""))

    # Commands.

    def _spawn(self) -> None:
        loop = self._around.loop
        self._spawned_at, self._up_at = loop.time(), None
        self._why, self._reason, self._no_use = "", "", False
        self._postponed = False
        self.speaks = False
        try:
            passed = self._around.above.passed(self)
            self._passed = tuple(os.fstat(fd).st_ino for fd in passed)
            self._process, mine, self.links = spawn(self.plan, passed, self._around, self._exited)
        except (SpawnError, StartError) as error:
            key = error.key if isinstance(error, SpawnError) else "listen"
            self._postponed = isinstance(error, SpawnError) and error.passing
            origin = f"{self.plan.origin}.{key}" if self.plan.origin else self.name
            self._why, self._reason = f"{origin}: {error}", "spawn"
            # An exit like any other, but not in the middle of the commands of a start.
            loop.call_soon(self._failed_to_spawn)
            return
        self._captures = self._around.output.capture(
            self.name, self._process.stdout, self._process.stderr
        )
        # A front that starts is sent all links at once, and is our own program.
        most = _MOST_LINK_ENDS if self.plan.role == "front" else MAX_HANDLES
        self._channel = Channel(loop, mine, self._heard, self._lost, most_handles=most)
        if not self.plan.ours:
            self._asking = self._around.tasks.create_task(self._ask())
        _log.debug("%s: started as pid %d", self.name, self._process.pid)
        self._around.above.event(self, "fork")
        self._around.above.spawned(self)

    def _failed_to_spawn(self) -> None:
        self._around.above.event(self, "error", text=self._why)
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
        self._around.above.event(self, "giveup", text=self._why)
        if not self._around.above.gave_up(self, self._why):
            _log.critical("GIVING UP on %s, nobody starts it again: %s", self.name, self._why)

    # What happens to it.

    async def _ask(self) -> None:
        plan, pid = self.plan, self.pid
        if plan.address is not None:
            await readiness.until_it_answers(plan.address)
        elif self._passed and pid is not None:
            await readiness.until_it_takes(pid, self._passed[0])
        self._handle(Event.READY)

    def _heard(self, message: Any, handle: socket.socket | None) -> None:
        command = message.get("cmd") if isinstance(message, dict) else None
        self.speaks |= isinstance(command, str) and command.startswith(contract.INTERNAL)
        if command == contract.ONLINE:
            self._around.above.event(self, "online")
        elif command == contract.READY:
            self._handle(Event.READY)
        elif command == contract.FAILED:
            self._no_use = True
            self._why = _bounded(message.get("reason", "it does not say why"))
        elif command == contract.RETIRE:
            self._retires(
                _bounded(message.get("reason", "")), _bounded(message.get("traceback", ""))
            )
        else:
            self._around.above.heard(self, message, handle)
            return
        if handle is not None:
            handle.close()

    def _retires(self, reason: str, traceback: str) -> None:
        why = f"{self.name} retires: {reason or 'it gives no reason'}"
        _log.error("%s%s", why, f"\n{traceback.rstrip()}" if traceback else "")
        self._around.above.event(self, "retire", text=reason)
        self._replace("retire", why)

    def _replace(self, reason: str, why: str) -> None:
        """This process has to go, and another has to come first if it still works."""
        if self.state is State.UP:
            self._around.above.retiring(self, reason, why)
        elif self.state is State.STARTING and self._process is not None:
            self._why = why
            self._process.signal(signal.SIGKILL)

    def _lost(self) -> None:
        """The channel ended. A front is deaf then, and so is a worker that runs our code."""
        assert self._channel is not None
        fault, process = self._channel.fault, self._process
        self._around.above.event(self, "disconnect", text=fault)
        if fault:
            _log.error("%s: its channel was closed: %s", self.name, fault)
            self._around.above.event(self, "error", text=fault)
        if self.state is State.STOPPING or process is None:
            return
        if self.plan.role == "front":
            self._around.loop.call_later(_LOST_S, process.signal, signal.SIGKILL)
        elif fault or self.plan.ours:
            wait_s = 0.0 if fault else _LOST_S
            why = f"{self.name} has no channel any more: {fault or 'it closed it'}"
            self._around.loop.call_later(wait_s, self._mute, process, why)

    def _mute(self, process: Process, why: str) -> None:
        if self._process is process:
            self._replace("channel", why)

    def _deadline(self) -> None:
        self._timer = None
        if self.state is State.STARTING:
            late = diagnosis.late(self.plan, self.pid, self._passed)
            self._why, self._reason = late, "start_timeout"
            self._doomed = self._around.above.hopeless(self, self._why)
            if not self._doomed:
                _log.error("%s", self._why)
        elif self.state is State.STOPPING:
            _log.warning("%s did not leave within %g s and is killed", self.name, self.stop_s)
        self._handle(Event.DEADLINE)

    def _exited(self, end: Exit) -> None:
        for capture in self._captures:
            capture.read_last_words()
        if self._channel is not None:
            self._channel.hear_out()
        name = "" if end.signal is None else str(end)
        # While it still has its pid.
        self._around.above.event(self, "exit", code=end.status, signal=name)
        self._release()
        self.history.last_exit = str(end)
        self.history.exits[self.history.last_exit.removeprefix("status ")] += 1
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
        broken = self.plan.role == "front" and not self.history.was_up
        if self._no_use or broken or end.status == contract.EXIT_FAILED:
            self._no_use = True
            self._doomed = self._around.above.hopeless(self, self._why)
        self._ended(what)

    def _ended(self, what: str) -> None:
        """There is no process any more: shall there be another?"""
        if self.state is State.STOPPING:
            self._handle(Event.EXITED)
            return
        if self._postponed and not self._doomed:
            self._wait_s = self.history.intensity.postponed()
            _log.warning("%s; trying again in %.1f s", what, self._wait_s)
            self._handle(Event.EXITED)
            return
        now, of = self._around.loop.time(), self.plan.restart
        wait_s = self.history.intensity.exited(
            now, 0.0 if self._up_at is None else now - self._up_at
        )
        times = self.history.intensity.recent
        if wait_s is None and not self._no_use:
            self._why = f"{self._why}; it ended {times} times within {of.within:g} s"
        if wait_s is None or self._no_use or self._doomed:
            self._handle(Event.SPENT)
            return
        self._wait_s = wait_s
        self.history.restarts[self._reason] += 1
        _log.warning("%s; restart %d of %d in %.1f s", what, times, of.max_restarts, wait_s)
        self._handle(Event.EXITED)

    def _release(self) -> None:
        """Let go of what belonged to the process; its pipes end by themselves."""
        self._around.above.gone(self)
        for link in self.links:
            link.close()
        self.links = ()
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


def _bounded(words: object) -> str:
    return str(words)[:_MOST_WORDS]
