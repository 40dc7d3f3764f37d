"""A proxy's metrics are exact, have closed sets of labels, and can be added."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.errors import FAULTS, WORKER_RESET
from penstock_proxy.metrics import (
    BUCKETS_S,
    CHECK_RESULTS,
    METHODS,
    OTHER,
    REJECTIONS,
    TABLE,
    RemovedWorkers,
    Series,
    ServiceCounters,
    merge,
    snapshot,
)
from penstock_worker.telemetry.counters import Histogram


@dataclass(eq=False, frozen=True)
class Worker:
    """A member of the pool, as far as its counts are concerned."""

    slot: int


def series_of(counters: ServiceCounters, *, dropped: int = 0) -> Series:
    answer = snapshot({"web": counters}, fds={"client": 2}, log_dropped={"web": dropped})
    series: Series = json.loads(json.dumps(answer))["services"]["web"]
    return series


def test_a_bucket_holds_its_own_bound() -> None:
    histogram = Histogram()
    for bound in BUCKETS_S:
        histogram.observe(bound)
    assert histogram.counts == [1] * len(BUCKETS_S) + [0]


@given(st.lists(st.floats(0, 1000)))
def test_every_observation_is_counted_once_and_summed(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert histogram.sum_s == pytest.approx(sum(values))
    for index, bound in enumerate(BUCKETS_S):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)


def test_the_table_and_the_snapshot_name_the_same_metrics() -> None:
    assert [metric.name for metric in TABLE] == list(series_of(ServiceCounters()))


def test_every_sample_has_a_value_for_each_label() -> None:
    counters = ServiceCounters()
    counters.requests["GET", 200, Worker(0)] += 1
    counters.worker_connections[Worker(1)] += 1
    counters.checks[1, "ok"] += 1
    series = series_of(counters)
    for metric in TABLE:
        assert metric.labels[0] == "service"
        for labels, value in series[metric.name].items():
            assert len(labels.split(" ")) == max(1, len(metric.labels) - 1), metric.name
            assert isinstance(value, list) is (metric.kind == "histogram")


def test_counters_end_in_total_and_nothing_else_does() -> None:
    for metric in TABLE:
        assert metric.name.endswith("_total") is (metric.kind == "counter")
        assert metric.help.endswith(".")


def test_requests_are_counted_by_slot_method_and_code() -> None:
    counters = ServiceCounters()
    counters.requests["GET", 200, Worker(0)] += 3
    counters.requests["GET", 503, None] += 1
    counters.requests[OTHER, 0, Worker(1)] += 1
    assert series_of(counters)["penstock_requests_total"] == {
        "0 GET 200": 3, " GET 503": 1, "1 other none": 1,
    }  # fmt: skip


def test_a_worker_and_its_successor_are_counted_apart_and_shown_as_one_slot() -> None:
    counters, old, new = ServiceCounters(), Worker(2), Worker(2)
    for worker, count in ((old, 3), (new, 4)):
        counters.requests["GET", 200, worker] += count
        counters.worker_connections[worker] += count
    assert (counters.by_worker()[old], counters.by_worker()[new]) == (3, 4)
    series = series_of(counters)
    assert series["penstock_requests_total"] == {"2 GET 200": 7}
    assert series["penstock_worker_connections_total"] == {"2": 7}


def test_a_removed_worker_stays_counted_for_its_slot_and_is_forgotten_itself() -> None:
    counters, stays = ServiceCounters(), Worker(0)
    counters.requests["GET", 503, None] += 1
    counters.requests["GET", 200, stays] += 1
    counters.worker_connections[stays] += 1
    for _ in range(100):
        removed = Worker(2)
        counters.requests["GET", 200, removed] += 1
        counters.worker_connections[removed] += 1
        counters.durations[removed].observe(0.02)
        counters.keep_only([stays])
        # It ends after its worker was removed.
        counters.requests["PUT", 200, removed] += 1
        counters.worker_connections[removed] += 1
    counters.keep_only([stays])
    assert series_of(counters)["penstock_requests_total"] == {
        " GET 503": 1, "0 GET 200": 1, "2 GET 200": 100, "2 PUT 200": 100,
    }  # fmt: skip
    assert series_of(counters)["penstock_worker_connections_total"] == {"0": 1, "2": 200}
    assert set(counters.by_worker()) == {None, stays, RemovedWorkers(2)}
    assert set(counters.durations) == {None}
    assert sum(counters.total().counts) == 100


def test_unregistered_codes_share_one_label() -> None:
    counters = ServiceCounters()
    for status in range(600, 1000):
        counters.requests["GET", status, Worker(0)] += 1
    assert series_of(counters)["penstock_requests_total"] == {"0 GET other": 400}


def test_unknown_reasons_kinds_and_results_share_one_label() -> None:
    counters = ServiceCounters()
    for word in ("a", "b"):
        counters.rejected[word] += 1
        counters.errors[word] += 1
        counters.checks[0, word] += 1
    counters.errors[WORKER_RESET.kind] += 4
    series = series_of(counters)
    assert series["penstock_rejected_total"] == {**dict.fromkeys(REJECTIONS, 0), OTHER: 2}
    assert set(series["penstock_connection_errors_total"]) == {f.kind for f in FAULTS} | {OTHER}
    assert series["penstock_connection_errors_total"][WORKER_RESET.kind] == 4
    assert series["penstock_health_checks_total"] == {"0 other": 2}


def test_errors_and_rejections_exist_before_they_happen() -> None:
    series = series_of(ServiceCounters())
    assert series["penstock_connection_errors_total"] == dict.fromkeys(
        (fault.kind for fault in FAULTS), 0
    )
    assert series["penstock_rejected_total"] == dict.fromkeys(REJECTIONS, 0)


def test_the_figures_of_the_process_are_beside_those_of_its_services() -> None:
    answer = snapshot({}, fds={"client": 2}, loop_lag=(1, 0.5), log_dropped={})
    assert answer == {"fds": {"client": 2}, "loop_lag": [1, 0.5], "tasks": 0, "services": {}}


def test_dropped_log_lines_are_counted_and_default_to_zero() -> None:
    assert series_of(ServiceCounters(), dropped=7)["penstock_access_log_lines_dropped_total"] == {
        "": 7
    }
    answer = snapshot({"web": ServiceCounters()}, fds={}, log_dropped={})
    assert answer["services"]["web"]["penstock_access_log_lines_dropped_total"] == {"": 0}


def test_a_service_that_saw_everything_fits_into_one_message() -> None:
    counters = ServiceCounters()
    for slot in range(-1, 8):
        worker = None if slot < 0 else Worker(slot)
        for method in (*METHODS, OTHER):
            for status in range(1000):
                counters.requests[method, status, worker] = 1 << 40
        for result in CHECK_RESULTS:
            counters.checks[slot, result] = 1 << 40
    assert len(json.dumps(series_of(counters))) < 1 << 18


def test_counters_of_several_proxies_are_added() -> None:
    one, two = ServiceCounters(), ServiceCounters()
    one.requests["GET", 200, Worker(0)] += 1
    two.requests["GET", 200, Worker(0)] += 2
    two.requests["PUT", 201, Worker(1)] += 5
    one.durations[None].observe(0.0001)
    two.durations[None].observe(100.0)
    both = merge([series_of(one), series_of(two)])
    assert both["penstock_requests_total"] == {"0 GET 200": 3, "1 PUT 201": 5}
    total = both["penstock_request_duration_seconds"]["total"]
    assert total == [1] + [0] * (len(BUCKETS_S) - 1) + [1, pytest.approx(100.0001)]


def test_merging_changes_none_of_its_parts() -> None:
    part = series_of(ServiceCounters())
    before = json.dumps(part)
    merge([part, part])
    assert json.dumps(part) == before


@pytest.mark.parametrize(("left", "right"), [([1, 2], 3), (3, [1, 2])])
def test_a_histogram_and_a_number_are_not_added(left: object, right: object) -> None:
    with pytest.raises(TypeError):
        merge([{"m": {"": left}}, {"m": {"": right}}])  # type: ignore[dict-item]
