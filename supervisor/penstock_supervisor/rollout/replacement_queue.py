"""Which worker is replaced next: one of a service at a time, the most urgent first.

Owns who waits to be replaced, and why, and who is being replaced. Everything that wants a worker
replaced asks here: a worker that retires, one whose channel broke, one that hangs or fails its
checks, and a roll-out. Several reasons for one worker are one replacement. Must not know how a
worker is replaced (`rolling_restart`).

A replacement that failed is tried again, after a pause that doubles: whatever the reason was, it
is there still, and the old process serves on if it can. Not so a roll-out: whoever asked for it is
told that it failed. Nor does a roll-out wait for such a pause. No I/O; `now` is any monotonic
clock, in seconds.
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


@dataclass(slots=True, eq=False)
class Replacement:
    """One worker to replace, and why, for people, by reason."""

    slot: Slot
    reasons: dict[Reason, str] = field(default_factory=dict)

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
    failures: int = 0
    """In a row."""
    not_before: float = 0.0


class ReplacementQueue:
    """All services of a run."""

    def __init__(self) -> None:
        self._services: dict[str, _ServiceQueue] = {}

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
            candidates = [
                replacement
                for replacement in queue.waiting.values()
                if is_free(replacement.slot)
                and (now >= queue.not_before or RELOAD in replacement.reasons)
            ]
            if queue.active is None and candidates:
                # The first of several that are equally urgent.
                queue.active = min(candidates, key=lambda one: REASONS.index(one.reason))
                del queue.waiting[queue.active.slot]
                begun.append(queue.active)
        return begun

    def settled(self, replacement: Replacement, now: float, *, ok: bool) -> float | None:
        """It has succeeded or failed. Returns the seconds until it is tried again; None: not."""
        queue = self._of(replacement.slot)
        assert queue.active is replacement
        queue.active = None
        if ok:
            queue.failures, queue.not_before = 0, now
            return None
        replacement.reasons.pop(RELOAD, None)
        if not replacement.reasons:
            return None
        queue.failures += 1
        # Bounded before it is computed: nobody counts how often a night long fault repeats.
        doublings = min(queue.failures - 1, 10)
        pause_s = min(FIRST_PAUSE_S * (1 << doublings), MAX_PAUSE_S)
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
