"""Turns by weight, exact whichever members come and go.

Owns: whose turn it is. The order of turns is `schedule`'s. No I/O, no clock.
"""

from collections.abc import Callable, Collection, Sequence

from penstock_proxy.balancing.policies.policy import M
from penstock_proxy.balancing.policies.turns import TurnPolicy


class RoundRobin(TurnPolicy[M]):
    """Exact turns, by weight.

    The schedule holds all members, and the cursor is a place in it. Members that are out of the
    rotation are skipped, so a member that enters or leaves the rotation changes no other member's
    turn. (A cursor into the list of the rotation would jump with each change.) A member that is
    removed takes its places with it, which changes no other turn either. A member that is added
    may change the order of the others if weights differ; the next member stays the next.

    Who is next is noted at each place, so a pick looks for nobody. A member that enters or leaves
    is noted at the places before its own, back to the last one of the rotation: if its neighbours
    are there, that is one place.
    """

    __slots__ = ("_credit", "_next", "_present")

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._credit: dict[M, float] = {}
        """By member in slow start: the part of a turn that it has saved up."""
        self._present: dict[M, None] = {}
        self._next: list[tuple[M, int]] = []
        """For each place in the schedule: the member whose turn it is, and the place after it.
        Empty: nobody is in the rotation."""
        self._begin(members)

    def _cursor(self) -> int:
        return self._next[self._at][1] - 1 if self._next else self._at

    def _appended(self, member: M, count: int) -> None:
        if self._next:
            self._next += [self._next[-1]] * count

    def _removed(self, member: M) -> None:
        self._credit.pop(member, None)
        del self._next[len(self._schedule) :]

    def _reordered(self) -> None:
        """Find for each place in the schedule whose turn it is."""
        present, turns = self._present, self._schedule
        self._next = []
        first = next((place for place, one in enumerate(turns) if one in present), -1)
        if first < 0:
            return
        member, after = turns[first], first + 1
        for place in range(len(turns) - 1, -1, -1):
            if turns[place] in present:
                member, after = turns[place], place + 1
            self._next.append((member, after))
        self._next.reverse()

    # -- the rotation

    def enter(self, member: M) -> None:
        self._present[member] = None
        turns = self._next
        for place in self._places[member]:
            if not turns:
                turns += [(member, place + 1)] * len(self._schedule)
                continue
            following = turns[place][1]
            at = place
            while True:
                turns[at] = (member, place + 1)
                at = at - 1 if at else len(turns) - 1
                if at + 1 == following or turns[at][1] != following:
                    break

    def leave(self, member: M) -> None:
        del self._present[member]
        turns = self._next
        for place in self._places[member]:
            follower = turns[place + 1]
            if follower[1] == place + 1:
                # It is the last one.
                turns.clear()
                break
            at = place
            while turns[at][1] == place + 1:
                turns[at] = follower
                at = at - 1 if at else len(turns) - 1

    def present(self) -> Collection[M]:
        return self._present.keys()

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
