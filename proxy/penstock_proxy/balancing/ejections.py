"""The ejections of the members of one pool: who is ejected, for how long, and how often.

Owns: how many may be ejected at a time, how long the next ejection of a member lasts, and the
counts of members that were removed. Must not know: why somebody is ejected (`outlier_detection`),
and what an ejection does to the rotation (`pool`). No I/O, no clock.
"""

from collections.abc import Iterable
from typing import Final

from penstock_proxy.balancing.member import Member
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.config import Ejection

MAX_EJECTION_MULTIPLIER: Final = 10
"""Each ejection is longer than the last one, up to this many times `eject_for`."""


class Ejections:
    """Those of one pool."""

    __slots__ = ("_left", "_settings", "present")

    def __init__(self, settings: Ejection) -> None:
        self._settings = settings
        self.present: set[Member] = set()
        """Members that are ejected now."""
        self._left: dict[int, int] = {}
        """By slot that has no member: the ejections of those that it had."""

    def configure(self, settings: Ejection) -> None:
        """Act on these settings from now on; present ejections last as long as they were to."""
        self._settings = settings

    def note(self, member: Member) -> None:
        """Its state has changed."""
        if member.state is MemberState.EJECTED:
            self.present.add(member)
        else:
            self.present.discard(member)

    def may_eject(self, in_rotation: int) -> bool:
        """Never the last member, and never more than `max_ejected` of those whose checks pass."""
        if in_rotation < 2:
            return False
        ejected = len(self.present)
        # Rounded up a little: 0.29 * 100 is 28.999… in binary.
        allowed = self._settings.max_ejected * (in_rotation + ejected) + 1e-9
        return ejected + 1 <= allowed

    def begin(self, member: Member, now: float) -> float:
        """Count one more ejection of this member; returns how many seconds it lasts."""
        self._decay_multiplier(member, now)
        member.ejection_multiplier = min(member.ejection_multiplier + 1, MAX_EJECTION_MULTIPLIER)
        duration = self._settings.eject_for * member.ejection_multiplier
        member.ejected_until = now + duration
        member.ejections += 1
        return duration

    def _decay_multiplier(self, member: Member, now: float) -> None:
        """Forget the last ejection if the member was up for as long as that had lasted; repeat."""
        healthy, base = now - member.up_since, self._settings.eject_for
        while (count := member.ejection_multiplier) and healthy >= base * count:
            healthy -= base * count
            member.ejection_multiplier -= 1

    def inherit(self, member: Member) -> None:
        """It is new in its slot, and goes on from what the members before it had."""
        member.ejections = self._left.pop(member.slot, 0)

    def leave(self, member: Member, others: Iterable[Member]) -> None:
        """It was removed. Its count is its slot's, for which it is shown: it must not go down."""
        heir = next((one for one in others if one.slot == member.slot), None)
        if heir is not None:
            heir.ejections += member.ejections
        elif member.ejections:
            self._left[member.slot] = member.ejections
