"""One child: executes the commands of its state table, and reports events to the table.

Owns what outlives a single process of a slot: the state, the timer, the history of exits, and
the process that runs now (`running`). So every end of a process is handled in one place. It
does not know other children, or when the run starts and ends. A `ChildObserver` does.
"""

import logging
import socket
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from penstock_supervisor.children import diagnosis
from penstock_supervisor.children.after_exit import AfterExit, Ended, decide, unnamed
from penstock_supervisor.children.deadline import Deadline
from penstock_supervisor.children.lifecycle import (
    Command,
    Lifecycle,
    LifecycleEvent,
    ProcessState,
    State,
    shown,
)
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.present_process import PresentProcess
from penstock_supervisor.children.reported_text import one_line, set_in
from penstock_supervisor.children.running import LeftBehind, ProcessCallbacks, Running, Spawn
from penstock_supervisor.children.slot_history import SlotHistory, StartRecord
from penstock_supervisor.children.stop_times import in_words, stop_message
from penstock_supervisor.errors import StartError
from penstock_supervisor.process.spawn import Exit, SpawnError
from penstock_supervisor.snapshot import Part
from penstock_worker import contract

if TYPE_CHECKING:
    from penstock_supervisor.children.observer import ChildObserver

_log = logging.getLogger("penstock.supervisor")
_STACKS_S: Final = 0.5
"""How long one that is not ready in time has to write where it stands, before it is killed."""
_CHANNEL_GRACE_S: Final = 1.0
"""How long a child whose channel has closed may take to exit by itself."""


