"""Does a process live? It is asked again and again, and its silence is judged.

Owns the judgement on one process: alive, doubted (silent for a few seconds), hung (silent for so
long that it is replaced). Must not know how it is asked, and what follows from the judgement:
`rotation/heartbeat` asks workers, `rollout/proxies` asks proxies.

Silence begins with the first question that is not answered, and not with the last answer: nobody
is silent who was not asked. One answer ends it. The time in which the supervisor itself did not
run counts for nobody (`begin_again`). No I/O; `now` is any monotonic clock, in seconds.
"""

from enum import Enum, auto
from typing import Final

ASK_EVERY_S: Final = 1.0
"""Seconds between two questions."""
DOUBT_S: Final = 3.0
"""Silent for so long, it gets no new clients. A collection of garbage or a busy core is shorter,
and to leave out a worker by mistake does no harm: it is back with its next answer."""
ASLEEP_S: Final = 1.0
"""A supervisor that asks so much later than it meant to was stopped itself, or has no CPU. Then
nobody else may have had any either."""
NEVER: Final = float("inf")


class Life(Enum):
    ALIVE = auto()
    DOUBTED = auto()
    HUNG = auto()


class Sign(Enum):
    ANSWER = auto()
    SILENCE = auto()
    LONG_SILENCE = auto()


TRANSITIONS: Final[dict[Life, dict[Sign, Life]]] = {
    Life.ALIVE: {
        Sign.ANSWER: Life.ALIVE,
        Sign.SILENCE: Life.DOUBTED,
        Sign.LONG_SILENCE: Life.HUNG,
    },
    Life.DOUBTED: {
        Sign.ANSWER: Life.ALIVE,
        Sign.SILENCE: Life.DOUBTED,
        Sign.LONG_SILENCE: Life.HUNG,
    },
    Life.HUNG: {
        Sign.ANSWER: Life.ALIVE,
        # The supervisor was asleep, and counts again. What was found out stays found out.
        Sign.SILENCE: Life.HUNG,
        Sign.LONG_SILENCE: Life.HUNG,
    },
}


class Liveness:
    """One process. `hung_s`, `doubt_s`: how long it may be silent; NEVER: for ever."""

    __slots__ = ("_asked", "_doubt_s", "_silent_since", "hung_s", "least", "life")

    def __init__(self, *, hung_s: float, doubt_s: float = DOUBT_S, least: int = 3) -> None:
        """`least`: fewer unanswered questions than this are no silence, however long it takes.
        It and `hung_s` may be changed at any time."""
        self.life = Life.ALIVE
        self.hung_s = hung_s
        self._doubt_s = doubt_s
        self.least = least
        self._silent_since: float | None = None
        self._asked = 0
        """Questions since then."""

    def asked(self, now: float) -> None:
        """It was asked, and has not answered yet."""
        if self._silent_since is None:
            self._silent_since = now
        self._asked += 1

    def answered(self) -> None:
        """It has answered everything."""
        self._silent_since, self._asked = None, 0

    def begin_again(self, now: float) -> None:
        """The supervisor did not run: a silence counts from now on."""
        if self._silent_since is not None:
            self._silent_since, self._asked = now, 1

    def silent_s(self, now: float) -> float:
        """How long it has been silent; 0: it is not."""
        return 0.0 if self._silent_since is None else now - self._silent_since

    def judge(self, now: float) -> Life:
        """Judge it now; the result is `life` until the next time."""
        if (sign := self._sign(now)) is not None:
            self.life = TRANSITIONS[self.life][sign]
        return self.life

    def _sign(self, now: float) -> Sign | None:
        """None: it is silent, but not for long enough to say anything."""
        if self._silent_since is None:
            return Sign.ANSWER
        silent_s = self.silent_s(now)
        if self._asked < self.least or silent_s < min(self._doubt_s, self.hung_s):
            return None
        return Sign.LONG_SILENCE if silent_s >= self.hung_s else Sign.SILENCE
