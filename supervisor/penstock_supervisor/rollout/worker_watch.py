"""The control loop over workers: who lives, who is ready, who has to be replaced.

There are three facts about a worker, each with one owner. *Alive*: its process answers
(`rotation/heartbeat`). *Ready*: it passes its health checks (the proxies, or the worker checks).
*In the rotation*: every proxy would pick it (`rotation/rotation`). Once a second this module puts
them together:

    not alive             held out of the rotation; after `liveness.timeout` replaced
    alive, not ready      out of the rotation; after `health.restart_after` replaced, unless the
                          fault is shared (`rotation/unready`)
    alive, ready          in the rotation; if it was to be replaced for one of those, no more
    nobody serves         one worker that waits for its next start, and can start, starts now

Who is replaced first, and how, `rolling_restart` decides. A supervisor that was stopped itself, or
was without CPU, judges nobody by that time.
"""

import logging
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Iterable, Mapping

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.liveness import ASK_EVERY_S, ASLEEP_S
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.config.model import Service
from penstock_supervisor.rollout.rolling_restart import RollingRestart
from penstock_supervisor.rotation.heartbeat import Heartbeat
from penstock_supervisor.rotation.rotation import Rotation
from penstock_supervisor.rotation.unready import Unready, WorkerFacts

_log = logging.getLogger("penstock.supervisor")


class WorkerWatch:
    """Runs from `start` until the run is over."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        services: Iterable[Service],
        slots: Slots,
        rotation: Rotation,
        rolling_restart: RollingRestart,
        is_over: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._services = [service for service in services if service.has_program]
        self._slots = slots
        self._rotation = rotation
        self._rolling_restart = rolling_restart
        self._is_over = is_over
        self._heartbeat = Heartbeat(
            loop,
            self._services,
            slots,
            rotation,
            lambda child, why: rolling_restart.request(child, "liveness", why),
            lambda child: rolling_restart.withdraw(child, "liveness"),
        )
        self._unready = Unready()
        self._timer: TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        if self._services:
            self._schedule()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def answered(self, child: Child) -> None:
        """A worker sent PONG."""
        self._heartbeat.answered(child)

    def checked(self, slot: Slot, by: int, answered: bool) -> None:
        """A health check was not answered at all, or is answered again."""
        self._heartbeat.checked(slot, by, answered=answered)

    def silent(self) -> Mapping[Slot, float]:
        """The workers that may not live, and for how long they have been silent, in seconds."""
        return self._heartbeat.silent()

    def _schedule(self) -> None:
        self._due = self._loop.time() + ASK_EVERY_S
        self._timer = self._loop.call_later(ASK_EVERY_S, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        was_asleep = now - self._due > ASLEEP_S
        if self._is_over():
            self._timer = None
            return
        self._schedule()
        self._heartbeat.beat(now, was_asleep=was_asleep)
        if was_asleep:
            self._unready.begin_again()
        for service in self._services:
            self._replace_unready(service, now)
            self._end_outage(service)
        self._rolling_restart.advance()

    def _replace_unready(self, service: Service, now: float) -> None:
        running = {
            slot: child
            for slot, child in self._slots.current.items()
            if slot[0] == service.name and child.state is State.UP
        }
        facts = [
            WorkerFacts(
                slot,
                child.pid,
                alive=self._heartbeat.is_alive(slot),
                ready=self._rotation.is_ready_anywhere(slot),
                serves=self._rotation.is_up(slot),
            )
            for slot, child in running.items()
        ]
        restart_after_s, panic = service.health.restart_after, service.ejection.panic
        if not restart_after_s:
            return
        overdue = dict(self._unready.overdue(facts, restart_after_s, panic, now))
        for slot, child in running.items():
            if slot not in overdue:
                self._rolling_restart.withdraw(child, "unhealthy")
        for slot, unready_s in overdue.items():
            why = f"{running[slot].name} has not been healthy for {unready_s:.0f} s"
            self._rolling_restart.request(running[slot], "unhealthy", why)

    def _end_outage(self, service: Service) -> None:
        """Start one worker now if nobody of the service serves or starts.

        Only one whose last process was ready: the program can start, so what ends it are requests.
        One client that goes on with them must not make all others wait for a pause to end. At one
        start a second this is no load.
        """
        workers = [child for child in self._slots.workers() if child.plan.service == service.name]
        if any(child.state in (State.STARTING, State.UP) for child in workers):
            return
        waiting = {
            child: wait_s
            for child in workers
            if child.history.last_was_ready and (wait_s := child.next_start_s) is not None
        }
        if waiting:
            first = min(waiting, key=waiting.__getitem__)
            _log.info("%s is started now: nobody of %s serves", first.name, service.name)
            first.start_early()
