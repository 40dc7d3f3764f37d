"""Which worker is replaced next: one of a service at a time, the most urgent first.

Only a roll-out that has a larger `surge` replaces several of a service at a time.

Owns who waits to be replaced, and why, and who is being replaced. Everything that wants a worker
replaced asks here: a worker that retires, one whose channel broke, one that hangs or fails its
checks, and a roll-out. Several reasons for one worker are one replacement. Must not know how a
worker is replaced (`replacements`).

A replacement that failed is tried again, after a pause that doubles: whatever the reason was, it
is there still, and the old process serves on if it can. Not so a roll-out: whoever asked for it is
told that it failed. Nor does a roll-out wait for such a pause.

A worker may also be replaced with success and ask again at once, for ever: a program that retires
whenever it starts, or that closes its channel. That is a crash loop in which nothing crashes. The
third time in a row it has to wait as well.

No I/O; `now` is any monotonic clock, in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from penstock_supervisor.children.plan import Slot

Reason = Literal["liveness", "channel", "unhealthy", "retire", "reload"]
REASONS: Final[tuple[Reason, ...]] = ("liveness", "channel", "unhealthy", "retire", "reload")
"""The most urgent first: who hangs serves nobody, and who retires serves well until its turn."""
RELOAD: Final[Reason] = "reload"
FIRST_PAUSE_S: Final = 10.0
MAX_PAUSE_S: Final = 300.0
SOON_S: Final = 10.0
"""A worker that asks within this time after it came has not done its work before."""
FREE_REPEATS: Final = 2
"""So often in a row it may ask so soon without a pause: one bad moment is no habit."""


@dataclass(slots=True, eq=False)
class Replacement:
    """One worker to replace, and why, for people, by reason."""

    slot: Slot
    reasons: dict[Reason, str] = field(default_factory=dict)
    not_before: float | None = None
    """None: not decided yet."""
    is_compared: bool = False
    """It is a canary, and waits for a comparison: only a roll-out waits for that."""
    repeats: int = 0
    """How often in a row it has been asked for soon after the last one."""

    @property
    def reason(self) -> Reason:
        """The most urgent one."""
        return min(self.reasons, key=REASONS.index)

    @property
    def why(self) -> str:
        return self.reasons[self.reason]


@dataclass(slots=True, eq=False)
class _ServiceQueue:
    waiting: dict[Slot, Replacement] = field(default_factory=dict)
    """In the order in which they came."""
    active: list[Replacement] = field(default_factory=list)
    succeeded: dict[Slot, tuple[float, int]] = field(default_factory=dict)
    """When the last replacement in a slot succeeded, and its repeats."""
    failures: int = 0
    """In a row."""
    not_before: float = 0.0

    def may_begin(self, replacement: Replacement, now: float, surge: int) -> bool:
        if RELOAD in replacement.reasons:
            others_reload = all(RELOAD in one.reasons for one in self.active)
            return not self.active or (others_reload and len(self.active) < surge)
        if not all(one.is_compared for one in self.active):
            return False
        return now >= max(self.not_before, replacement.not_before or 0.0)

    def schedule(self, replacement: Replacement, now: float) -> float:
        """Decide how long it waits because it came so soon; returns the seconds."""
        at, repeats = self.succeeded.get(replacement.slot, (-SOON_S, 0))
        replacement.repeats = repeats + 1 if now - at < SOON_S else 0
        wait_s = _pause_s(replacement.repeats - FREE_REPEATS)
        replacement.not_before = now + wait_s
        return wait_s


class ReplacementQueue:
    """All services of a run."""

    def __init__(self) -> None:
        self._services: dict[str, _ServiceQueue] = {}
        self._delayed: list[tuple[Replacement, float]] = []
        self.holds_reload = False
        """Nobody begins now for whom nothing but a roll-out asks."""

    def request(self, slot: Slot, reason: Reason, why: str) -> bool:
        """Ask for it. False: nothing new."""
        waiting = self._of(slot).waiting
        replacement = waiting.setdefault(slot, Replacement(slot))
        is_new = reason not in replacement.reasons
        replacement.reasons[reason] = why
        return is_new

    def withdraw(self, slot: Slot, *reasons: Reason) -> None:
        """These reasons are gone. Too late for one that is being replaced."""
        waiting = self._of(slot).waiting
        if (replacement := waiting.get(slot)) is not None:
            for reason in reasons:
                replacement.reasons.pop(reason, None)
            if not replacement.reasons:
                del waiting[slot]

    def due(
        self,
        now: float,
        is_free: Callable[[Slot], bool],
        surge: Callable[[str], int] = lambda _: 1,
    ) -> list[Replacement]:
        """Begin the next ones of each service that has room; the caller begins these.

        `is_free(slot)`: nothing is left there of an earlier replacement. `surge(service)`: so
        many of a roll-out at a time.
        """
        begun = []
        for name, queue in self._services.items():
            for replacement in queue.waiting.values():
                if replacement.not_before is None and RELOAD not in replacement.reasons:
                    self._schedule(queue, replacement, now)
            while (next_one := self._next(queue, now, is_free, surge(name))) is not None:
                del queue.waiting[next_one.slot]
                queue.active.append(next_one)
                begun.append(next_one)
        return begun

    def _schedule(self, queue: _ServiceQueue, replacement: Replacement, now: float) -> None:
        if wait_s := queue.schedule(replacement, now):
            self._delayed.append((replacement, wait_s))

    def _next(
        self, queue: _ServiceQueue, now: float, is_free: Callable[[Slot], bool], surge: int
    ) -> Replacement | None:
        candidates = [
            replacement
            for replacement in queue.waiting.values()
            if is_free(replacement.slot)
            and queue.may_begin(replacement, now, surge)
            and not (self.holds_reload and replacement.reasons.keys() == {RELOAD})
        ]
        # The first of several that are equally urgent.
        return min(candidates, key=lambda one: REASONS.index(one.reason), default=None)

    def take_delayed(self) -> list[tuple[Replacement, float]]:
        """Those that have to wait since the last call because they came so soon; seconds."""
        delayed, self._delayed = self._delayed, []
        return delayed

    def settled(self, replacement: Replacement, now: float, *, ok: bool) -> float | None:
        """It has succeeded or failed. Returns the seconds until it is tried again; None: not."""
        queue = self._of(replacement.slot)
        queue.active.remove(replacement)
        if ok:
            queue.failures, queue.not_before = 0, now
            queue.succeeded[replacement.slot] = now, replacement.repeats
            return None
        replacement.reasons.pop(RELOAD, None)
        if not replacement.reasons:
            return None
        queue.failures += 1
        pause_s = _pause_s(queue.failures)
        queue.not_before = now + pause_s
        waiting = queue.waiting.setdefault(replacement.slot, replacement)
        waiting.reasons.update(replacement.reasons)
        return pause_s

    def waiting_for(self, reason: Reason) -> list[Slot]:
        """The slots that wait for this reason, in the order in which they came."""
        return [
            slot
            for queue in self._services.values()
            for slot, replacement in queue.waiting.items()
            if reason in replacement.reasons
        ]

    def active(self, service: str) -> tuple[Replacement, ...]:
        """What is being replaced of a service."""
        queue = self._services.get(service)
        return () if queue is None else tuple(queue.active)

    def wants(self, slot: Slot, reason: Reason) -> bool:
        """Does it wait, or is it being replaced, for this reason?"""
        queue = self._of(slot)
        replacements = (*queue.active, *filter(None, (queue.waiting.get(slot),)))
        return any(one.slot == slot and reason in one.reasons for one in replacements)

    def clear(self) -> None:
        """Nothing waits any more."""
        for queue in self._services.values():
            queue.waiting.clear()

    def forget(self, service: str) -> None:
        """The service is removed. What is under way has to be settled all the same."""
        if not self.active(service):
            self._services.pop(service, None)

    def _of(self, slot: Slot) -> _ServiceQueue:
        return self._services.setdefault(slot[0], _ServiceQueue())


def _pause_s(times: int) -> float:
    """The pause after so many times in a row; none after none."""
    if times <= 0:
        return 0.0
    # Bounded before it is computed: nobody counts how often a night long fault repeats.
    return min(FIRST_PAUSE_S * (1 << min(times - 1, 10)), MAX_PAUSE_S)
