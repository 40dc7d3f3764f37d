"""Jain's index shows how even a split is, whatever the unit and the number of shares."""

import math

import pytest

from penstock_supervisor.observability.fairness import jain


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_the_index_of_equal_shares_is_1(n: int) -> None:
    assert jain([13.0] * n) == pytest.approx(1.0)


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_if_one_has_everything_the_index_is_one_in_n(n: int) -> None:
    assert jain([5.0] + [0.0] * (n - 1)) == pytest.approx(1 / n)


@pytest.mark.parametrize("k", range(1, 11))
def test_the_index_of_k_equal_shares_among_n_is_k_in_n(k: int) -> None:
    assert jain([3] * k + [0] * (10 - k)) == pytest.approx(k / 10)


def test_the_unit_makes_no_difference() -> None:
    shares = [1.0, 2.0, 3.0, 10.0]
    assert jain([1e-3 * share for share in shares]) == pytest.approx(jain(shares))


@pytest.mark.parametrize("shares", [[], [0], [0.0, 0.0, 0.0]])
def test_without_any_share_there_is_no_index(shares: list[float]) -> None:
    assert jain(shares) is None


@pytest.mark.parametrize("scale", [1e-300, 5e-324, 1e300, 2.0**63])
def test_no_share_is_too_large_or_too_small(scale: float) -> None:
    ratio = jain([scale, scale, scale])
    assert ratio is not None
    assert math.isclose(ratio, 1.0)
