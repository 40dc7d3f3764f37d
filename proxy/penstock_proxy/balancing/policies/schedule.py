"""The order of turns under weighted round robin.

Owns: how turns of unequal weights are mixed, and which place of a new order corresponds to a
place of the old one when members come or go. Must not know: members, or who is in the rotation.
No I/O, no clock.
"""

from collections.abc import Generator, Sequence
from math import gcd
from typing import Final, TypeVar

M = TypeVar("M")

_TURNS: Final = 16
"""Of one step."""


def schedule(weights: Sequence[int]) -> list[int]:
    """One whole round of turns as indexes: each as often as its weight, well mixed."""
    steps = scheduling(weights)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            turns: list[int] = end.value
            return turns


def scheduling(weights: Sequence[int]) -> Generator[None, None, list[int]]:
    """`schedule`, some turns in each step; returns it.

    nginx's smooth weighted round robin: [5, 1, 1] becomes 0 0 1 0 2 0 0, not five in a row. There
    all have a credit, which grows by their weight with each turn, and who has most pays for the
    turn with the sum of all weights. Members of one weight are at it in their order, again and
    again. So only the next one of each weight is compared, and a thousand members of one weight
    are a thousand steps and not a million.
    """
    divisor = gcd(*weights) or 1
    total = sum(weights) // divisor
    alike: dict[int, list[int]] = {}
    for index, weight in enumerate(weights):
        alike.setdefault(weight // divisor, []).append(index)
    if len(alike) == 1:
        # As it is nearly always, and whenever one of a thousand comes or goes.
        return list(range(total))
    had = dict.fromkeys(alike, 0)
    """By weight: turns that all of that weight have had."""
    turns = []
    for turn in range(1, total + 1):
        richest, most = (-1, 0), -1
        for weight, members in alike.items():
            rounds, place = divmod(had[weight], len(members))
            # The credit; of equal ones the first is taken.
            order = (turn * weight - rounds * total, -members[place])
            if most < 0 or order > richest:
                richest, most = order, weight
        had[most] += 1
        turns.append(-richest[1])
        if turn % _TURNS == 0:
            yield
    return turns


def same_turn(before: Sequence[M], place: int, now: Sequence[M]) -> int:
    """The place in the new schedule that corresponds to a place in the old one.

    It is the same member's turn there, and the member has had as many turns before. One schedule
    may be several rounds of the other, because weights are relative.
    """
    member = before[place]
    turns = [place for place, one in enumerate(now) if one is member]
    return turns[before[:place].count(member) % len(turns)]
