"""One child: executes what its table says, and feeds it what happened.

Owns what belongs to one slot for longer than one process: the table's state, the timer, the
history of its exits, and the process that runs now (`running`), so that an end of any of them
is handled in one place. It does not know the other children, nor when the run starts or ends:
that is whoever it reports to, a `ChildObserver`.
"""

import logging
import signal
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import Any, Final, Protocol

from penstock_proxy.messages import DRAIN
from penstock_supervisor.children import diagnosis
from penstock_supervisor.children.events import EventName
from penstock_supervisor.children.lifecycle import Command, Life, LifecycleEvent, State
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.running import ProcessCallbacks, Running, Spawn
from penstock_supervisor.children.slot_history import SlotHistory
from penstock_supervisor.errors import StartError
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.process.spawn import Exit, SpawnError
from penstock_worker import contract

_log = logging.getLogger("penstock.supervisor")

_LOST_S: Final = 1.0
"""From the end of a child's channel to ours of it: it may be about to exit by itself."""
_MOST_WORDS: Final = 16 << 10
"""Of what a worker says of itself, in a log."""


class ChildObserver(Protocol):
    """Whom a child reports to. None of these may raise, but for `sockets_for`."""

    def sockets_for(self, child: "Child") -> tuple[int, ...]:
        """The listening sockets that its next process is given. StartError: there is none."""

    def spawned(self, child: "Child") -> None:
        """A new process is there, and its channel."""

    def exited(self, child: "Child") -> None:
        """Its process is gone; what belonged to it is about to be let go of."""

    def joined(self, child: "Child") -> None: ...
    def left(self, child: "Child") -> None: ...

    def heard(self, child: "Child", message: Any, handle: socket.socket | None) -> None:
        """A message that is not about its own life. Who takes the handle closes it."""

    def retiring(self, child: "Child", reason: str, why: str) -> None:
        """It works, but has to be replaced: it says so itself, or cannot be talked to."""

    def start_failed(self, child: "Child", why: str) -> bool:
        """It failed to start in a way that rarely mends itself. True: the run ends for it."""

    def gave_up(self, child: "Child", why: str) -> bool:
        """Nobody will start it again. True: the run ends for it, and says why itself."""

    def state_changed(self, child: "Child") -> None:
        """Its state may be another one."""

    def event(self, child: "Child", name: EventName, **details: Any) -> None:
        """Something happened that people may want to know: `events` has the names."""


