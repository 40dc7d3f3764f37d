"""Asks all workers each second whether they live, and takes those that may not out of the rotation.

Owns the answers, and what follows at once: a worker that is silent for a few seconds is *held*. It
gets no new client until it answers again, whatever its health checks say. One that is silent for
`liveness.timeout` has its stacks dumped into the log, and is reported as hung: it is replaced
elsewhere (`rollout`). Must not know how a silence is judged (`children/liveness`).

How a worker is asked: an `app` by PING on its channel, which its event loop answers. A `command` is
asked nothing of its own. Its health check is one question, as long as nobody answers at all: an
error is an answer. That check takes it out of the rotation by itself. The other question is
whether its process is stopped, because a connect to a stopped process succeeds.

The worker is asked from the moment that it is ready until it is told to stop. Both times before
and after have deadlines of their own.
"""

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.liveness import NEVER, Life, Liveness
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.config.model import Service
from penstock_supervisor.kernel.process_state import is_stopped
from penstock_supervisor.rotation.rotation import Rotation
from penstock_worker import contract

OnHung = Callable[[Child, str], None]
"""Called with the reason, in words; again each second for as long as it is hung."""

_log = logging.getLogger("penstock.supervisor")


@dataclass(slots=True)
class _Watched:
    """One process, and what it was asked."""

    pid: int
    asked: Liveness
    """By us."""
    checks: Liveness
    """By health checks, of a `command`."""
    unanswered_by: set[int]
    """Proxies whose last check got no answer."""
    is_held: bool = False
    is_hung: bool = False
    held_at: float = 0.0

    def silent_s(self, now: float) -> float:
        """How long nobody has heard of it, if that has been noticed."""
        silences = (self.asked.silent_s(now) if self.is_held or self.is_hung else 0.0,
                    self.checks.silent_s(now) if self.is_hung else 0.0)  # fmt: skip
        return max(silences)


