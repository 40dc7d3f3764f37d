"""The one timer of a slot.

Arming it replaces the deadline before, so it is always clear which deadline has passed. It must
not know what it is armed for.
"""

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable


class Deadline:
    def __init__(self, loop: AbstractEventLoop, on_due: Callable[[], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._timer: TimerHandle | None = None
        self._due_at = 0.0

    @property
    def remaining_s(self) -> float:
        """Seconds until it is due; 0 if it is not armed."""
        return 0.0 if self._timer is None else max(0.0, self._due_at - self._loop.time())

    def arm(self, delay_s: float) -> None:
        self.disarm()
        self._due_at = self._loop.time() + delay_s
        self._timer = self._loop.call_later(delay_s, self._fire)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._on_due()
