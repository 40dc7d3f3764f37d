"""Which of many equal reports are logged, so that a flood of them does not flood the log.

Owns what is remembered of reports by *place*, any hashable value: a place is logged when it is
new, and again once an interval has passed. What is left out is counted, so the log can say
how many more there were. Both are bounded: a program may fail at ever new places. Must not know
what is reported, nor where it is written. No I/O, no clock.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

INTERVAL_S: Final = 10.0
"""Between two reports of one place."""
MAX_REPORTS: Final = 20
"""In one interval, of all places together."""
MAX_PLACES: Final = 128
"""Places that are remembered."""


class LogLimit:
    """`seen` decides on one report. `left_out` is asked once an interval."""

    def __init__(self) -> None:
        self._logged_at: OrderedDict[Hashable, float] = OrderedDict()
        """By place, the oldest first."""
        self._left_out: dict[Hashable, int] = {}
        """Reports since then that were not logged, by place."""
        self._others = 0
        """Reports that were not logged, of places that are not remembered."""
        self._interval_began = float("-inf")
        self._reports = 0

    def seen(self, place: Hashable, now: float) -> int | None:
        """None: do not log it. A number: log it; so many like it were left out before."""
        logged_at = self._logged_at.get(place)
        if logged_at is not None and now - logged_at < INTERVAL_S:
            self._left_out[place] = self._left_out.get(place, 0) + 1
            return None
        if not self._take_turn(now):
            if logged_at is None:
                self._others += 1
            else:
                self._left_out[place] = self._left_out.get(place, 0) + 1
            return None
        self._logged_at[place] = now
        self._logged_at.move_to_end(place)
        if len(self._logged_at) > MAX_PLACES:
            oldest, _ = self._logged_at.popitem(last=False)
            self._others += self._left_out.pop(oldest, 0)
        return self._left_out.pop(place, 0)

    def add_left_out(self, count: int) -> None:
        """So many were left out before anybody looked at their places."""
        self._others += count

    def left_out(self) -> tuple[dict[Hashable, int], int]:
        """What was left out since it was last asked: by place, and of other places."""
        found, others = self._left_out, self._others
        self._left_out, self._others = {}, 0
        return found, others

    def _take_turn(self, now: float) -> bool:
        if now - self._interval_began >= INTERVAL_S:
            self._interval_began, self._reports = now, 0
        self._reports += 1
        return self._reports <= MAX_REPORTS
