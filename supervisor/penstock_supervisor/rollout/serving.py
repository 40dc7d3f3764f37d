"""Does a worker that a roll-out has replaced still serve? A total table, and its times.

The time for which a new process is watched is short. One that ends a little later has its slot by
then, and the next one would be replaced while nobody knows whether the new version stays. So each
worker that was replaced is looked at until the end of its roll-out:

    SERVES   it is in every rotation
    AWAY     it has fallen: it ended, fails its checks, or does not answer
    PROVING  it is back, and has to stay: it must outlive the time after which it fell
    LOST     it was not back in time, or ended too often: the new version does not serve

One that is away may come back within the time that a start has, because the supervisor starts it
again, and a moment's trouble of something else is no fault of the version. A version that ends a
few seconds after each start is back each time, too. So nothing is forgiven before it has served
for twice as long as it did before it fell, or for half the time of a start if that is shorter.

Must not know what falls, or what follows from it (`replaced_workers`). No I/O; `now` is any
monotonic clock, in seconds.
"""

from enum import Enum, auto
from typing import Final


class Serving(Enum):
    SERVES = auto()
    AWAY = auto()
    PROVING = auto()
    LOST = auto()


class Sign(Enum):
    UP = auto()
    """It is in every rotation."""
    DOWN = auto()
    """It has fallen."""
    CRASH_LOOP = auto()
    """It ended too often."""
    OVERDUE = auto()
    """The time to come back is over."""
    PROVED = auto()
    """It has stayed for long enough."""


S = Serving


def _stays(state: Serving, **changes: Serving) -> dict[Sign, Serving]:
    """A row in which every sign that is not named has no effect."""
    return {sign: changes.get(sign.name, state) for sign in Sign}


TRANSITIONS: Final[dict[Serving, dict[Sign, Serving]]] = {
    S.SERVES: _stays(S.SERVES, DOWN=S.AWAY, CRASH_LOOP=S.LOST),
    S.AWAY: _stays(S.AWAY, UP=S.PROVING, CRASH_LOOP=S.LOST, OVERDUE=S.LOST),
    S.PROVING: _stays(S.PROVING, DOWN=S.AWAY, CRASH_LOOP=S.LOST, PROVED=S.SERVES),
    S.LOST: _stays(S.LOST),
}


class ReplacedWorker:
    """One of them. `up_at`: since when its process is in every rotation. `start_s`: how long a
    start may take."""

    __slots__ = ("_away_since", "_proof_s", "_up_at", "reason", "start_s", "state")

    def __init__(self, up_at: float, start_s: float) -> None:
        self.state = Serving.SERVES
        self.reason = ""
        """Why it has fallen."""
        self._up_at = up_at
        self.start_s = start_s
        self._away_since = 0.0
        self._proof_s = 0.0

    @property
    def due(self) -> float | None:
        """When its time is over; None: it has none."""
        if self.state is Serving.AWAY:
            return self._away_since + self.start_s
        return self._up_at + self._proof_s if self.state is Serving.PROVING else None

    def answers_by(self, asked_at: float) -> float:
        """When one that was asked whether it lives has to have answered, if it has not fallen."""
        return max(asked_at, self._up_at) + self.start_s

    def sees(self, sign: Sign, now: float, reason: str = "") -> bool:
        """It shows this sign, because of `reason`. Returns whether its state is another one."""
        before, self.state = self.state, TRANSITIONS[self.state][sign]
        if self.state is before:
            return False
        self.reason = reason or self.reason
        if self.state is Serving.AWAY:
            self._falls(before, now)
        elif self.state is Serving.PROVING:
            self._up_at = now
        return True

    def time_passes(self, now: float) -> bool:
        """As `sees`, for the signs that are nothing but time."""
        if self.due is None or now < self.due:
            return False
        if self.state is Serving.PROVING:
            return self.sees(Sign.PROVED, now)
        return self.sees(
            Sign.OVERDUE, now, f"{self.reason}; it was not back for good within {self.start_s:g} s"
        )

    def _falls(self, before: Serving, now: float) -> None:
        # One that falls again before it has proved anything was never back.
        if before is Serving.SERVES:
            self._away_since = now
            self._proof_s = min(2 * (now - self._up_at), self.start_s / 2)
