"""Policies that draw: one member by weight, or the better one of two.

Owns: how a draw is made without looking at every member. Who must not be picked is drawn again:
with a thousand members, a list of the others would cost more than all else of a request. Where
nearly all must not be picked, or there are few, the list is made. No I/O, no clock.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import Final

from penstock_proxy.balancing.policies.policy import M, Policy

_FEW: Final = 16
"""So many members are looked at one by one."""
_DRAWS: Final = 32
"""After so many draws of a member that must not be picked, the others are looked for."""


class PowerOfTwo(Policy[M]):
    """Two members at random, and of these the one with fewer requests for its weight.

    It is nearly as even as a comparison of all members, and its cost does not grow with their
    number. Several proxies, which do not know each other's requests, do not all pick the same
    idle worker.
    """

    __slots__ = ("_has_slow_start", "_places", "_random", "_rotation")
    counts_open = True

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._random = random
        self._rotation: list[M] = []
        self._places: dict[M, int] = {}
        """Where each of them is in the list."""
        self._has_slow_start = False

    def enter(self, member: M) -> None:
        self._places[member] = len(self._rotation)
        self._rotation.append(member)

    def leave(self, member: M) -> None:
        place = self._places.pop(member)
        last = self._rotation.pop()
        if last is not member:
            self._rotation[place] = last
            self._places[last] = place

    def present(self) -> Collection[M]:
        return self._places.keys()

    def set_slow_start(self, slow: Collection[M]) -> None:
        self._has_slow_start = bool(slow)

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        members: Sequence[M] = self._rotation
        if avoid:
            members = _without(members, avoid, self._random)
        count = len(members)
        if count < 2:
            return members[0] if count else None
        first = int(self._random() * count)
        # One of the others: counted from the one after the first.
        second = (first + 1 + int(self._random() * (count - 1))) % count
        one, other = members[first], members[second]
        weight = float(one.weight)
        others = float(other.weight)
        if self._has_slow_start:
            weight, others = weight * one.weight_factor, others * other.weight_factor
        # a/b < c/d without the division.
        difference = one.active * others - other.active * weight
        if difference == 0 and weight != others:
            # Otherwise idle workers would share equally, whatever their weights.
            mine = self._random() * (weight + others) < weight
            return one if mine else other
        return one if difference <= 0 else other


class WeightedRandom(Policy[M]):
    """A random member, by weight."""

    __slots__ = ("_has_slow_start", "_places", "_random", "_tickets")

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._random = random
        self._tickets: list[M] = []
        self._places: dict[M, list[int]] = {}
        """Where the tickets of each member are."""
        self._has_slow_start = False

    def enter(self, member: M) -> None:
        first = len(self._tickets)
        self._places[member] = list(range(first, first + member.weight))
        self._tickets += [member] * member.weight

    def leave(self, member: M) -> None:
        # The last tickets take the places of those that go.
        for place in sorted(self._places.pop(member), reverse=True):
            last = self._tickets.pop()
            if last is not member:
                self._tickets[place] = last
                places = self._places[last]
                places[places.index(len(self._tickets))] = place

    def present(self) -> Collection[M]:
        return self._places.keys()

    def set_slow_start(self, slow: Collection[M]) -> None:
        self._has_slow_start = bool(slow)

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        tickets: Sequence[M] = self._tickets
        if not tickets:
            return None
        if not (avoid or self._has_slow_start):
            return tickets[int(self._random() * len(tickets))]
        if len(tickets) > _FEW:
            for _ in range(_DRAWS):
                ticket = tickets[int(self._random() * len(tickets))]
                # In slow start a ticket counts as often as its weight does.
                if ticket not in avoid and (
                    not self._has_slow_start or self._random() < ticket.weight_factor
                ):
                    return ticket
        tickets = [ticket for ticket in tickets if ticket not in avoid]
        if self._has_slow_start and tickets:
            ends = list(accumulate(ticket.weight_factor for ticket in tickets))
            return tickets[bisect_right(ends, self._random() * ends[-1])]
        return tickets[int(self._random() * len(tickets))] if tickets else None


def _without(members: Sequence[M], avoid: Collection[M], random: Callable[[], float]) -> list[M]:
    """All members but those to avoid; of many, two that are drawn of these."""
    count = len(members)
    if count > _FEW:
        drawn: list[M] = []
        for _ in range(_DRAWS):
            member = members[int(random() * count)]
            if member not in avoid and member not in drawn:
                drawn.append(member)
                if len(drawn) == 2:
                    return drawn
    return [member for member in members if member not in avoid]
