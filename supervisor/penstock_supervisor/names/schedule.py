"""When a name is looked up again, and how long what it stood for stays while nothing is found.

A good answer says itself how long it may be believed. A bad one is followed by the next question
soon, and then later and later: the last good one holds meanwhile. That there is nothing any more is
believed when it has been said for a while (HAProxy's `hold nx`): a name server that was restarted
says so before it has read its zones. No I/O, no clock.
"""

from dataclasses import dataclass
from typing import Final

MIN_TTL_S: Final = 1.0
"""Of 0, too, which means "not again": some zones have that everywhere."""
MAX_TTL_S: Final = 300.0
"""Whoever changes an address waits for so long at the most."""
FIRST_RETRY_S: Final = 1.0
"""After a bad answer; doubled each time."""
MAX_RETRY_S: Final = 30.0
HOLD_S: Final = 30.0
"""For so long "there is nothing" is not believed."""


@dataclass(slots=True)
class Schedule:
    """Of one name."""

    due: float
    result: str = ""
    """Of the last look-up: one of `answers.RESULTS`; empty: there was none."""
    ttl_s: float = 0.0
    """Of the last good answer, as it was used."""
    _retries: int = 0
    _nothing_since: float | None = None

    def found(self, ttl_s: float, now: float) -> bool:
        """Returns whether the last look-up had another result."""
        self.ttl_s = min(max(ttl_s, MIN_TTL_S), MAX_TTL_S)
        self.due = now + self.ttl_s
        self._retries, self._nothing_since = 0, None
        return self._becomes("found")

    def failed(self, result: str, now: float) -> bool:
        """Likewise."""
        if result == "not_found" and self._nothing_since is None:
            self._nothing_since = now
        self.due = now + min(FIRST_RETRY_S * 2.0**self._retries, MAX_RETRY_S)
        # A power that grows for ever is no float in the end.
        self._retries = min(self._retries + 1, 10)
        return self._becomes(result)

    def _becomes(self, result: str) -> bool:
        before, self.result = self.result, result
        return before != result

    def is_gone(self, now: float) -> bool:
        """Is it certain enough that there is nothing of this name any more?"""
        since = self._nothing_since
        return self.result == "not_found" and since is not None and now - since >= HOLD_S
