"""How late an event loop is: the time between a timer's turn and its being called.

Owns one timer. The worst of the time since the last question is what is reported, because
a loop that was stuck for a second is on time again when somebody comes to ask.
"""

from asyncio import AbstractEventLoop, TimerHandle
from typing import Final

_EVERY_S: Final = 0.5


class LagMeter:
    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._due = 0.0
        self._worst_s = 0.0
        self._timer: TimerHandle | None = None

    def start(self) -> None:
        self._due = self._loop.time() + _EVERY_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def worst_s(self) -> float:
        """Seconds, the worst since this was last asked."""
        worst_s = self._worst_s
        if self._timer is not None:
            # The question may have come in before a timer that is overdue.
            worst_s = max(worst_s, self._loop.time() - self._due)
        self._worst_s = 0.0
        return worst_s

    def _tick(self) -> None:
        self._worst_s = max(self._worst_s, self._loop.time() - self._due)
        self.start()