class Child(PresentProcess):
    """A slot, and the process that runs in it at the moment."""

    postponed = False
    """The last start failed because the supervisor lacked descriptors or memory."""
    _next = AfterExit(LifecycleEvent.EXITED)
    """What follows from the last exit."""
    _stops_at_once = False
    _look: "Future[None] | None" = None
    """Somebody looks where its process is to be started; it has none as yet."""

    def __init__(
        self,
        plan: ChildPlan,
        loop: AbstractEventLoop,
        spawn: Spawn,
        observer: "ChildObserver[Child]",
        after: "Child | None" = None,
        number: int = 0,
    ) -> None:
        """`after`: the child that had this slot before. `number`: a worker's, as a member."""
        self.plan, self.name, self.number = plan, plan.name, number
        self.history: SlotHistory = after.history if after else SlotHistory()
        self.starts = StartRecord(plan)
        self.stats: dict[str, Any] = {}
        """Its last answer to STATS."""
        self.stop_s = plan.stop_s
        self._loop, self._spawn_process, self._observer = loop, spawn, observer
        self._lifecycle, self._state_since = Lifecycle(plan.name), loop.time()
        self.left_behind, self._deadline = LeftBehind(), Deadline(loop, self._on_deadline)
        self._kill_because = ""
        """Why the next KILL of the table is due."""
        self._why = self._reason = ""
        """Text and metric label for the exit that is handled now, or is about to come."""
        self._no_restart = False
        """Another start would hardly help, as the child itself said or its exit shows."""
        self._ends_run = False
        """The run ends because of this child, so it is not restarted."""

    @property
    def state(self) -> State:
        return self._lifecycle.state

    @property
    def shown_state(self) -> ProcessState:
        return shown(self.state, replaced=self.part == "draining")

    @property
    def part(self) -> Part:
        return self._observer.part_of(self)

    @property
    def at_rest(self) -> bool:
        return self._lifecycle.at_rest and not self.left_behind

    @property
    def next_start_s(self) -> float | None:
        """Seconds until it is started again by itself; None: that is not planned."""
        return self._deadline.remaining_s if self._lifecycle.waits_for_start else None

    @property
    def age_s(self) -> float | None:
        """Seconds since its process was started; None: there is none."""
        return None if self.running is None else self._loop.time() - self.running.spawned_at

    def seconds_in_state(self) -> float:
        return self._loop.time() - self._state_since

    def start(self) -> None:
        """Somebody asks for it, so its earlier exits count no more."""
        self.starts.restart_policy.forget()
        self._handle(LifecycleEvent.START)

    def start_early(self) -> None:
        """Do not wait any longer for the next start, if it waits for one."""
        if self._lifecycle.waits_for_start:
            self._deadline.disarm()
            self._on_deadline()

    def start_as_replacement(self, reason: str) -> None:
        """Start as the successor of a process that still runs: a restart, and no crash."""
        self.history.restarts[reason] += 1
        self._handle(LifecycleEvent.START)

    def stop(self, at_most_s: float | None = None) -> None:
        """Ask it to drain and exit. It has the time of its plan, or `at_most_s` if that is less."""
        if at_most_s is not None:
            self.stop_s = min(self.stop_s, at_most_s)
            self.left_behind.shorten(at_most_s)
        self._handle(LifecycleEvent.STOP)

    def stop_at_once(self, within_s: float) -> None:
        """As `stop`, but it waits for nothing that it serves; also if it is stopping already."""
        self.stop_s, self._stops_at_once = within_s, True
        self.left_behind.shorten(within_s, self.running)
        if self.state is State.STOPPING:
            # Not another TERM: it may have removed its handler by now, to exit.
            self.send(stop_message(self.plan, within_s, at_once=True))
            self._deadline.arm(within_s)
        self._handle(LifecycleEvent.STOP)

    def stop_now(self) -> None:
        """Kill it, and what earlier processes left behind."""
        self.left_behind.kill()
        self._kill_because = "nobody waits for it any more"
        self._handle(LifecycleEvent.STOP_NOW)

    def _handle(self, event: LifecycleEvent) -> None:
        before = self.state
        for command in self._lifecycle.handle(event):
            _EXECUTE[command](self)
        if self.state is not before:
            self._state_since = self._loop.time()
            _log.debug("%s: %s", self.name, self.shown_state.value.replace("_", " "))
            if self.state is State.UP:
                self._became_ready()
        if self._look is not None and self.state is not State.STARTING:
            self._look.cancel()
        self._observer.state_changed(self)

    def _became_ready(self) -> None:
        assert self.running is not None
        self.history.was_ready = self.starts.was_ready = self.starts.last_was_ready = True
        self.running.ready_at = self._state_since
        _log.info("%s is ready after %.1f s (pid %s)", self.name, self.age_s, self.pid)
        self._observer.event(self, "listening", text=str(self.plan.address or ""))

    # Commands.

    def _spawn(self) -> None:
        self._why, self._reason, self._no_restart, self.postponed = "", "", False, False
        self.starts.last_was_ready = False
        self._look = self._observer.look_for_directory(self)
        if self._look is None:
            self._spawn_process_now()
        else:
            self._look.add_done_callback(self._looked)

    def _looked(self, look: Future[None]) -> None:
        self._look = None
        if look.cancelled() or self.state is not State.STARTING:
            self._why = self._why or "it was told to stop before it was started"
            self._after_exit(f"{self.name} was not started: {self._why}")
        elif error := look.exception():
            self._spawn_failed(error)
        else:
            # Its own time begins now.
            self._deadline.arm(self.plan.start_s)
            self._spawn_process_now()
            self._observer.state_changed(self)

    def _spawn_process_now(self) -> None:
        callbacks = ProcessCallbacks(
            self._on_exit, self._on_message, self._on_disconnect,
            lambda: self._handle(LifecycleEvent.READY), lambda: self._observer.state_changed(self),
        )  # fmt: skip
        try:
            sockets = self._observer.sockets_for(self)
            self.running = self._spawn_process(self.plan, sockets, callbacks)
            self.starts.last_output = self.running.last_output
        except (SpawnError, StartError, OSError) as error:
            # Handled like an exit, but only after the remaining commands of this step.
            self._loop.call_soon(self._spawn_failed, error)
            return
        _log.debug("%s: started as pid %d", self.name, self.running.pid)
        self._observer.event(self, "fork")
        self._observer.spawned(self)

    def _spawn_failed(self, error: BaseException) -> None:
        self.postponed = isinstance(error, SpawnError) and error.temporary
        self._why, self._reason = diagnosis.not_started(self.plan, error), "spawn"
        self._observer.event(self, "error", text=self._why)
        self._ends_run = self._observer.start_failed(self, self._why)
        self._after_exit(f"{self.name} could not be started: {self._why}")

    def _terminate(self) -> None:
        message = stop_message(self.plan, self.stop_s, at_once=self._stops_at_once)
        if (not self.send(message) or self.plan.role != "proxy") and self.running is not None:
            self.running.stop(self.stop_s)

    def _proved(self) -> None:
        if (policy := self.starts.restart_policy).proved():
            _log.info("%s has left the crash loop: it is ready for %g s", self.name, policy.proof_s)

    def _give_up(self) -> None:
        after = self._next
        if self.part != "current":
            return
        if after.giveup:
            self._observer.event(self, "giveup", text=after.giveup)
        # A run that ends says why itself, once.
        if not self._ends_run and not self._observer.gave_up(self, after.giveup) and after.giveup:
            why = unnamed(after.giveup, self.name)
            _log.critical("%s is in a crash loop: %s; %s", self.name, why, after.prospect)

    # Events of its process and its timer.

    def _on_message(self, message: Any, handle: socket.socket | None) -> None:
        command = message.get("cmd") if isinstance(message, dict) else None
        if command == contract.ONLINE:
            self._observer.event(self, "online")
        elif command == contract.READY:
            self._handle(LifecycleEvent.READY)
        elif command == contract.FAILED:
            self._no_restart |= self.state is State.STARTING
            self._why = one_line(message.get("reason", "it does not say why"))
        elif command == contract.RETIRE:
            self._on_retire(one_line(message.get("reason", "")), message.get("traceback", ""))
        else:
            self._observer.message_received(self, message, handle)
            return
        if handle is not None:
            handle.close()

    def _on_retire(self, reason: str, traceback: object) -> None:
        if self.running is None or self.running.retires:
            return
        self.running.retires = True
        why = f"{self.name} retires: {reason or 'it gives no reason'}"
        _log.error("%s%s", why, set_in(traceback))
        self._observer.event(self, "retire", text=reason)
        self._replace("retire", why)

    def _replace(self, reason: str, why: str) -> None:
        """Replace the process: with a successor first if it is ready, else by a restart."""
        if self.state is State.UP:
            self._observer.replacement_needed(self, reason, why)
        elif self.state is State.STARTING and self.running is not None:
            self.running.kill(f"it {unnamed(why, self.name)}")

    def _on_disconnect(self, fault: str) -> None:
        """The channel was closed. A proxy, or a worker with our code, cannot be controlled now."""
        running = self.running
        assert running is not None
        self._observer.event(self, "disconnect", text=fault)
        if fault:
            _log.error("%s: its channel was closed: %s", self.name, fault)
            self._observer.event(self, "error", text=fault)
        if self.state is State.STOPPING:
            return
        if self.plan.role == "proxy":
            self._loop.call_later(_CHANNEL_GRACE_S, running.kill, "it has no channel any more")
        elif fault or self.plan.runs_our_code:
            wait_s = 0.0 if fault else _CHANNEL_GRACE_S
            why = f"{self.name} has no channel any more: {fault or 'it closed it'}"
            self._loop.call_later(wait_s, self._replace_unreachable, running, why)

    def _replace_unreachable(self, running: Running, why: str) -> None:
        if self.running is running:
            self._replace("channel", why)

    def _on_deadline(self) -> None:
        if self.state is State.STARTING:
            if self._shows_stacks():
                return
            inodes = () if self.running is None else self.running.inodes
            self._why = diagnosis.missed_deadline(self.plan, self.pid, inodes) + self.place
            self._reason = "start_timeout"
            self._kill_because = f"it was not ready within {self.plan.start_s:g} s"
            self._ends_run = self._observer.start_failed(self, self._why)
            if not self._ends_run:
                # Of a successor it is told by who wants it.
                level = logging.INFO if self.part == "successor" else logging.ERROR
                _log.log(level, "%s", self._why)
        elif self._lifecycle.waits_for_start and not self.postponed:
            self.history.restarts[self._reason] += 1
        elif self.state is State.STOPPING:
            late = f"did not leave within {in_words(self.stop_s)}"
            self._kill_because = f"it {late}"
            _log.warning("%s %s and is killed", self.name, late)
        self._handle(LifecycleEvent.DEADLINE)

    def _shows_stacks(self) -> bool:
        """Is it to write where it stands first? Each process once."""
        if self.running is None or self.running.has_shown_stacks or not self.dump_stacks():
            return False
        self._deadline.arm(_STACKS_S)
        return True

    def _on_exit(self, end: Exit) -> None:
        running = self.running
        assert running is not None
        running.read_pending()
        # Now, while it still has its pid.
        by, because = str(end) if end.signal else "", diagnosis.killed(end, running.killed_because)
        text = f"{end.described}{because}"
        self._observer.event(self, "exit", code=end.status, signal=by, text=text)
        self._count_exit(end)
        self._observer.exited(self)
        self.left_behind.close(running)
        self.running = None
        if self.state is State.STOPPING:
            _log.info("%s %s", self.name, text)
            self._note_end(f"{text} after it was told to stop")
            self._handle(LifecycleEvent.EXITED)
            return
        now = self._loop.time()
        summary = f"{self.name} {end.described} after {now - running.spawned_at:.1f} s{because}"
        hint, useless = diagnosis.exit_hint(self.plan, end.status, running.ready_at is not None)
        summary, self._no_restart = summary + hint, self._no_restart or useless
        if self.state is not State.LATE:
            self._reason = "exit" if end.signal is None else "signal"
            own_reason, self._why = self._why, summary
            if self._no_restart and own_reason:
                self._why = f"{self.name}: {own_reason}"
                summary = f"{summary}: {own_reason}"
        # A proxy is our own program: if it never starts, the installation is broken.
        broken = self.plan.role == "proxy" and not self.history.was_ready
        if self._no_restart or broken or end.status == contract.EXIT_FAILED:
            self._no_restart = True
            self._ends_run = self._observer.start_failed(self, self._why)
        self._after_exit(summary, 0.0 if running.ready_at is None else now - running.ready_at)

    def _count_exit(self, end: Exit) -> None:
        self.history.exits[str(end).removeprefix("status ")] += 1
        self.starts.last_exit = str(end)
        if self.part != "successor":
            # Of a newcomer that failed, the worker that stays would be shown with its exit.
            self.history.last_exit = str(end)

    def _note_end(self, reason: str) -> None:
        self.starts.why_ended = reason
        if self.part != "successor":
            self.history.last_exit_reason = reason

    def _after_exit(self, summary: str, ready_for_s: float = 0.0) -> None:
        """The process is gone, or was not started."""
        self._note_end(unnamed(self._why, self.name))
        if self.state is State.STOPPING:
            self._handle(LifecycleEvent.EXITED)
            return
        end = Ended(
            self.part, summary, self._why, ready_for_s, self.postponed, ends_run=self._ends_run
        )
        self._next = decide(self.plan, end, self.starts.restart_policy, self._loop.time())
        if self._next.line:
            _log.log(self._next.level, "%s", self._next.line)
        self._handle(self._next.event)


_EXECUTE: Final[dict[Command, Callable[[Child], object]]] = {
    Command.SPAWN: Child._spawn,
    Command.TERMINATE: Child._terminate,
    Command.KILL: lambda child: child.kill(child._kill_because),
    Command.ARM_START: lambda child: child._deadline.arm(child.plan.start_s),
    Command.ARM_KILL: lambda child: child._deadline.arm(child.stop_s),
    Command.ARM_BACKOFF: lambda child: child._deadline.arm(child._next.wait_s),
    Command.ARM_RETRY: lambda child: child._deadline.arm(child._next.wait_s),
    Command.ARM_PROOF: lambda child: child._deadline.arm(child.starts.restart_policy.proof_s),
    Command.PROVED: Child._proved,
    Command.DISARM: lambda child: child._deadline.disarm(),
    Command.JOIN: lambda child: child._observer.joined(child),
    Command.LEAVE: lambda child: child._observer.left(child),
    Command.GIVE_UP: Child._give_up,
}
