"""The workers that the roll-out under way has replaced: while one does not serve, no other begins.

Owns these slots, and what each of them shows. It looks at a worker when something happens to it,
and when the time of one that is away is over; never at all of them, but once at the end. Then each
is asked whether it lives, because a silence is noticed only after a while.

`serving` says what follows from what it sees. Whoever replaces workers asks `all_serve` before the
next one, and whoever drives the roll-out looks at `failure`. A slot that is to be replaced again
anyway is not judged: what runs there is not what was asked for last.
"""

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Collection
from typing import NamedTuple

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.falls import Falls
from penstock_supervisor.rollout.serving import ReplacedWorker, Serving, Sign
from penstock_supervisor.rotation.rotation import Rotation

_IN_CRASH_LOOP = (State.CRASH_LOOP, State.GIVEN_UP)

_log = logging.getLogger("penstock.supervisor")


class Failure(NamedTuple):
    reason: str
    """In one line."""
    detail: str
    """The last output of its process."""


class ReplacedWorkers:
    """Nothing is looked at but between `begin` and `end`. `wake` is called when the next one may
    begin, and `lives_since(child, at)` is as `Heartbeat.lives_since`."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        slots: Slots,
        rotation: Rotation,
        falls: Falls,
        condition: Condition,
        wake: Callable[[], None],
        lives_since: Callable[[Child, float], bool],
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._rotation = rotation
        self._falls = falls
        self._condition = condition
        self._wake = wake
        self._lives_since = lives_since
        self._to_do: Callable[[], Collection[Slot]] | None = None
        self._workers: dict[Slot, ReplacedWorker] = {}
        self._fallen: dict[Slot, str] = {}
        """Those that do not serve, and the last output of the process that has ended there."""
        self._unconfirmed: set[Slot] = set()
        self._asked_at = 0.0

    def begin(self, to_do: Callable[[], Collection[Slot]]) -> None:
        """A roll-out begins. `to_do()`: the slots that are to be replaced, for the first time or
        again."""
        self.end()
        self._to_do = to_do

    def end(self) -> None:
        """It has ended, or gives up: whatever becomes of them holds nobody back."""
        self._to_do = None
        self._workers.clear()
        self._fallen.clear()
        self._unconfirmed.clear()
        self._falls.forget()

    def numbers(self, service: str) -> set[int]:
        """The members of this service that are among them."""
        slots = (slot for slot in self._workers if slot[0] == service)
        return {self._slots.current[slot].number for slot in slots if slot in self._slots.current}

    def add(self, child: Child, up_at: float) -> None:
        """This worker has taken its slot. `up_at`: since when it is in every rotation."""
        if self._to_do is not None:
            self._fallen.pop(slot_of(child), None)
            self._workers[slot_of(child)] = ReplacedWorker(up_at, child.plan.start_s)
            self._look(slot_of(child))

    def forget(self, slot: Slot) -> None:
        """It is asked for again. Until somebody takes it over, what becomes of the one that is
        there fails nothing: it may be what was wrong before."""
        self._workers.pop(slot, None)
        self._fallen.pop(slot, None)
        self._unconfirmed.discard(slot)

    def changed(self, child: Child) -> None:
        """Something has happened to this worker."""
        if self._workers and slot_of(child) in self._workers and self._slots.is_current(child):
            self._look(slot_of(child))

    def look_again(self) -> None:
        """Time has passed."""
        for slot in tuple(self._fallen):
            self._look(slot)

    def all_serve(self) -> bool:
        """May the next one begin?"""
        return not self._judged()

    def failure(self) -> Failure | None:
        """One that will not serve any more, as far as can be said."""
        for slot in self._judged():
            if (worker := self._workers[slot]).state is Serving.LOST:
                return Failure(_sentence(slot, worker.reason), self._fallen[slot])
        for slot in self._unconfirmed - self._fallen.keys():
            worker = self._workers[slot]
            if self._loop.time() >= worker.answers_by(self._asked_at):
                why = f"nobody has heard of it for {worker.start_s:g} s"
                return Failure(_sentence(slot, why), "")
        return None

    def ask(self) -> None:
        """From now on each of them has to answer once more before `is_confirmed`."""
        self._asked_at = self._loop.time()
        self._unconfirmed = set(self._workers)
        for at in {worker.answers_by(self._asked_at) for worker in self._workers.values()}:
            self._loop.call_at(at, self._condition.notify)

    def end_question(self) -> None:
        """Nobody waits for answers any more: who has not answered yet has failed nothing."""
        self._unconfirmed.clear()

    def is_confirmed(self) -> bool:
        """Does each of them serve, and has it answered since `ask`?"""
        self._unconfirmed -= {slot for slot in self._unconfirmed if self._has_answered(slot)}
        # One that has answered may have fallen since.
        return not self._judged() and self._unconfirmed <= self._again()

    def _has_answered(self, slot: Slot) -> bool:
        child = self._slots.current.get(slot)
        if child is None:
            return True
        return self._falls.serves(child) and self._lives_since(child, self._asked_at)

    def _judged(self) -> Collection[Slot]:
        """Those that do not serve, and are not replaced again anyway."""
        return self._fallen.keys() - self._again() if self._fallen else ()

    def _again(self) -> set[Slot]:
        return set() if self._to_do is None else set(self._to_do())

    def _look(self, slot: Slot) -> None:
        worker, child = self._workers[slot], self._slots.current.get(slot)
        if child is None:
            # It was removed meanwhile.
            self.forget(slot)
            return
        now, before = self._loop.time(), worker.state
        sign = self._sign(child)
        if sign is not None and worker.sees(sign, now, self._why(child, sign)):
            self._call_again(worker)
        worker.time_passes(now)
        if worker.state is not before:
            self._changed(child, worker, before)

    def _sign(self, child: Child) -> Sign | None:
        """None: it may only not be known yet, as at a proxy that has just started."""
        if child.state in _IN_CRASH_LOOP:
            return Sign.CRASH_LOOP
        if child.state is not State.UP or self._falls.has_fallen(child):
            return Sign.DOWN
        return Sign.UP if self._falls.serves(child) else None

    def _why(self, child: Child, sign: Sign) -> str:
        if sign is Sign.UP:
            return ""
        if child.state is State.UP:
            return self._rotation.why_not_up(child) or "it is not in the rotation"
        why = child.starts.why_ended or "it has ended"
        return f"{why}; it is in a crash loop" if sign is Sign.CRASH_LOOP else why

    def _call_again(self, worker: ReplacedWorker) -> None:
        if worker.due is not None:
            self._loop.call_at(worker.due, self._wake)

    def _changed(self, child: Child, worker: ReplacedWorker, before: Serving) -> None:
        slot = slot_of(child)
        if worker.state is Serving.SERVES:
            _log.info("%s, which was replaced already, serves again", child.name)
            self._fallen.pop(slot, None)
            if slot in self._unconfirmed:
                self._loop.call_at(worker.answers_by(self._asked_at), self._condition.notify)
        elif (child.state is not State.UP or worker.state is Serving.LOST) and (
            words := child.starts.last_output.text()
        ):
            self._fallen[slot] = words
        else:
            self._fallen.setdefault(slot, "")
        if before is Serving.SERVES and worker.state is Serving.AWAY:
            text = "%s, which was replaced already, does not serve: %s; no other one is replaced"
            _log.warning(text, child.name, worker.reason)
        self._condition.notify()
        self._wake()


def _sentence(slot: Slot, why: str) -> str:
    return f"{slot[0]}/{slot[1]}, which was replaced already, does not serve: {why}"
