"""Traffic has the same shape under every scheme, whichever process counted it."""

from collections.abc import Mapping
from typing import Any

import pytest

from penstock_supervisor.observability.traffic import Split, Traffic


def service(scheme: str, mode: str = "http") -> dict[str, Any]:
    return {"scheme": scheme, "mode": mode, "listen": "127.0.0.1:8000", "workers": ()}


def stats(slot: int, connections: int, *, active: int = 0, requests: int = 0) -> dict[str, Any]:
    series = {
        "penstock_connections_total": {"": connections},
        "penstock_connections_active": {"": active},
        "penstock_worker_connections_total": {str(slot): connections},
        "penstock_requests_total": {f"{slot} GET 200": requests},
    }
    return {"metrics": {"fds": {"client": active}, "series": series}}


def worker_checks(made: Any, *slots: int, **more: Any) -> Mapping[str, Any]:
    """Statistics of the worker checks: a pool, and counters of traffic that stay 0."""
    series = {
        "penstock_connections_total": {"": 0},
        "penstock_connections_active": {"": 0},
        "penstock_requests_total": {},
        "penstock_bytes_total": {"sent": 0, "received": 0},
        "penstock_rejected_total": {"no_worker": 0},
        "penstock_health_checks_total": {f"{slot} ok": 3 for slot in slots},
    }
    rows = [made.row(slot, active=0, **more) for slot in slots]
    return {"metrics": {"services": {"web": series}}, "pools": {"web": rows}}


def unproxied(made: Any, *workers: Any, scheme: str = "shared", **changes: Any) -> Traffic:
    services = {"web": service(scheme)}
    slots = [worker.slot for worker in workers]
    changes.setdefault("worker_checks", worker_checks(made, *slots))
    return Traffic(made.snapshot(*workers, services=services, **changes))


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_without_a_proxy_the_workers_counts_add_up(made: Any, scheme: str) -> None:
    workers = [
        made.worker(slot, stats=stats(slot, 10 + slot, active=slot, requests=100))
        for slot in (0, 1)
    ]
    traffic = unproxied(made, *workers, scheme=scheme)
    series = traffic.series["web"]
    assert series["penstock_connections_total"] == {"": 21}
    assert series["penstock_requests_total"] == {"0 GET 200": 100, "1 GET 200": 100}
    assert series["penstock_health_checks_total"] == {"0 ok": 3, "1 ok": 3}
    assert traffic.open_connections("web") == 1
    assert {slot: row["active"] for slot, row in traffic.pools["web"].items()} == {0: 0, 1: 1}


def test_workers_that_report_nothing_are_not_counted_as_zero(made: Any) -> None:
    traffic = unproxied(made, made.worker(0), made.worker(1))
    assert set(traffic.series["web"]) == {"penstock_health_checks_total"}
    assert traffic.open_connections("web") is None
    assert traffic.split("web") == Split("connections", {}, None)


def test_counts_do_not_go_down_with_the_process_that_made_them(made: Any) -> None:
    gone = stats(0, 40, active=7, requests=400)["metrics"]["series"]
    worker = made.worker(0, stats=stats(0, 2, active=1, requests=3), carryover=gone)
    traffic = unproxied(made, worker)
    series = traffic.series["web"]
    assert series["penstock_worker_connections_total"] == {"0": 42}
    assert series["penstock_requests_total"] == {"0 GET 200": 403}
    assert traffic.open_connections("web") == 1
    assert unproxied(made, made.worker(0, pid=None, carryover=gone)).split("web").by_slot == {0: 40}


def test_a_worker_cannot_claim_the_connections_of_others(made: Any) -> None:
    liar = made.worker(1, stats=stats(0, 1000))
    traffic = unproxied(made, made.worker(0, stats=stats(0, 10)), liar)
    assert traffic.split("web").by_slot == {0: 10, 1: 1000}


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_behind_a_proxy_only_the_counts_of_the_proxy_are_used(made: Any, scheme: str) -> None:
    workers = [made.worker(slot, stats=stats(slot, 1000, active=99)) for slot in (0, 1)]
    services = {"web": service(scheme)}
    traffic = Traffic(made.snapshot(made.proxy(), *workers, services=services))
    assert traffic.series["web"]["penstock_connections_total"] == {"": 5}
    assert traffic.open_connections("web") == 2
    assert traffic.pools["web"][0]["active"] == 3


def test_the_split_is_of_requests_under_ports_http_and_of_connections_otherwise(made: Any) -> None:
    def split(scheme: str, mode: str) -> Split:
        services = {"web": service(scheme, mode)}
        return Traffic(made.snapshot(made.proxy(), services=services)).split("web")

    # A proxy knows of two workers here, of which the second had nothing.
    assert split("ports", "http") == Split("requests", {0: 7, 1: 0}, 0.5)
    assert split("ports", "tcp") == Split("connections", {0: 3, 1: 0}, 0.5)
    assert split("handoff", "http") == Split("connections", {0: 3, 1: 0}, 0.5)


