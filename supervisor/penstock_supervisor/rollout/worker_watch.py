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

Who is replaced first, and how, `replacements` decides. A supervisor that was stopped itself, or
was without CPU, judges nobody by that time.
"""

import logging
import math
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Mapping

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.liveness import ASK_EVERY_S, ASLEEP_S
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots, member_key, slot_of
from penstock_supervisor.config.model import Service
from penstock_supervisor.rollout.replacements import Replacements
from penstock_supervisor.rotation.heartbeat import Heartbeat
from penstock_supervisor.rotation.rotation import Rotation
from penstock_supervisor.rotation.unready import Unready, WorkerFacts

_log = logging.getLogger("penstock.supervisor")


class WorkerWatch:
    """Runs from `start` until the run is over."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        services: Mapping[str, Service],
        slots: Slots,
        rotation: Rotation,
        replacements: Replacements,
        is_over: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._services = services
        self._slots = slots
        self._rotation = rotation
        self._replacements = replacements
        self._is_over = is_over
        self._heartbeat = Heartbeat(
            loop,
            self._services,
            slots,
            rotation,
            lambda child, why: replacements.request(child, "liveness", why),
            lambda child: replacements.withdraw(child, "liveness"),
            replacements.life_confirmed,
        )
        replacements.lives_since = self._heartbeat.lives_since
        self._unready = Unready()
        self._timer: TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        self._schedule()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def answered(self, child: Child, number: object = None) -> None:
        """A worker sent PONG."""
        self._heartbeat.answered(child, number)

    def checked(self, child: Child, by: int, answered: bool) -> None:
        """A health check was not answered at all, or is answered again."""
        self._heartbeat.checked(child, by, answered=answered)

    def silent(self) -> Mapping[Slot, float]:
        """The current workers that may not live, and for how long they have been silent, in
        seconds."""
        return {
            slot_of(child): seconds
            for key, seconds in self._heartbeat.silent().items()
            if (child := self._slots.child_of(key)) and self._slots.is_current(child)
        }

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
        self._unready.keep({member_key(child) for child in self._slots.workers()})
        for service in tuple(self._services.values()):
            self._replace_unready(service, now)
            self._end_outage(service)
        self._replacements.advance()

    def _replace_unready(self, service: Service, now: float) -> None:
        running = {
            member_key(child): child
            for slot, child in self._slots.current.items()
            if slot[0] == service.name and child.state is State.UP
        }
        facts = [
            WorkerFacts(
                key,
                child.pid,
                alive=self._heartbeat.is_alive(child),
                # One that its successor's comparison keeps out begins anew when it is let go:
                # until proxies have said that it is back, nothing is known.
                ready=self._rotation.take_ready_anywhere(child)
                or self._rotation.is_compared(child),
                serves=self._rotation.is_up(child),
            )
            for key, child in running.items()
        ]
        # Where nobody is restarted, the time counts all the same: a reload may change that.
        restart_after_s = service.health.restart_after or math.inf
        panic = service.ejection.panic
        overdue = dict(self._unready.overdue(facts, restart_after_s, panic, now))
        for key, child in running.items():
            if key not in overdue:
                self._replacements.withdraw(child, "unhealthy")
        for key, unready_s in overdue.items():
            why = f"{running[key].name} has not been healthy for {unready_s:.0f} s"
            self._replacements.request(running[key], "unhealthy", why)

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
            if child.starts.last_was_ready and (wait_s := child.next_start_s) is not None
        }
        if waiting:
            first = min(waiting, key=waiting.__getitem__)
            _log.info("%s is started now: nobody of %s serves", first.name, service.name)
            first.start_early()
