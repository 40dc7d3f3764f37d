"""Slow start: a worker that has just come into the rotation gets its share bit by bit.

Owns: who is in slow start, and how much of its weight counts. Must not know: who is picked
(`policies`), or why somebody came into the rotation (`pool`). No I/O, no clock.
"""

from collections.abc import Iterable
from typing import Final

from penstock_proxy.balancing.member import NEVER, Member
from penstock_proxy.balancing.member_state import MemberState

MIN_WEIGHT_FACTOR: Final = 0.1
"""The share of its weight that a member begins slow start with: with less it would not warm up."""


class SlowStart:
    """The slow start of the members of one pool. `window`: how long it takes; 0: there is none."""

    __slots__ = ("slow", "window")

    def __init__(self, window: float) -> None:
        self.window = window
        self.slow: tuple[Member, ...] = ()
        """Members whose whole weight does not count yet."""

    def configure(self, window: float, members: Iterable[Member]) -> None:
        """Set how long it takes, also for those that are in it: `update` has to be called then."""
        if not window:
            for member in members:
                member.weight_factor, member.slow_start_since = 1.0, NEVER
            self.slow = ()
        self.window = window

    def begin(self, member: Member, members: Iterable[Member], now: float) -> None:
        """Begin that of a new member of the rotation, if others can take the load."""
        others = [m for m in members if m.state is MemberState.UP and m is not member]
        member.slow_start_since = now
        if others and not any(now - m.slow_start_since >= self.window for m in others):
            # All others are in slow start as well, as after a start. Then it has as much of its
            # share as the newest of them.
            member.slow_start_since = max(m.slow_start_since for m in others)

    def update(self, members: Iterable[Member], now: float) -> None:
        """Update the weight factors: they grow with time, relative to the warmest member's."""
        progress = {
            m: max(MIN_WEIGHT_FACTOR, min(1.0, (now - m.slow_start_since) / self.window))
            for m in members
            if m.state is MemberState.UP
        }
        highest = max(progress.values(), default=1.0)
        for member in members:
            member.weight_factor = progress.get(member, highest) / highest
        self.slow = tuple(member for member in progress if member.weight_factor < 1)

    def discard(self, member: Member) -> bool:
        """It was removed. True: it was in slow start."""
        if member not in self.slow:
            return False
        self.slow = tuple(one for one in self.slow if one is not member)
        return True