class Child:
    """A slot and whatever process is in it at the moment."""

    _postponed = False
    """It was not even started, for want of something of ours."""

    def __init__(
        self,
        plan: ChildPlan,
        loop: AbstractEventLoop,
        spawn: Spawn,
        observer: ChildObserver,
        after: "Child | None" = None,
    ) -> None:
        """`after`: the one in this slot before, whose history goes on."""
        self.plan = plan
        self.name = plan.name
        self.history: SlotHistory = after.history if after else SlotHistory(plan)
        self.stats: dict[str, Any] = {}
        """Its last answer to STATS."""
        self.stop_s = plan.stop_s
        self._loop = loop
        self._spawn_process = spawn
        self._observer = observer
        self._life = Life(plan.name)
        self._since = loop.time()
        self._running: Running | None = None
        self._timer: TimerHandle | None = None
        self._wait_s = 0.0
        self._why = self._reason = ""
        """The reason for the exit that is being handled or is certain to come."""
        self._not_again = False
        """The child itself said that another start would not help."""
        self._ends_run = False
        """The run ends because of this child: no more starts, and one line for all of it."""

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def at_rest(self) -> bool:
        return self._life.at_rest

    @property
    def pid(self) -> int | None:
        return None if self._running is None else self._running.pid

    @property
    def has_channel(self) -> bool:
        return self._running is not None and self._running.has_channel

    @property
    def speaks(self) -> bool:
        """Its process has said something of ours, and can be asked."""
        return self._running is not None and self._running.speaks

    @property
    def links(self) -> tuple[HandoffLink, ...]:
        """To each proxy by its slot, for the process that runs now."""
        return () if self._running is None else self._running.links

    def wrong_address(self) -> str:
        """Where it listens instead of where it should, or nothing."""
        return diagnosis.wrong_address(self.plan, self.pid) if self.state is State.STARTING else ""

    def since_s(self) -> float:
        """Seconds in this state."""
        return self._loop.time() - self._since

    def start(self) -> None:
        self._handle(LifecycleEvent.START)

    def start_instead(self, reason: str) -> None:
        """Start in the place of one that still runs. Too often is a giveup, as with exits."""
        self.history.restarts[reason] += 1
        if self.history.restart_policy.exited(self._loop.time(), 0.0) is None:
            times, within = self.history.restart_policy.recent, self.plan.restart.within
            self._why = f"{self.name} had to be replaced {times} times within {within:g} s"
            self._handle(LifecycleEvent.SPENT)
        else:
            self._handle(LifecycleEvent.START)

    def stop(self, at_most_s: float | None = None) -> None:
        """Ask it to leave; it has its plan's time, or less."""
        if at_most_s is not None:
            self.stop_s = min(self.stop_s, at_most_s)
        self._handle(LifecycleEvent.STOP)

    def halt(self) -> None:
        """End it without asking."""
        self._handle(LifecycleEvent.HALT)

    def signal(self, number: signal.Signals) -> bool:
        """To all that it is; False if it is away. What follows is as if others had done it."""
        if self._running is None:
            return False
        self._running.signal(number)
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
        return self._running is not None and self._running.send(message, handle, on_sent)

    def take_links(self) -> tuple[HandoffLink, ...]:
        """Whoever calls this closes them."""
        return () if self._running is None else self._running.take_links()

    def _handle(self, event: LifecycleEvent) -> None:
        before = self.state
        for command in self._life.handle(event):
            _EXECUTE[command](self)
        if self.state is not before:
            self._since = self._loop.time()
            _log.debug("%s: %s", self.name, self.state.name.lower())
            if self.state is State.UP:
                self._went_up()
        self._observer.state_changed(self)

    def _went_up(self) -> None:
        assert self._running is not None
        self.history.was_up = True
        self._running.ready_at = self._since
        took = self._since - self._running.spawned_at
        _log.info("%s is ready after %.1f s (pid %s)", self.name, took, self.pid)
        self._observer.event(self, "listening", text=str(self.plan.address or ""))

    # Commands.

    def _spawn(self) -> None:
        self._why, self._reason, self._not_again = "", "", False
        self._postponed = False
        callbacks = ProcessCallbacks(
            self._on_exit, self._on_message, self._on_disconnect, self._on_ready
        )
        try:
            sockets = self._observer.sockets_for(self)
            self._running = self._spawn_process(self.plan, sockets, callbacks)
        except (SpawnError, StartError) as error:
            key = error.key if isinstance(error, SpawnError) else "listen"
            self._postponed = isinstance(error, SpawnError) and error.temporary
            origin = f"{self.plan.origin}.{key}" if self.plan.origin else self.name
            self._why, self._reason = f"{origin}: {error}", "spawn"
            # An exit like any other, but not in the middle of the commands of a start.
            self._loop.call_soon(self._failed_to_spawn)
            return
        _log.debug("%s: started as pid %d", self.name, self._running.pid)
        self._observer.event(self, "fork")
        self._observer.spawned(self)

    def _failed_to_spawn(self) -> None:
        self._observer.event(self, "error", text=self._why)
        self._ends_run = self._observer.start_failed(self, self._why)
        self._ended(f"{self.name} could not be started: {self._why}")

    def _terminate(self) -> None:
        if self.plan.role == "proxy" and self.has_channel:
            self.send({"cmd": DRAIN})
        else:
            self.signal(signal.SIGTERM)

    def _kill(self) -> None:
        self.signal(signal.SIGKILL)

    def _arm(self, delay_s: float) -> None:
        self._disarm()
        self._timer = self._loop.call_later(delay_s, self._deadline)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._observer.event(self, "giveup", text=self._why)
        if not self._observer.gave_up(self, self._why):
            _log.critical("GIVING UP on %s, nobody starts it again: %s", self.name, self._why)

    # What happens to it.

    def _on_ready(self) -> None:
        self._handle(LifecycleEvent.READY)

    def _on_message(self, message: Any, handle: socket.socket | None) -> None:
        command = message.get("cmd") if isinstance(message, dict) else None
        if command == contract.ONLINE:
            self._observer.event(self, "online")
        elif command == contract.READY:
            self._handle(LifecycleEvent.READY)
        elif command == contract.FAILED:
            self._not_again = True
            self._why = _cut(message.get("reason", "it does not say why"))
        elif command == contract.RETIRE:
            self._on_retire(_cut(message.get("reason", "")), _cut(message.get("traceback", "")))
        else:
            self._observer.heard(self, message, handle)
            return
        if handle is not None:
            handle.close()

    def _on_retire(self, reason: str, traceback: str) -> None:
        why = f"{self.name} retires: {reason or 'it gives no reason'}"
        _log.error("%s%s", why, f"\n{traceback.rstrip()}" if traceback else "")
        self._observer.event(self, "retire", text=reason)
        self._replace("retire", why)

    def _replace(self, reason: str, why: str) -> None:
        """This process has to go, and another has to come first if it still works."""
        if self.state is State.UP:
            self._observer.retiring(self, reason, why)
        elif self.state is State.STARTING and self._running is not None:
            self._why = why
            self._running.signal(signal.SIGKILL)

    def _on_disconnect(self, fault: str) -> None:
        """The channel ended. A proxy is deaf then, and so is a worker that runs our code."""
        running = self._running
        assert running is not None
        self._observer.event(self, "disconnect", text=fault)
        if fault:
            _log.error("%s: its channel was closed: %s", self.name, fault)
            self._observer.event(self, "error", text=fault)
        if self.state is State.STOPPING:
            return
        if self.plan.role == "proxy":
            self._loop.call_later(_LOST_S, running.signal, signal.SIGKILL)
        elif fault or self.plan.ours:
            wait_s = 0.0 if fault else _LOST_S
            why = f"{self.name} has no channel any more: {fault or 'it closed it'}"
            self._loop.call_later(wait_s, self._replace_deaf, running, why)

    def _replace_deaf(self, running: Running, why: str) -> None:
        if self._running is running:
            self._replace("channel", why)

    def _deadline(self) -> None:
        self._timer = None
        if self.state is State.STARTING:
            inodes = () if self._running is None else self._running.inodes
            late = diagnosis.missed_deadline(self.plan, self.pid, inodes)
            self._why, self._reason = late, "start_timeout"
            self._ends_run = self._observer.start_failed(self, self._why)
            if not self._ends_run:
                _log.error("%s", self._why)
        elif self.state is State.STOPPING:
            _log.warning("%s did not leave within %g s and is killed", self.name, self.stop_s)
        self._handle(LifecycleEvent.DEADLINE)

    def _on_exit(self, end: Exit) -> None:
        running = self._running
        assert running is not None
        running.hear_out()
        name = "" if end.signal is None else str(end)
        # While it still has its pid.
        self._observer.event(self, "exit", code=end.status, signal=name)
        self._observer.exited(self)
        running.close()
        self._running = None
        self.history.last_exit = str(end)
        self.history.exits[self.history.last_exit.removeprefix("status ")] += 1
        if self.state is State.STOPPING:
            _log.info("%s %s", self.name, end.described)
            self._handle(LifecycleEvent.EXITED)
            return
        now = self._loop.time()
        what = f"{self.name} {end.described} after {now - running.spawned_at:.1f} s"
        if self.state is not State.LATE:
            self._reason = "exit" if end.signal is None else "signal"
            said, self._why = self._why, what
            if self._not_again and said:
                self._why = f"{self.name}: {said}"
                what = f"{what}: {said}"
        # A proxy is our own program: one that does not even start is a broken installation.
        broken = self.plan.role == "proxy" and not self.history.was_up
        if self._not_again or broken or end.status == contract.EXIT_FAILED:
            self._not_again = True
            self._ends_run = self._observer.start_failed(self, self._why)
        self._ended(what, 0.0 if running.ready_at is None else now - running.ready_at)

    def _ended(self, what: str, up_for_s: float = 0.0) -> None:
        """There is no process any more: shall there be another?"""
        if self.state is State.STOPPING:
            self._handle(LifecycleEvent.EXITED)
            return
        if self._postponed and not self._ends_run:
            self._wait_s = self.history.restart_policy.postponed()
            _log.warning("%s; trying again in %.1f s", what, self._wait_s)
            self._handle(LifecycleEvent.EXITED)
            return
        of = self.plan.restart
        wait_s = self.history.restart_policy.exited(self._loop.time(), up_for_s)
        times = self.history.restart_policy.recent
        if wait_s is None and not self._not_again:
            self._why = f"{self._why}; it ended {times} times within {of.within:g} s"
        if wait_s is None or self._not_again or self._ends_run:
            self._handle(LifecycleEvent.SPENT)
            return
        self._wait_s = wait_s
        self.history.restarts[self._reason] += 1
        _log.warning("%s; restart %d of %d in %.1f s", what, times, of.max_restarts, wait_s)
        self._handle(LifecycleEvent.EXITED)


_EXECUTE: Final[dict[Command, Callable[[Child], None]]] = {
    Command.SPAWN: Child._spawn,
    Command.TERMINATE: Child._terminate,
    Command.KILL: Child._kill,
    Command.ARM_START: lambda child: child._arm(child.plan.start_s),
    Command.ARM_KILL: lambda child: child._arm(child.stop_s),
    Command.ARM_BACKOFF: lambda child: child._arm(child._wait_s),
    Command.DISARM: Child._disarm,
    Command.JOIN: lambda child: child._observer.joined(child),
    Command.LEAVE: lambda child: child._observer.left(child),
    Command.GIVE_UP: Child._give_up,
}


def _cut(words: object) -> str:
    return str(words)[:_MOST_WORDS]
