"""Labels stay in closed sets, and histograms count every observation exactly once."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_worker.telemetry.counters import (
    BUCKETS_S,
    METHODS,
    OTHER,
    Histogram,
    RequestCounters,
    code,
    connection_series,
    flat,
    request_series,
)

SECONDS = st.floats(min_value=0, max_value=1000)


@given(st.lists(SECONDS))
def test_every_observation_is_in_one_bucket(seconds: list[float]) -> None:
    histogram = Histogram()
    for one in seconds:
        histogram.observe(one)
    *counts, total = flat(histogram)
    assert len(counts) == len(BUCKETS_S) + 1
    assert sum(counts) == len(seconds)
    assert total == histogram.sum_s
    for bound, index in zip(BUCKETS_S, range(len(BUCKETS_S)), strict=True):
        assert sum(counts[: index + 1]) == sum(one <= bound for one in seconds)


@given(st.lists(st.tuples(st.text(), st.integers(), SECONDS)))
def test_clients_cannot_create_labels(requests: list[tuple[str, int, float]]) -> None:
    counters = RequestCounters()
    for method, status, seconds in requests:
        counters.ended(method, status, seconds)
    samples = request_series(counters, "3")["penstock_requests_total"]
    assert sum(value for value in samples.values() if isinstance(value, int)) == len(requests)
    for labels in samples:
        slot, verb, status_label = labels.split(" ")
        assert slot == "3"
        assert verb in METHODS | {OTHER}
        assert status_label in {OTHER, "none"} | {code(number) for number in range(1, 1000)}
    assert len(counters.requests) <= len(METHODS | {OTHER}) * 1000


def test_status_codes_that_are_not_registered_count_as_other() -> None:
    assert [code(status) for status in (200, 404, 299, 999, 0)] == [
        "200", "404", OTHER, OTHER, "none"
    ]  # fmt: skip


def test_connections_are_counted_for_the_service_and_for_the_slot() -> None:
    counters = RequestCounters()
    counters.connections, counters.active = 5, 2
    assert connection_series(counters, "1") == {
        "penstock_connections_total": {"": 5},
        "penstock_connections_active": {"": 2},
        "penstock_worker_connections_total": {"1": 5},
    }
