"""Requests and failures are counted once each, under every scheme, whoever answered.

Covers `rollout/request_totals`.
"""

from typing import Any

import pytest

from penstock_proxy import metrics
from penstock_proxy.metrics import RemovedWorkers, ServiceCounters
from penstock_supervisor.observability.request_count import count
from penstock_supervisor.rollout.request_totals import RequestTotals, ServiceTotals
from penstock_supervisor.snapshot import ProcessView, Snapshot, UnseenEnd
from penstock_worker.telemetry.counters import RequestCounters, connection_series, request_series

WORKERS = RemovedWorkers(0), RemovedWorkers(1)


def proxied(made: Any, counted: ServiceCounters, *workers: Any, **facts: str) -> Snapshot:
    """One proxy that has counted this for `web`."""
    series = metrics.snapshot({"web": counted}, fds={}, log_dropped={})
    proxy = made.proxy(stats={"metrics": series})
    return of_web(made, proxy, *workers, **facts)


def of_web(made: Any, *children: Any, **facts: str) -> Snapshot:
    services = {"web": {"scheme": "ports", "mode": "http", "listen": "", "workers": (), **facts}}
    found: Snapshot = made.snapshot(*children, services=services)
    return found


def worker(made: Any, counted: RequestCounters, scheme: str, slot: int = 0) -> Any:
    series = request_series(counted, str(slot))
    if scheme != "handoff":
        series |= connection_series(counted, str(slot))
    return made.worker(slot, scheme=scheme, stats={"metrics": {"series": series}})


def test_a_proxied_request_counts_by_its_last_answer(made: Any) -> None:
    counted = ServiceCounters()
    counted.requests["GET", 200, WORKERS[0]] = 90
    counted.requests["GET", 404, WORKERS[0]] = 5
    counted.requests["GET", 500, WORKERS[1]] = 2
    counted.requests["POST", 503, None] = 1
    # The same request, counted by its reason.
    counted.rejected["no_worker"] = 1
    # It succeeded with another worker.
    counted.errors["worker_reset"] = 7
    counted.retries = 7
    # Its client left.
    counted.requests["GET", 0, WORKERS[0]] = 3
    counted.errors["client_gone"] = 3
    assert count(proxied(made, counted)).by_service == {"web": ServiceTotals(101, 3)}


def test_what_was_broken_off_and_what_never_came_in_has_failed(made: Any) -> None:
    counted = ServiceCounters()
    counted.requests["GET", 200, WORKERS[0]] = 10
    counted.broken_off = 2
    counted.errors["stop_timeout"] = 2
    counted.rejected["max_connections"] = 3
    counted.rejected["no_descriptors"] = 4
    counted.rejected["client_limit"] = 50
    counted.rejected["proxy_header"] = 60
    assert count(proxied(made, counted)) == RequestTotals({"web": ServiceTotals(10, 9)})


def test_a_relayed_connection_is_no_request_and_may_fail(made: Any) -> None:
    counted = ServiceCounters()
    counted.connections = 100
    counted.broken_off = 1
    counted.rejected["no_worker"] = 2
    found = count(proxied(made, counted, mode="tcp"))
    assert (found.requests, found.failed, found.uncounted_services) == (None, 3, ())


def test_under_handoff_proxies_count_connections_and_workers_requests(made: Any) -> None:
    counted, requests = ServiceCounters(), RequestCounters()
    counted.handoffs |= {"accepted": 40, "requeued": 5, "lost": 1}
    counted.rejected["queue_timeout"] = 2
    # One that waited for a worker.
    counted.errors["stop_timeout"] = 1
    requests.requests["GET", 200] = 80
    requests.requests["GET", 502] = 1
    requests.cut = 3
    child = worker(made, requests, "handoff")
    found = count(proxied(made, counted, child, scheme="handoff"))
    assert found == RequestTotals({"web": ServiceTotals(81, 8)})


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_without_a_proxy_workers_count_and_the_kernel_may_drop(made: Any, scheme: str) -> None:
    requests = RequestCounters()
    requests.requests["GET", 200] = 5
    requests.cut = 1
    children = [worker(made, requests, scheme, slot) for slot in (0, 1)]
    services = {"web": {"scheme": scheme, "mode": "http", "listen": "", "workers": ()}}
    snapshot = made.snapshot(*children, services=services, dropped={"web": 4})
    assert count(snapshot).by_service == {"web": ServiceTotals(10, 6)}


@pytest.mark.parametrize("mode", ["http", "udp"])
def test_of_a_program_that_counts_nothing_nothing_is_known(made: Any, mode: str) -> None:
    found = count(of_web(made, made.worker(0, scheme="shared"), scheme="shared", mode=mode))
    assert (found.requests, found.failed, found.uncounted_services) == (None, None, ("web",))


def test_a_difference_is_that_of_each_service(made: Any) -> None:
    before = RequestTotals({"web": ServiceTotals(10, 1), "gone": ServiceTotals(99, 9)})
    after = RequestTotals(
        {"web": ServiceTotals(15, 1), "new": ServiceTotals(7, 2), "tcp": ServiceTotals(None, 3)}
    )
    found = after.since(before)
    assert (found.requests, found.failed) == (12, 5)
    assert (found.uncounted, found.uncounted_services) == ((), ("tcp",))
    # The first request of a worker's app.
    first = RequestTotals({"web": ServiceTotals(4, 0)})
    assert first.since(RequestTotals({"web": ServiceTotals(None, None)})).requests == 4
    # No count of ours goes down.
    found = before.since(after)
    assert found.by_service["web"] == ServiceTotals(0, 0)
    assert found.uncounted == ("web says fewer than before",)


def ends(*numbers: int) -> tuple[UnseenEnd, ...]:
    return tuple(
        UnseenEnd(number, f"proxy/{number % 2} was killed by SIGKILL") for number in numbers
    )


def test_processes_whose_numbers_are_not_known_are_named() -> None:
    before = RequestTotals({}, unseen_ends=ends(1, 2), silent=("web/0",))
    assert before.since(RequestTotals({})).uncounted == (
        "proxy/1 was killed by SIGKILL", "proxy/0 was killed by SIGKILL", "web/0 did not answer",
    )  # fmt: skip
    after = RequestTotals({}, unseen_ends=ends(2, 3, 5), silent=("web/0", "web/1"))
    assert after.since(before).uncounted == (
        "proxy/1 was killed by SIGKILL 2 times",
        "web/0 did not answer at the beginning",
        "web/1 did not answer",
    )
    many = RequestTotals({}, unseen_ends=ends(40, 41))
    assert "37 other processes ended likewise" in many.since(before).uncounted


@pytest.mark.parametrize("scheme", ["handoff", "shared"])
def test_an_app_without_a_request_so_far_is_counted(made: Any, scheme: str) -> None:
    idle = worker(made, RequestCounters(), scheme)
    found = count(of_web(made, idle, scheme=scheme))
    assert (found.requests, found.uncounted_services) == (0, ())


def test_who_has_not_answered_is_silent(made: Any) -> None:
    late = ProcessView("draining", "draining", 7, "", 1.0, None, is_silent=True)
    children = made.proxy(), made.worker(0, scheme="shared", processes=(late,))
    assert count(of_web(made, *children, scheme="shared")).silent == ("web/0",)


def test_nothing_is_known_of_no_service(made: Any) -> None:
    found = count(made.snapshot(services={}))
    assert (found.requests, found.failed) == (None, None)
