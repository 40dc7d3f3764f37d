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

A silence is noticed only after a while. Whoever has to know that a worker lives now has it asked
once more (`lives_since`).
"""

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.liveness import NEVER, Life, Liveness
from penstock_supervisor.children.plan import MemberKey
from penstock_supervisor.children.slots import Slots, member_key
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
    question: int | None = None
    """The number of the PING whose answer somebody waits for."""
    question_at: float = NEVER
    lived_at: float = -NEVER
    """When the last such question was asked that is answered."""
    is_awaited: bool = False
    """It is stopped, and somebody waits for it to go on."""

    def silent_s(self, now: float) -> float:
        """How long nobody has heard of it, if that has been noticed."""
        silences = (self.asked.silent_s(now) if self.is_held or self.is_hung else 0.0,
                    self.checks.silent_s(now) if self.is_hung else 0.0)  # fmt: skip
        return max(silences)


class Heartbeat:
    def __init__(
        self,
        loop: AbstractEventLoop,
        services: Mapping[str, Service],
        slots: Slots,
        rotation: Rotation,
        on_hung: OnHung,
        on_alive: Callable[[Child], None],
        on_living: Callable[[], None] = lambda: None,
    ) -> None:
        """`services`: those of the moment, by name. `on_alive(child)` is called when a worker that
        was held or hung answers again, and `on_living` when `lives_since` may have become true."""
        self._loop = loop
        self._services = services
        self._slots = slots
        self._rotation = rotation
        self._on_hung = on_hung
        self._on_alive = on_alive
        self._on_living = on_living
        self._ping_numbers = count(1)
        self._watched: dict[MemberKey, _Watched] = {}

    def beat(self, now: float, *, was_asleep: bool) -> None:
        """Judge all workers, and ask them again. `was_asleep`: the supervisor did not run."""
        asked = {
            member_key(child): child for child in self._slots.workers() if self._is_asked(child)
        }
        for key in self._watched.keys() - asked.keys():
            self._forget(key)
        for key, child in asked.items():
            watched = self._watched_process(key, child)
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

    def answered(self, child: Child, number: object = None) -> None:
        """It sent PONG, with this number."""
        if (watched := self._of_process(child)) is not None:
            watched.asked.answered()
            self._judge(child, watched, self._loop.time())
            if watched.question is not None and watched.question == number:
                watched.question, watched.lived_at = None, watched.question_at
                self._on_living()

    def checked(self, child: Child, by: int, *, answered: bool) -> None:
        """The health check of proxy `by`, or of the worker checks, got no answer, or one again."""
        if child.plan.runs_our_code:
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

    def lives_since(self, child: Child, at: float) -> bool:
        """Has it answered a question that was asked at `at` or later? If none was asked yet, it is
        now. One that is asked nothing, because nobody wants to know, counts as living."""
        if not self._is_asked(child):
            return True
        now, watched = self._loop.time(), self._watched_process(member_key(child), child)
        if watched.lived_at >= at:
            return True
        if not child.plan.runs_our_code:
            watched.is_awaited = is_stopped(watched.pid)
            if not watched.is_awaited:
                watched.lived_at = now
        elif watched.question is None or watched.question_at < at:
            watched.question, watched.question_at = self._ping(child, watched, now), now
        return watched.lived_at >= at

    def is_alive(self, child: Child) -> bool:
        """False: it is held, or hung."""
        watched = self._watched.get(member_key(child))
        return watched is None or not (watched.is_held or watched.is_hung)

    def silent(self) -> Mapping[MemberKey, float]:
        """How long each worker that may not live has been silent, in seconds."""
        now = self._loop.time()
        return {
            key: watched.silent_s(now)
            for key, watched in self._watched.items()
            if watched.is_held or watched.is_hung
        }

    def _forget(self, key: MemberKey) -> None:
        watched, child = self._watched.pop(key), self._slots.child_of(key)
        is_same = child is not None and child.pid == watched.pid and child.state is State.UP
        if child is not None and is_same and watched.is_held and not self._slots.is_draining(child):
            # Nobody asks any more, so nobody will hear that it answers.
            self._rotation.release(child)

    def _is_asked(self, child: Child) -> bool:
        is_ready = child.state is State.UP and child.pid is not None
        service = self._services.get(child.plan.service)
        is_watched = service is not None and service.liveness.timeout > 0
        return is_ready and is_watched and not self._slots.is_draining(child)

    def _watched_process(self, key: MemberKey, child: Child) -> _Watched:
        watched = self._watched.get(key)
        if watched is None or watched.pid != child.pid:
            assert child.pid is not None
            watched = self._watched[key] = _Watched(
                child.pid,
                Liveness(hung_s=NEVER),
                # Its own health check takes it out of the rotation.
                Liveness(hung_s=NEVER, doubt_s=NEVER),
                set(),
            )
        # Each time, because a reload may have changed it.
        service = self._services[key[0]]
        watched.asked.hung_s = watched.checks.hung_s = service.liveness.timeout
        watched.checks.least = service.health.fall
        return watched

    def _of_process(self, child: Child) -> _Watched | None:
        watched = self._watched.get(member_key(child))
        if watched is None or watched.pid != child.pid or self._slots.is_draining(child):
            return None
        return watched

    def _ping(self, child: Child, watched: _Watched, now: float) -> int | None:
        """Returns the number of the question; None: it cannot be asked."""
        number = -next(self._ping_numbers)
        # One without a channel is replaced for that.
        if not child.send({"cmd": contract.PING, "seq": number}):
            return None
        watched.asked.asked(now)
        return number

    def _look_at(self, watched: _Watched, now: float) -> None:
        if is_stopped(watched.pid):
            watched.asked.asked(now)
            return
        watched.asked.answered()
        if watched.is_awaited:
            watched.is_awaited = False
            self._on_living()

    def _judge(self, child: Child, watched: _Watched, now: float) -> None:
        life = watched.asked.judge(now)
        if not watched.unanswered_by.issuperset(self._rotation.deciding(child.plan.service)):
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
                _log.error("%s%s", why, "; its stacks follow" if child.dump_stacks() else "")
        self._on_hung(child, why)

    def _alive(self, child: Child, watched: _Watched, now: float) -> None:
        _log.info("%s answers again after %.0f s", child.name, now - watched.held_at)
        if watched.is_held:
            self._rotation.release(child)
        watched.is_held = watched.is_hung = False
        self._on_alive(child)