class Heartbeat:
    def __init__(
        self,
        loop: AbstractEventLoop,
        services: Iterable[Service],
        slots: Slots,
        rotation: Rotation,
        on_hung: OnHung,
        on_alive: Callable[[Child], None],
    ) -> None:
        """`on_alive(child)` is called when a worker that was held or hung answers again."""
        self._loop = loop
        self._services = {
            service.name: service
            for service in services
            if service.has_program and service.liveness.timeout
        }
        """Those whose workers are asked."""
        self._slots = slots
        self._rotation = rotation
        self._on_hung = on_hung
        self._on_alive = on_alive
        self._ping_numbers = count(1)
        self._watched: dict[Slot, _Watched] = {}

    def beat(self, now: float, *, was_asleep: bool) -> None:
        """Judge all workers, and ask them again. `was_asleep`: the supervisor did not run."""
        current = {
            slot: child
            for slot, child in self._slots.current.items()
            if child.state is State.UP and child.pid is not None and slot[0] in self._services
        }
        for slot in self._watched.keys() - current.keys():
            del self._watched[slot]
        for slot, child in current.items():
            watched = self._watched_process(slot, child)
            if was_asleep:
                watched.asked.begin_again(now)
                watched.checks.begin_again(now)
            if child.plan.runs_our_code:
                # First, because a question that was not answered yet is a silence, too.
                self._judge(child, watched, now)
                self._ping(child, watched, now)
            else:
                self._look_at(watched, now)
                self._judge(child, watched, now)

    def answered(self, child: Child) -> None:
        """It sent PONG."""
        if (watched := self._of_process(child)) is not None:
            watched.asked.answered()
            self._judge(child, watched, self._loop.time())

    def checked(self, slot: Slot, by: int, *, answered: bool) -> None:
        """The health check of proxy `by`, or of the worker checks, got no answer, or one again."""
        child = self._slots.current.get(slot)
        if child is None or child.plan.runs_our_code:
            return
        if (watched := self._of_process(child)) is None:
            return
        if answered:
            # It lives if anybody hears of it.
            watched.unanswered_by.discard(by)
            watched.checks.answered()
        else:
            watched.unanswered_by.add(by)
            watched.checks.asked(self._loop.time())

    def is_alive(self, slot: Slot) -> bool:
        """False: it is held, or hung."""
        watched = self._watched.get(slot)
        return watched is None or not (watched.is_held or watched.is_hung)

    def silent(self) -> Mapping[Slot, float]:
        """How long each worker that may not live has been silent, in seconds."""
        now = self._loop.time()
        return {
            slot: watched.silent_s(now)
            for slot, watched in self._watched.items()
            if watched.is_held or watched.is_hung
        }

    def _watched_process(self, slot: Slot, child: Child) -> _Watched:
        watched = self._watched.get(slot)
        if watched is None or watched.pid != child.pid:
            assert child.pid is not None
            service = self._services[slot[0]]
            hung_s = service.liveness.timeout
            watched = self._watched[slot] = _Watched(
                child.pid,
                Liveness(hung_s=hung_s),
                # Its own health check takes it out of the rotation.
                Liveness(hung_s=hung_s, doubt_s=NEVER, least=service.health.fall),
                set(),
            )
        return watched

    def _of_process(self, child: Child) -> _Watched | None:
        watched = self._watched.get(slot_of(child))
        is_current = self._slots.is_current(child)
        return watched if watched is not None and is_current and watched.pid == child.pid else None

    def _ping(self, child: Child, watched: _Watched, now: float) -> None:
        # One without a channel is replaced for that.
        if child.send({"cmd": contract.PING, "seq": -next(self._ping_numbers)}):
            watched.asked.asked(now)

    def _look_at(self, watched: _Watched, now: float) -> None:
        if is_stopped(watched.pid):
            watched.asked.asked(now)
        else:
            watched.asked.answered()

    def _judge(self, child: Child, watched: _Watched, now: float) -> None:
        life = watched.asked.judge(now)
        if not watched.unanswered_by.issuperset(self._rotation.deciding(slot_of(child))):
            # A proxy says nothing as long as its checks are answered.
            watched.checks.answered()
        by_checks = watched.checks.judge(now)
        if life is Life.DOUBTED and not watched.is_held:
            self._hold(child, watched, now)
        if Life.HUNG in (life, by_checks):
            self._hung(child, watched, now, stopped_answering=life is Life.HUNG)
        elif life is Life.ALIVE and (watched.is_held or watched.is_hung):
            self._alive(child, watched, now)

    def _hold(self, child: Child, watched: _Watched, now: float) -> None:
        """The first doubt."""
        silent_s = watched.asked.silent_s(now)
        watched.is_held, watched.held_at = True, now - silent_s
        if child.plan.runs_our_code:
            what, text = "does not answer", "%s has not answered for %.0f s"
        else:
            what, text = "is stopped", "%s has been stopped for %.0f s, as by SIGSTOP"
        _log.warning(f"{text}: it gets nothing new meanwhile", child.name, silent_s)
        self._rotation.hold(child, what)

    def _hung(
        self, child: Child, watched: _Watched, now: float, *, stopped_answering: bool
    ) -> None:
        if stopped_answering and not watched.is_held:
            self._hold(child, watched, now)
        silent = watched.asked if stopped_answering else watched.checks
        why = f"{child.name} has not answered for {silent.silent_s(now):.0f} s"
        if not watched.is_hung:
            watched.is_hung = True
            if not watched.is_held:
                watched.held_at = now - silent.silent_s(now)
            if is_stopped(watched.pid):
                # It could not write its stacks.
                _log.error("%s; it is stopped, as by SIGSTOP", why)
            else:
                _log.error("%s%s", why, "; its stacks follow" if child.plan.runs_our_code else "")
                child.dump_stacks()
        self._on_hung(child, why)

    def _alive(self, child: Child, watched: _Watched, now: float) -> None:
        _log.info("%s answers again after %.0f s", child.name, now - watched.held_at)
        if watched.is_held:
            self._rotation.release(child)
        watched.is_held = watched.is_hung = False
        self._on_alive(child)