def test_without_an_answer_of_a_proxy_there_is_no_split(made: Any) -> None:
    snapshot = made.snapshot(made.proxy(stats={}), made.worker(0), made.worker(1))
    assert Traffic(snapshot).split("web") == Split("requests", {}, None)


def test_upstreams_have_shares_too(made: Any) -> None:
    reported = made.proxy_stats(api=[made.row(0), made.row(1)])
    series = {"penstock_worker_connections_total": {"0": 4, "1": 4}}
    reported["metrics"]["services"]["api"] = series
    split = Traffic(made.snapshot(made.proxy(stats=reported))).split("api")
    assert split == Split("connections", {0: 4, 1: 4}, 1.0)


def test_the_expected_share_of_a_worker_grows_with_its_weight(made: Any) -> None:
    def ratio(light: int, heavy: int) -> float | None:
        reported = made.proxy_stats(web=[made.row(0, weight=1), made.row(1, weight=3)])
        series = reported["metrics"]["services"]["web"]
        series["penstock_requests_total"] = {"0 GET 200": light, "1 GET 200": heavy}
        return Traffic(made.snapshot(made.proxy(stats=reported))).split("web").jain

    assert ratio(10, 30) == pytest.approx(1.0)
    assert ratio(20, 20) == pytest.approx(0.8)


def test_responses_of_the_proxy_itself_count_for_no_worker(made: Any) -> None:
    reported = made.proxy_stats(web=[made.row(0)])
    reported["metrics"]["services"]["web"]["penstock_requests_total"] = {
        " GET 503": 9,
        "0 GET 200": 1,
    }
    traffic = Traffic(made.snapshot(made.proxy(stats=reported), made.worker(0)))
    assert traffic.split("web").by_slot == {0: 1}


def test_the_counts_of_several_proxies_add_up(made: Any) -> None:
    traffic = Traffic(made.snapshot(made.proxy(slot=0), made.proxy(slot=1)))
    assert traffic.series["web"]["penstock_connections_total"] == {"": 10}
    assert traffic.pools["web"][0]["active"] == 6
    assert traffic.split("web").by_slot == {0: 14, 1: 0}


def test_a_worker_is_up_only_if_all_proxies_have_it_up(made: Any) -> None:
    good = made.proxy_stats(web=[made.row(0), made.row(1)])
    bad = made.proxy_stats(web=[made.row(0, "down", reason="refused", failures=7), made.row(1)])
    for proxies in ((good, bad), (bad, good)):
        views = [made.proxy(slot=slot, stats=stats) for slot, stats in enumerate(proxies)]
        rows = Traffic(made.snapshot(*views)).pools["web"]
        assert (rows[0]["health"], rows[0]["reason"]) == ("down", "refused")
        assert (rows[0]["failures"], rows[0]["ejections"]) == (7, 4)
        assert rows[1]["health"] == "up"


def test_a_slot_is_shown_as_its_current_worker_and_has_what_all_of_its_workers_have(
    made: Any,
) -> None:
    def traffic(number: int) -> Traffic:
        rows = [
            made.row(0, "up", member=1, active=3, ejections=2),
            made.row(
                0,
                "down",
                member=7,
                active=1,
                ejections=1,
                reason="failed a check",
                address="127.0.0.1:8110",
            ),
        ]
        proxy = made.proxy(stats=made.proxy_stats(web=rows))
        return Traffic(made.snapshot(proxy, made.worker(0, number=number)))

    old, new = (traffic(number) for number in (1, 7))
    assert (old.pools["web"][0]["health"], new.pools["web"][0]["health"]) == ("up", "down")
    assert new.pools["web"][0]["reason"] == "failed a check"
    for one in (old, new):
        row = one.pools["web"][0]
        assert (row["active"], row["ejections"]) == (4, 3)
        assert one.addresses("web") == {"127.0.0.1:8100", "127.0.0.1:8110"}
        # The other one serves, whichever of them has the slot.
        assert one.serves("web")
    assert not old.serves("api")


def test_two_proxies_agree_on_a_worker_and_not_on_a_slot(made: Any) -> None:
    one = made.proxy_stats(web=[made.row(0, "down", member=1), made.row(0, "up", member=7)])
    other = made.proxy_stats(web=[made.row(0, "up", member=1), made.row(0, "up", member=7)])
    proxies = [made.proxy(slot=slot, stats=stats) for slot, stats in enumerate((one, other))]
    for number, health in ((1, "down"), (7, "up")):
        rows = Traffic(made.snapshot(*proxies, made.worker(0, number=number))).pools["web"]
        assert rows[0]["health"] == health
