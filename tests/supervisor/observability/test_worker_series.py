"""A worker's metrics cannot count for others, make a page grow, or break it."""

import json
import math
from typing import Any

import pytest

from penstock_proxy import metrics
from penstock_proxy.metrics import BUCKETS_S, METHODS
from penstock_supervisor.observability.worker_series import (
    COUNTED_BY_WORKERS,
    OF_WORKERS,
    as_number,
    sanitized,
    without_gauges,
)

BUCKETS = len(BUCKETS_S) + 1


def everything(slot: int = 0) -> dict[str, Any]:
    return {
        "penstock_connections_total": {"": 5},
        "penstock_connections_active": {"": 2},
        "penstock_worker_connections_total": {str(slot): 5},
        "penstock_requests_total": {f"{slot} GET 200": 7, f"{slot} POST none": 1},
        "penstock_request_duration_seconds": {"total": [*range(BUCKETS), 1.5]},
        "penstock_worker_uncaught_exceptions_total": {str(slot): 4},
    }


UNCAUGHT = {"penstock_worker_uncaught_exceptions_total": {"0": 4}}


def test_permitted_series_of_a_worker_are_kept() -> None:
    assert sanitized(everything(), 0, "shared") == everything()
    assert sanitized(json.loads(json.dumps(everything())), 0, "reuseport") == everything()


def test_metrics_that_the_proxy_counts_are_not_taken_from_workers() -> None:
    assert sanitized(everything(), 0, "ports") == UNCAUGHT
    assert set(sanitized(everything(), 0, "handoff")) == {
        "penstock_requests_total", "penstock_request_duration_seconds", *UNCAUGHT,
    }  # fmt: skip
    assert sanitized(everything(), 0, "no such scheme") == {}


def test_every_metric_that_workers_count_is_defined() -> None:
    known = {metric.name for metric in (*metrics.TABLE, *OF_WORKERS)}
    assert all(names <= known for names in COUNTED_BY_WORKERS.values())


@pytest.mark.parametrize("name", ["x", "", "penstock_build_info", "penstock_health_checks_total"])
def test_other_metrics_are_left_out(name: str) -> None:
    assert sanitized({name: {"": 1}, **everything()}, 0, "shared") == everything()


def test_a_worker_reports_only_for_its_own_slot() -> None:
    series = sanitized(everything(slot=9), 3, "shared")
    assert series["penstock_worker_connections_total"] == {"3": 5}
    assert set(series["penstock_requests_total"]) == {"3 GET 200", "3 POST none"}


def test_unknown_label_values_share_one() -> None:
    reported = {"0 GET 200": 1, "0 BREW 200": 2, "0 MAKE 200": 4, "0 GET 999": 8, "0 GET x": 16}
    name = "penstock_requests_total"
    assert sanitized({name: reported}, 0, "shared")[name] == {
        "0 GET 200": 1, "0 other 200": 6, "0 GET other": 24,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("penstock_connections_total", "0"),
        ("penstock_connections_total", " "),
        ("penstock_worker_connections_total", "0 1"),
        ("penstock_requests_total", "0 GET"),
        ("penstock_requests_total", "0 GET 200 x"),
        ("penstock_requests_total", ""),
        ("penstock_request_duration_seconds", "dinner"),
        ("penstock_request_duration_seconds", ""),
    ],
)
def test_series_with_the_wrong_labels_are_left_out(name: str, labels: str) -> None:
    value = [0] * (BUCKETS + 1) if name.endswith("seconds") else 1
    assert sanitized({name: {labels: value}}, 0, "shared") == {name: {}}


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, "1", [], {}, [1], -1, -0.5, math.nan, math.inf, -math.inf, 10**400,
        2.0**64, 1e308,
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_is_no_number_is_left_out(value: object) -> None:
    reported = {"penstock_requests_total": {"0 GET 200": value}}
    assert sanitized(reported, 0, "shared") == {"penstock_requests_total": {}}


@pytest.mark.parametrize(
    "value",
    [
        1, None, "x", [], [0], [0] * BUCKETS, [0] * (BUCKETS + 2), [*([0] * BUCKETS), -1],
        [*([0] * BUCKETS), math.nan], ["0"] * (BUCKETS + 1), [[0]] * (BUCKETS + 1),
        [True] * (BUCKETS + 1), {"0": 1},
    ],
    ids=str,
)  # fmt: skip
def test_an_invalid_histogram_is_left_out(value: object) -> None:
    reported = {"penstock_request_duration_seconds": {"total": value}}
    assert sanitized(reported, 0, "shared") == {"penstock_request_duration_seconds": {}}


@pytest.mark.parametrize(
    "reported",
    [
        None, 1, "x", [], [1], True, {"penstock_requests_total": None},
        {"penstock_requests_total": [1]}, {"penstock_requests_total": "0 GET 200"},
    ],
)  # fmt: skip
def test_a_report_without_series_is_empty(reported: object) -> None:
    assert not any(sanitized(reported, 0, "shared").values())


def test_the_size_of_a_page_is_bounded_whatever_a_worker_reports() -> None:
    reported = {f"0 M{i} {i}": 1 for i in range(100_000)}
    samples = sanitized({"penstock_requests_total": reported}, 0, "shared")[
        "penstock_requests_total"
    ]
    assert 0 < len(samples) <= (len(METHODS) + 1) * 70


def test_sums_of_the_largest_values_stay_finite() -> None:
    reported = {"penstock_requests_total": {"0 GET 200": 2.0**63}}
    one = sanitized(reported, 0, "shared")
    many = metrics.merge([one] * 10_000)["penstock_requests_total"]["0 GET 200"]
    assert as_number(many) is not None


def test_only_the_counters_of_an_ended_process_remain() -> None:
    left = everything()
    del left["penstock_connections_active"]
    assert without_gauges(sanitized(everything(), 0, "shared")) == left
