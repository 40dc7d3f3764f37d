"""The order of turns under weighted round robin.

Owns: how turns of unequal weights are mixed, and which place of a new order corresponds to a
place of the old one when members come or go. Must not know: members, or who is in the rotation.
No I/O, no clock.
"""

from collections.abc import Sequence
from math import gcd
from typing import TypeVar

M = TypeVar("M")


def schedule(weights: Sequence[int]) -> list[int]:
    """One whole round of turns as indexes: each as often as its weight, well mixed.

    nginx's smooth weighted round robin: [5, 1, 1] becomes 0 0 1 0 2 0 0, not five in a row.
    """
    divisor = gcd(*weights) or 1
    total = sum(weights) // divisor
    credit = [0] * len(weights)
    turns = []
    for _ in range(total):
        credit = [have + weight // divisor for have, weight in zip(credit, weights, strict=True)]
        richest = max(range(len(credit)), key=credit.__getitem__)
        credit[richest] -= total
        turns.append(richest)
    return turns


def same_turn(before: Sequence[M], place: int, now: Sequence[M]) -> int:
    """The place in the new schedule that corresponds to a place in the old one.

    It is the same member's turn there, and the member has had as many turns before. One schedule
    may be several rounds of the other, because weights are relative.
    """
    member = before[place]
    turns = [place for place, one in enumerate(now) if one is member]
    return turns[before[:place].count(member) % len(turns)]
