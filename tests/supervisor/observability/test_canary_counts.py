"""Each process' requests are found under every scheme, and those of an earlier process are not."""

from types import SimpleNamespace
from typing import Any

import pytest

from penstock_supervisor.observability.canary_counts import canary_counts
from penstock_supervisor.observability.worker_series import sanitized
from penstock_supervisor.rollout.canary import NOTHING, Counts
from penstock_supervisor.snapshot import ProcessView
from penstock_worker.telemetry.counters import RequestCounters, request_series

BUCKETS = [1, 2, *[0] * 14, 3]


def services(scheme: str) -> dict[str, Any]:
    return {"web": {"scheme": scheme, "mode": "http", "listen": "", "workers": ()}}


def process(number: int, series: Any, slot: int = 0, scheme: str = "shared") -> ProcessView:
    """What is known of a process that reports this."""
    known = sanitized(series, slot, scheme)
    return ProcessView("current", "ready", number + 1000, "", 1.0, None, "", number, known)


def series_of(slot: int, **statuses: int) -> dict[str, Any]:
    counters = RequestCounters()
    for status, count in statuses.items():
        for _ in range(count):
            counters.ended("GET", int(status.removeprefix("s")), 0.0001)
    return request_series(counters, str(slot))


def test_under_ports_the_proxies_count_each_member(made: SimpleNamespace) -> None:
    def proxy(slot: int, *rows: dict[str, Any]) -> Any:
        return made.proxy(slot=slot, pid=100 + slot, stats=made.proxy_stats(web=list(rows)))

    old = made.row(0, member=0, requests=70, failed=1, durations=BUCKETS)
    new = made.row(0, member=5, requests=7, failed=7, durations=[])
    snapshot = made.snapshot(proxy(0, old, new), proxy(1, old), made.worker(0))
    assert canary_counts(snapshot, "web") == {
        (0, 100): Counts(70, 1, tuple(BUCKETS)),
        (5, 100): Counts(7, 7, NOTHING.durations),
        (0, 101): Counts(70, 1, tuple(BUCKETS)),
    }


@pytest.mark.parametrize("scheme", ["handoff", "shared", "reuseport"])
def test_elsewhere_each_process_counts_its_own_also_one_beside_another(
    made: SimpleNamespace, scheme: str
) -> None:
    old, new = series_of(1, s200=5, s503=2, s0=1), series_of(1, s500=3)
    worker = made.worker(
        1, number=10, carryover=series_of(1, s500=100),
        processes=(process(10, old, 1, scheme), process(12, new, 1, scheme)),
    )  # fmt: skip
    snapshot = made.snapshot(made.proxy(), worker, services=services(scheme))
    assert canary_counts(snapshot, "web") == {
        (10, 1010): Counts(8, 2, (8, *NOTHING.durations[1:])),
        (12, 1012): Counts(3, 3, (3, *NOTHING.durations[1:])),
    }


def test_of_a_program_that_counts_nothing_the_connections_it_did_not_take_are_known(
    made: SimpleNamespace,
) -> None:
    row = made.row(0, member=4, requests=20, failed=3, durations=[])
    proxy = made.proxy(pid=7, stats=made.proxy_stats(web=[row]))
    snapshot = made.snapshot(proxy, made.worker(0), services=services("handoff"))
    assert canary_counts(snapshot, "web") == {(4, 7): Counts(20, 3, NOTHING.durations)}


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_where_nobody_counts_there_is_nothing(made: SimpleNamespace, scheme: str) -> None:
    silent = made.worker(0, processes=(process(0, None)._replace(series=None),))
    snapshot = made.snapshot(silent, services=services(scheme))
    assert canary_counts(snapshot, "web") == {}


@pytest.mark.parametrize("hostile", [None, {}, 3, {"penstock_requests_total": 1}])
def test_a_worker_can_report_what_it_likes(made: SimpleNamespace, hostile: Any) -> None:
    worker = made.worker(0, processes=(process(0, hostile),))
    assert canary_counts(made.snapshot(worker, services=services("shared")), "web") == {}


def test_a_forged_number_does_no_harm(made: SimpleNamespace) -> None:
    forged = {"penstock_requests_total": {"0 GET 500": 1e300, "x": -1}}
    worker = made.worker(0, processes=(process(0, forged),))
    counts = canary_counts(made.snapshot(worker, services=services("shared")), "web")
    assert list(counts.values()) == [NOTHING]
