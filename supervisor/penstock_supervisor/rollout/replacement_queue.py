"""Which worker is replaced next: one of a service at a time, the most urgent first.

Owns who waits to be replaced, and why, and who is being replaced. Everything that wants a worker
replaced asks here: a worker that retires, one whose channel broke, one that hangs or fails its
checks, and a roll-out. Several reasons for one worker are one replacement. Must not know how a
worker is replaced (`rolling_restart`).

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
    active: Replacement | None = None
    succeeded: dict[Slot, tuple[float, int]] = field(default_factory=dict)
    """When the last replacement in a slot succeeded, and its repeats."""
    failures: int = 0
    """In a row."""
    not_before: float = 0.0

    def may_begin(self, replacement: Replacement, now: float) -> bool:
        if RELOAD in replacement.reasons:
            return True
        assert replacement.not_before is not None
        return now >= max(self.not_before, replacement.not_before)

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

    def due(self, now: float, is_free: Callable[[Slot], bool]) -> list[Replacement]:
        """Begin the next one of each service that has none; the caller begins these.

        `is_free(slot)`: nothing is left there of an earlier replacement.
        """
        begun = []
        for queue in self._services.values():
            for replacement in queue.waiting.values():
                if replacement.not_before is None and (wait_s := queue.schedule(replacement, now)):
                    self._delayed.append((replacement, wait_s))
            candidates = [
                replacement
                for replacement in queue.waiting.values()
                if is_free(replacement.slot) and queue.may_begin(replacement, now)
            ]
            if queue.active is None and candidates:
                # The first of several that are equally urgent.
                queue.active = min(candidates, key=lambda one: REASONS.index(one.reason))
                del queue.waiting[queue.active.slot]
                begun.append(queue.active)
        return begun

    def take_delayed(self) -> list[tuple[Replacement, float]]:
        """Those that have to wait since the last call because they came so soon; seconds."""
        delayed, self._delayed = self._delayed, []
        return delayed

    def settled(self, replacement: Replacement, now: float, *, ok: bool) -> float | None:
        """It has succeeded or failed. Returns the seconds until it is tried again; None: not."""
        queue = self._of(replacement.slot)
        assert queue.active is replacement
        queue.active = None
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

    def active(self, service: str) -> Replacement | None:
        """What is being replaced of a service."""
        queue = self._services.get(service)
        return None if queue is None else queue.active

    def wants(self, slot: Slot, reason: Reason) -> bool:
        """Does it wait, or is it being replaced, for this reason?"""
        queue = self._of(slot)
        active = queue.active
        return any(
            replacement is not None and replacement.slot == slot and reason in replacement.reasons
            for replacement in (queue.waiting.get(slot), active)
        )

    def clear(self) -> None:
        """Nothing waits any more."""
        for queue in self._services.values():
            queue.waiting.clear()

    def _of(self, slot: Slot) -> _ServiceQueue:
        return self._services.setdefault(slot[0], _ServiceQueue())


def _pause_s(times: int) -> float:
    """The pause after so many times in a row; none after none."""
    if times <= 0:
        return 0.0
    # Bounded before it is computed: nobody counts how often a night long fault repeats.
    return min(FIRST_PAUSE_S * (1 << min(times - 1, 10)), MAX_PAUSE_S)
