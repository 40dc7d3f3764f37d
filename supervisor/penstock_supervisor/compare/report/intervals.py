"""Says whether one subject is better than another, or whether the rounds do not bear it.

Owns the only rule for "better", "worse" and "level". Subjects take turns, so their values of one
round were measured within seconds of each other, under the same disturbances. The ratio of the
two is taken round by round, and the median of these ratios gets an interval by a bootstrap over
the rounds (Efron, 1979). A difference is said if the whole interval is beyond a margin: what is
too small to matter, or smaller than what the machine itself varies by.

The bootstrap draws from a sequence of its own that is always the same, so a result says the same
today and tomorrow. Must not know what is measured. No I/O, no clock, no randomness.

See docs/decisions/0022-comparison.md.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import exp, inf, log, sqrt
from statistics import median
from typing import Final, Literal, NamedTuple

Verdict = Literal["better", "worse", "level"]

_RESAMPLES: Final = 400
_TAIL: Final = 0.025
"""Of the resamples, on each side of the interval."""
_FEW_ROUNDS: Final = 2.4
"""Percentiles of a bootstrap are too close to each other if the rounds are few. They are moved
apart by 1 + this / (n - 1): about what Student's t differs by from the normal distribution."""
_ONE_ROUND: Final = 1.5
"""A factor: what one round or two may be wrong by, because they have no spread."""


class Interval(NamedTuple):
    """Of the ratio of one subject's values to another's: 1 is equal."""

    low: float
    high: float


def ratio(mine: Sequence[float], others: Sequence[float]) -> Interval:
    """The interval of mine / others. Paired if there are as many values, as of the same rounds."""
    if not mine or not others or min(*mine, *others) <= 0:
        return Interval(0.0, inf)
    ours, theirs = [log(one) for one in mine], [log(one) for one in others]
    if len(ours) == len(theirs):
        logs = [one - other for one, other in zip(ours, theirs, strict=True)]
        middle, low, high = median(logs), *_bootstrap(logs)
    else:
        # Runs of their own: each has its own spread.
        (low_a, high_a), (low_b, high_b) = _bootstrap(ours), _bootstrap(theirs)
        a, b = median(ours), median(theirs)
        middle = a - b
        low = middle - sqrt((a - low_a) ** 2 + (high_b - b) ** 2)
        high = middle + sqrt((high_a - a) ** 2 + (b - low_b) ** 2)
    return Interval(exp(min(low, middle)), exp(max(high, middle)))


def independent_ratio(mine: Sequence[float], others: Sequence[float]) -> Interval:
    """The same for values of two runs, whose rounds have nothing to do with each other."""
    # One more value than the other side has makes them unpaired.
    middle = median(others) if others else 0.0
    return ratio(mine, (*others, middle) if len(mine) == len(others) else others)


def verdict(interval: Interval, *, more_is_better: bool, margin: float) -> Verdict:
    """Of the first subject. `margin` is a share: 0.05 for five per cent."""
    more = interval.low > 1 + margin
    less = interval.high < 1 / (1 + margin)
    if more == less:
        return "level"
    return "better" if more == more_is_better else "worse"


def is_settled(interval: Interval, margin: float) -> bool:
    """Would more rounds hardly change the verdict?

    Yes, if the interval is wholly beyond the margin or wholly within it, or is so narrow that
    the true value lies at the margin.
    """
    edges = (1 + margin, 1 / (1 + margin))
    across = [edge for edge in edges if interval.low <= edge <= interval.high]
    return not across or interval.high / max(interval.low, 1e-12) < 1 + margin / 2


def _bootstrap(logs: Sequence[float]) -> tuple[float, float]:
    """The interval of the median of these logarithms."""
    count, middle = len(logs), median(logs)
    if count < 3:
        return min(logs) - log(_ONE_ROUND), max(logs) + log(_ONE_ROUND)
    ordered = sorted(logs)
    medians = sorted(_median_at(ordered, ranks) for ranks in _resamples(count))
    low, high = medians[int(_TAIL * _RESAMPLES)], medians[-1 - int(_TAIL * _RESAMPLES)]
    wider = 1 + _FEW_ROUNDS / (count - 1)
    return middle - (middle - low) * wider, middle + (high - middle) * wider


def _median_at(ordered: Sequence[float], ranks: tuple[int, int]) -> float:
    return (ordered[ranks[0]] + ordered[ranks[1]]) / 2


@lru_cache(maxsize=64)
def _resamples(count: int) -> tuple[tuple[int, int], ...]:
    """Of each resample, the ranks of the values that its median lies between.

    The median of a resample depends on the ranks that were drawn and not on the values, so one
    list of draws serves all figures.
    """
    state, found = 0x2545F491, []
    for _ in range(_RESAMPLES):
        drawn = []
        for _ in range(count):
            # A linear congruential generator; Numerical Recipes' constants, and its high bits.
            state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
            drawn.append((state >> 8) * count >> 24)
        drawn.sort()
        found.append((drawn[(count - 1) // 2], drawn[count // 2]))
    return tuple(found)
