"""Latencies are counted in buckets within one per cent, and merging them loses no request."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.compare.report import histogram

LATENCIES = st.floats(min_value=1e-6, max_value=99.9)


@given(LATENCIES)
def test_a_value_comes_back_as_the_end_of_its_bucket_within_one_per_cent(seconds: float) -> None:
    found = histogram.upper(histogram.index(seconds))
    assert seconds <= found <= seconds * 1.01


@given(st.floats(min_value=0, max_value=200), st.floats(min_value=0, max_value=200))
def test_a_longer_latency_is_never_in_an_earlier_bucket(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert histogram.index(low) <= histogram.index(high)


def test_every_bucket_begins_where_the_one_before_ends() -> None:
    last = histogram.index(100)
    ends = [histogram.upper(n) * (1 + 1e-12) for n in range(last)]
    assert [histogram.index(end) for end in ends] == list(range(1, last + 1))


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.9e-6])
def test_a_latency_below_a_microsecond_is_in_the_first_bucket(seconds: float) -> None:
    assert histogram.index(seconds) == 0
    assert histogram.upper(0) == 1e-6


@pytest.mark.parametrize("seconds", [100.0, 5000.0, float("inf")])
def test_a_latency_above_100_s_is_in_the_last_bucket(seconds: float) -> None:
    assert histogram.index(seconds) == histogram.index(100)


@given(st.lists(LATENCIES, min_size=1), st.floats(min_value=0, max_value=1))
def test_a_percentile_is_the_value_at_its_rank(values: list[float], share: float) -> None:
    counts = histogram.merge({histogram.index(value): 1} for value in values)
    rank = max(1, ceil(share * len(values)))
    exact = sorted(values)[rank - 1]
    assert histogram.percentile(counts, share) == histogram.upper(histogram.index(exact))


def test_every_percentile_of_an_empty_histogram_is_zero() -> None:
    assert histogram.percentile({}, 0.5) == 0.0


def test_merged_histograms_count_everything_of_each() -> None:
    assert histogram.merge([{1: 2, 7: 1}, {}, {7: 4}]) == {1: 2, 7: 5}
    assert histogram.merge([]) == {}
