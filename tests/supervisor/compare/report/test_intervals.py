"""A difference is said only if the rounds bear it: a true fifth is, a hundredth is level."""

from random import Random

import pytest

from penstock_supervisor.compare.report.intervals import (
    Interval,
    Verdict,
    independent_ratio,
    is_settled,
    ratio,
    verdict,
)

MARGIN = 0.05


def rounds(true: float, seed: int, count: int = 8, noise: float = 0.03) -> tuple[float, ...]:
    """Values of one subject. The drift of the machine is in `drift`, and the same for all."""
    random = Random(seed)
    return tuple(true * random.lognormvariate(0, noise) for _ in range(count))


def drifting(values: tuple[float, ...], seed: int) -> tuple[float, ...]:
    random = Random(seed)
    return tuple(value * random.lognormvariate(0, 0.2) for value in values)


def verdicts(true: float, *, count: int = 8, noise: float = 0.03) -> list[Verdict]:
    found = []
    for seed in range(60):
        mine = drifting(rounds(100 * true, 2 * seed, count, noise), seed)
        other = drifting(rounds(100, 2 * seed + 1, count, noise), seed)
        found.append(verdict(ratio(mine, other), more_is_better=False, margin=MARGIN))
    return found


def test_a_true_fifth_is_said_and_a_hundredth_is_level() -> None:
    assert set(verdicts(1.2)) == {"worse"}
    assert set(verdicts(1 / 1.2)) == {"better"}
    assert set(verdicts(1.01)) == {"level"}
    assert set(verdicts(1.0)) == {"level"}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("true", [1.0, 1.2])
def test_noise_makes_verdicts_weaker_and_not_wrong(count: int, true: float) -> None:
    found = verdicts(true, count=count, noise=0.15)
    # With one round or two the spread is only guessed.
    allowed = 2 if count >= 5 else 6
    assert found.count("better") <= allowed
    if true == 1.0:
        assert found.count("worse") <= allowed
    assert found.count("level") > 20


def test_a_slower_minute_of_the_machine_is_no_difference() -> None:
    slow = (100.0, 101.0, 300.0, 302.0, 100.5)
    found = ratio(slow, tuple(value * 1.001 for value in slow))
    assert found.low == pytest.approx(found.high)


def test_rounds_of_two_runs_are_not_paired() -> None:
    then, now = (100.0, 200.0, 150.0), (101.0, 201.0, 151.0)
    assert ratio(now, then).high < 1.05
    assert independent_ratio(now, then).high > 1.2


def test_nothing_is_known_of_what_was_not_measured_or_is_zero() -> None:
    for mine, other in (((), (1.0,)), ((1.0,), ()), ((0.0, 1.0), (1.0, 1.0))):
        found = ratio(mine, other)
        assert verdict(found, more_is_better=True, margin=MARGIN) == "level"


def test_the_same_rounds_always_have_the_same_interval() -> None:
    mine, other = rounds(100, 1), rounds(110, 2)
    assert ratio(mine, other) == ratio(mine, other)
    inverse = ratio(other, mine)
    assert ratio(mine, other).low == pytest.approx(1 / inverse.high, rel=0.02)


@pytest.mark.parametrize(
    ("interval", "settled"),
    [
        (Interval(1.2, 1.4), True),
        (Interval(0.99, 1.02), True),
        (Interval(0.98, 1.2), False),
        (Interval(0.7, 0.96), False),
        # So narrow that more rounds would find the margin itself.
        (Interval(1.04, 1.06), True),
        (Interval(0.0, float("inf")), False),
    ],
)
def test_more_rounds_are_wanted_while_an_interval_lies_across_the_margin(
    interval: Interval, settled: bool
) -> None:
    assert is_settled(interval, MARGIN) == settled
