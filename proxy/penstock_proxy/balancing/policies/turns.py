"""A schedule of turns in which members come and go, for policies that have one.

Owns: the order of all members, in the rotation or not, and the cursor. A member that comes is put
at the end if all have the same weight, as nearly always; otherwise the order is made anew
(`schedule`). Where that would take long, all turns of the new one are put at the end: they are as
many as they should be, but not well mixed with the others, and the order `is_rough` until the pool
has made another one in steps. One that goes leaves its places empty, so no other one moves; when
half of the places are empty, the rest move together. So of a thousand members, each that comes or
goes costs about as much as with two. Must not know: who is in the rotation. No I/O, no clock.
"""

from collections.abc import Iterator, Sequence
from math import gcd
from typing import Any, Final, cast

from penstock_proxy.balancing.policies.policy import M, Policy
from penstock_proxy.balancing.policies.schedule import same_turn, schedule, scheduling

_EMPTY: Final = cast("Any", None)
"""What is at a place that nobody has."""
_FEW: Final = 32
"""So few turns are put in order anew whenever somebody goes: nothing is left behind."""

_LONG: Final = 256
"""With more turns than these, no order of unequal weights is made in one turn of the loop."""


class TurnPolicy(Policy[M]):
    """A policy with a schedule. Whoever derives from it keeps something for each place."""

    __slots__ = (
        "_at", "_equal", "_holes", "_members", "_places", "_schedule", "_unit", "is_rough",
    )  # fmt: skip

    _schedule: list[M]
    """The last place is always empty, and there may be other ones."""
    _places: dict[M, list[int]]
    """Of each member, in the schedule."""
    _at: int
    """The place whose turn it is."""
    _members: dict[M, None]
    """In the order in which they came."""
    _equal: int
    """The weight of all members, which have one turn each; 0: that is not so."""
    _unit: int
    """The weight that one turn stands for."""
    _holes: int
    """Empty places before the last member's."""

    def _begin(self, members: Sequence[M]) -> None:
        """The members at the start."""
        self._members = dict.fromkeys(members)
        self._at = 0
        self._use(scheduled(members))

    def beginning(self, members: Sequence[M]) -> Iterator[None]:
        weights = [member.weight for member in members]
        if len(frozenset(weights)) > 1:
            order = yield from scheduling(weights)
            self._members = dict.fromkeys(members)
            turns = [members[index] for index in order]
            yield
            self._use(turns)
            yield
            self._reordered()
        else:
            for member in members:
                self.add(member)
                yield

    def add(self, member: M) -> None:
        self._at = self._cursor()
        if self._at + 1 == len(self._schedule):
            # It comes after the others: the next one is the first of them.
            self._at = 0
        if not self._members:
            self._equal = self._unit = member.weight
        self._members[member] = None
        if member.weight == self._equal:
            self._append(member, 1)
        elif len(self._schedule) > _LONG:
            self._equal, self.is_rough = 0, True
            self._append(member, max(1, round(member.weight / self._unit)))
        else:
            before, at = self._without_holes()
            now = scheduled(tuple(self._members))
            self._at = same_turn(before, at, now) if before else 0
            self._use(now)
            self._reordered()

    def _append(self, member: M, count: int) -> None:
        last = len(self._schedule) - 1
        self._places[member] = list(range(last, last + count))
        self._schedule[last:] = [member] * count
        self._schedule.append(_EMPTY)
        self._appended(member, count)

    def remove(self, member: M) -> None:
        if member in self.present():
            self.leave(member)
        del self._members[member]
        places, turns = self._places.pop(member), self._schedule
        for place in places:
            turns[place] = _EMPTY
        self._holes += len(places)
        while len(turns) > 1 and turns[-2] is _EMPTY:
            turns.pop()
            self._holes -= 1
        if self._at >= len(turns):
            self._at = 0
        if self._holes > len(turns) // 2 or len(turns) <= _FEW:
            rest, self._at = self._without_holes()
            self._take(rest)
            self._removed(member)
            self._reordered()
        else:
            self._removed(member)

    def _use(self, turns: list[M]) -> None:
        """This is the order of the members' weights."""
        weights = {member.weight for member in self._members}
        self._unit = gcd(*weights) or 1
        self._equal = self._unit if len(weights) == 1 else 0
        self.is_rough = False
        self._take(turns)

    def _take(self, turns: list[M]) -> None:
        self._holes = 0
        places: dict[M, list[int]] = {}
        for place, member in enumerate(turns):
            found = places.get(member)
            if found is None:
                places[member] = [place]
            else:
                found.append(place)
        self._places = places
        turns.append(_EMPTY)
        self._schedule = turns

    def _without_holes(self) -> tuple[list[M], int]:
        """The turns, and the cursor among them."""
        turns = [member for member in self._schedule if member is not _EMPTY]
        if not turns:
            return turns, 0
        before = [member for member in self._schedule[: self._at] if member is not _EMPTY]
        return turns, len(before) % len(turns)

    # -- supplied by the policy

    def _cursor(self) -> int:
        """The place whose turn it is: that of a member who may be picked, if that is known."""
        return self._at

    def _appended(self, member: M, count: int) -> None:
        """A member has come at the end, with so many places."""
        raise NotImplementedError

    def _removed(self, member: M) -> None:
        """A member has left its places, and there may be fewer at the end."""
        raise NotImplementedError

    def _reordered(self) -> None:
        """All places are other ones."""
        raise NotImplementedError


def scheduled(members: Sequence[M]) -> list[M]:
    """The members in the order of their turns."""
    return [members[index] for index in schedule([member.weight for member in members])]
