"""Turns by weight, exact whichever members come and go.

Owns: whose turn it is. The order of turns is `schedule`'s. No I/O, no clock.
"""

from collections.abc import Callable, Collection, Sequence

from penstock_proxy.balancing.policies.policy import M, Policy
from penstock_proxy.balancing.policies.schedule import same_turn, schedule


class RoundRobin(Policy[M]):
    """Exact turns, by weight.

    The schedule holds all members, and the cursor is a place in it. Members that are out of the
    rotation are skipped, so a member that enters or leaves the rotation changes no other member's
    turn. (A cursor into the list of the rotation would jump with each change.) A member that is
    removed takes its places with it, which changes no other turn either. A member that is added
    may change the order of the others if weights differ; the next member stays the next.
    """

    __slots__ = ("_at", "_credit", "_members", "_next", "_present", "_schedule")

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._credit: dict[M, float] = {}
        """By member in slow start: the part of a turn that it has saved up."""
        self._members = list(members)
        self._present: set[M] = set()
        self._schedule = scheduled(self._members)
        self._at = 0
        self._next: list[tuple[M, int]] = []
        """For each place in the schedule: the member whose turn it is, and the place after it."""

    def add(self, member: M) -> None:
        self._members.append(member)
        before, self._schedule = self._schedule, scheduled(self._members)
        if before:
            at = (self._next[self._at][1] - 1) % len(before) if self._next else self._at
            self._at = same_turn(before, at, self._schedule)
        self._update_next()

    def remove(self, member: M) -> None:
        self._members.remove(member)
        self._credit.pop(member, None)
        self._at -= self._schedule[: self._at].count(member)
        self._schedule = [one for one in self._schedule if one is not member]
        if self._at == len(self._schedule):
            self._at = 0
        self._update_next()

    def set_rotation(self, rotation: Sequence[M]) -> None:
        self._present = set(rotation)
        self._update_next()

    def _update_next(self) -> None:
        """Compute for each place in the schedule whose turn it is."""
        present, places = self._present, len(self._schedule)
        turns = [
            (member, (place + 1) % places)
            for place, member in enumerate(self._schedule)
            if member in present
        ]
        self._next = []
        if not turns:
            return
        following = turns[0]
        for member in reversed(self._schedule):
            if member in present:
                following = turns.pop()
            self._next.append(following)
        self._next.reverse()

    def set_slow_start(self, slow: Collection[M]) -> None:
        self._credit = {member: self._credit.get(member, 0.0) for member in slow}

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        turns = self._next
        if not turns:
            return None
        member, after = turns[self._at]
        if self._credit:
            return self._pick_in_slow_start(avoid)
        if avoid:
            # Avoided members lose this turn, as if they were out of the rotation. If the
            # cursor did not move, the member after a dead worker would get the dead one's
            # turns in addition to its own.
            for _ in turns:
                if member not in avoid:
                    break
                member, after = turns[after]
            else:
                return None
        self._at = after
        return member

    def _pick_in_slow_start(self, avoid: Collection[M]) -> M | None:
        """Pick, and skip a member in slow start, as if avoided, until it has saved up a turn."""
        turns, credit = self._next, self._credit
        otherwise: tuple[M, int] | None = None
        after = self._at
        for _ in turns:
            member, after = turns[after]
            if member in avoid:
                continue
            if member in credit:
                credit[member] += member.weight_factor
                # Rounded a little: ten times 0.1 is 0.999… in binary.
                if credit[member] < 1 - 1e-9:
                    otherwise = otherwise or (member, after)
                    continue
                credit[member] -= 1
            self._at = after
            return member
        if otherwise is None:
            return None
        # Only members in slow start are left: they share as if they were not in it.
        member, self._at = otherwise
        return member


def scheduled(members: Sequence[M]) -> list[M]:
    """The members in the order of their turns."""
    return [members[index] for index in schedule([member.weight for member in members])]
