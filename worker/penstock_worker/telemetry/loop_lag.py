"""The lag of an event loop: how late it calls a timer.

Owns one timer, and reports the worst lag since the last question: a loop that was stuck for a
second is on time again when somebody asks.
"""

from asyncio import AbstractEventLoop, TimerHandle
from typing import Final

_INTERVAL_S: Final = 0.5


class LoopLag:
    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._due = 0.0
        self._worst_s = 0.0
        self._timer: TimerHandle | None = None

    def start(self) -> None:
        self._due = self._loop.time() + _INTERVAL_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def worst_s(self) -> float:
        """Seconds, the worst since this was last asked."""
        worst_s = self._worst_s
        if self._timer is not None:
            # The timer itself may be overdue.
            worst_s = max(worst_s, self._loop.time() - self._due)
        self._worst_s = 0.0
        return worst_s

    def _tick(self) -> None:
        self._worst_s = max(self._worst_s, self._loop.time() - self._due)
        self.start()
