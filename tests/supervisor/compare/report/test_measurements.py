"""Rounds become figures; nothing is estimated, and missing measurements stay empty."""

from typing import Any

import pytest

from penstock_supervisor.compare.report import histogram
from penstock_supervisor.compare.report.measurements import (
    Measurements,
    ResourceSample,
    Round,
    held_connections,
    jain,
    summary,
)
from penstock_supervisor.compare.report.result import FaultResult


def one_round(**more: Any) -> Round:
    counts = {histogram.index(0.001): 900, histogram.index(0.1): 100}
    usual: dict[str, Any] = {
        "requests": 1000, "errors": {}, "seconds": 2.0, "histogram": counts, "worst_s": 0.1,
        "limited": False, "cpu_s": {"proxy": 0.02, "workers": 0.1},
    }  # fmt: skip
    return Round(**{**usual, **more})


def test_requests_that_were_answered_after_the_time_are_no_throughput() -> None:
    found = summary([one_round(late=200)])
    assert found.requests == 1000
    assert found.requests_per_s.median == 400


def test_a_load_has_a_value_for_each_round_and_the_sum_of_all_rounds() -> None:
    found = summary([one_round(), one_round(seconds=4.0, errors={"reset": 2}, worst_s=0.3)])
    assert found.requests == 2000
    assert found.requests_per_s.values == (500.0, 250.0)
    assert found.errors == {"reset": 2}
    assert found.worst_s == 0.3
    assert sum(found.histogram.values()) == 2000


def test_latencies_are_those_of_each_round() -> None:
    found = summary([one_round()])
    assert found.p50_s.median == pytest.approx(0.001, rel=0.02)
    assert found.p99_s.median == pytest.approx(0.1, rel=0.02)


def test_cpu_time_is_reported_per_request_for_each_role() -> None:
    found = summary([one_round(), one_round(cpu_s={"proxy": 0.04, "workers": 0.1})])
    assert found.cpu_us["proxy"].values == pytest.approx((20.0, 40.0))
    assert found.cpu_us["workers"].values == pytest.approx((100.0, 100.0))


def test_a_round_without_a_response_has_no_latency_and_no_cpu_time() -> None:
    bad = one_round(requests=0, histogram={}, errors={"connect": 5}, worst_s=0.0)
    alone = summary([bad])
    assert alone.requests_per_s.values == (0.0,)
    assert alone.p50_s.values == (0.0,)
    assert alone.cpu_us == {}
    both = summary([bad, one_round()])
    assert len(both.p50_s.values) == 1
    assert both.requests_per_s.values == (0.0, 500.0)


def test_a_load_was_limited_if_one_round_was() -> None:
    assert not summary([one_round(), one_round()]).limited
    assert summary([one_round(), one_round(limited=True)]).limited


def test_the_split_is_summed_over_rounds_and_rated_by_jains_index() -> None:
    measurements = Measurements("shared", "shared", "http")
    measurements.add_split("connections", {"0": 10, "10": 0, "2": 5})
    measurements.add_split("connections", {"0": 10, "10": 20, "2": 15})
    subject = measurements.subject()
    assert list(subject.split.items()) == [("0", 20), ("2", 20), ("10", 20)]
    assert subject.jain == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shares", "ratio"), [((5, 5), 1.0), ((10, 0, 0, 0), 0.25), ((), None), ((0, 0), None)]
)
def test_jains_index_is_1_for_equal_shares_and_1_in_n_if_one_has_everything(
    shares: tuple[int, ...], ratio: float | None
) -> None:
    assert jain(shares) == ratio


def test_the_cost_of_a_held_connection_is_what_it_added() -> None:
    found = held_connections(
        [
            ResourceSample(0, {"proxy": 10, "workers": 20}, {"proxy": 1000, "workers": 0}, 1),
            ResourceSample(10, {"proxy": 30, "workers": 30}, {"proxy": 2000, "workers": 0}, 11),
            ResourceSample(
                100, {"proxy": 210, "workers": 120}, {"proxy": 11000, "workers": 0}, 101
            ),
        ]
    )
    assert found is not None
    assert found.connections == 100
    assert found.fds == {"proxy": 2.0, "workers": 1.0}
    assert found.memory == {"proxy": 100.0, "workers": 0.0}
    assert found.ephemeral_ports == 1.0
    assert found.curve[1] == (10, {"proxy": 30, "workers": 30})


def test_a_decrease_of_descriptors_or_ports_counts_as_zero() -> None:
    found = held_connections(
        [
            ResourceSample(0, {"proxy": 50}, {"proxy": 9}, 40),
            ResourceSample(10, {"proxy": 40}, {"proxy": 8}, 0),
        ]
    )
    assert found is not None
    assert found.fds == {"proxy": 0.0}
    assert found.ephemeral_ports == 0.0


def test_without_held_connections_there_is_no_result() -> None:
    assert held_connections([ResourceSample(0, {}, {}, 0)]) is None


def test_results_that_were_not_measured_are_empty_and_a_note_appears_once() -> None:
    measurements = Measurements("127.0.0.1:80")
    measurements.note("gone")
    measurements.note("gone")
    subject = measurements.subject()
    assert subject.notes == ("gone",)
    assert (subject.loads, subject.held, subject.split, subject.jain, subject.faults) == (
        {}, None, {}, None, {},
    )  # fmt: skip


def test_a_subject_has_all_its_loads_and_faults() -> None:
    measurements = Measurements("handoff", "handoff", "http")
    measurements.add_round("keepalive", one_round())
    measurements.faults["kill"] = FaultResult(
        requests=5, failed=1, full_capacity_s=None, worst_s=1.0
    )
    subject = measurements.subject()
    assert (subject.name, subject.scheme, subject.mode) == ("handoff", "handoff", "http")
    assert set(subject.loads) == {"keepalive"}
    assert set(subject.faults) == {"kill"}
    assert measurements.throughput("keepalive") == 500.0
    assert measurements.throughput("rate") == 0.0
