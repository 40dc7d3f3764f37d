"""What the workers of a removed slot have counted stays in the sums of their service."""

from types import SimpleNamespace
from typing import Any

import pytest

from penstock_supervisor.children.slot_history import SlotHistory
from penstock_supervisor.observability.removed_slots import RemovedSlots
from penstock_supervisor.observability.request_count import count
from penstock_supervisor.rollout.request_totals import RequestTotals, ServiceTotals

REQUESTS = "penstock_requests_total"


def child(slot: int, requests: int = 0, history: SlotHistory | None = None) -> Any:
    counted = {REQUESTS: {f"{slot} GET 200": requests}, "penstock_connections_active": {"": 2}}
    return SimpleNamespace(
        plan=SimpleNamespace(role="worker", service="web", slot=slot, scheme="shared"),
        history=history or SlotHistory(),
        stats={"metrics": {"series": counted}} if requests else {},
    )


def test_a_worker_that_drains_in_a_removed_slot_counts_and_so_does_what_was_before_it() -> None:
    removed, stays = RemovedSlots(), child(0, 9)
    draining = child(1, 5)
    draining.history.carryover = {REQUESTS: {"1 GET 200": 30}}
    older = child(1, 2, draining.history)
    proxy = SimpleNamespace(plan=SimpleNamespace(role="proxy"), history=SlotHistory())
    found: Any = removed.series([stays], [stays, draining, older, proxy])  # type: ignore[list-item]
    assert found["web"][REQUESTS] == {"1 GET 200": 37}
    assert "penstock_connections_active" not in found["web"]
    assert removed.series([stays, draining], [stays, draining, older]) == {}


def test_who_has_ended_is_kept_once() -> None:
    removed, gone = RemovedSlots(), child(1)
    for _ in range(2):
        gone.history.carryover = {REQUESTS: {"1 GET 200": 30}}
        removed.keep(gone)
        removed.keep(gone)
    assert removed.series([], [])["web"][REQUESTS] == {"1 GET 200": 60}


def test_nothing_is_left_of_a_service_that_is_forgotten() -> None:
    removed, gone = RemovedSlots(), child(1)
    gone.history.carryover = {REQUESTS: {"1 GET 200": 30}}
    removed.keep(gone)
    removed.forget("web")
    removed.forget("never there")
    assert removed.series([], []) == {}


@pytest.mark.parametrize("scheme", ["handoff", "shared", "reuseport"])
def test_a_roll_out_that_removes_workers_counts_their_requests(made: Any, scheme: str) -> None:
    services = {"web": {"scheme": scheme, "mode": "http", "listen": "", "workers": ()}}
    series = {REQUESTS: {"1 GET 200": 30, "1 GET 500": 2}}
    two = made.snapshot(
        made.worker(0, scheme=scheme),
        made.worker(1, scheme=scheme, stats={"metrics": {"series": series}}),
        services=services,
    )
    later = {REQUESTS: {"1 GET 200": 40, "1 GET 500": 3}}
    one = made.snapshot(made.worker(0, scheme=scheme), services=services, removed={"web": later})
    assert count(one).since(count(two)).by_service == {"web": ServiceTotals(11, 1)}


def test_a_service_that_is_gone_counts_until_it_went() -> None:
    before, seen, after = (
        RequestTotals({name: ServiceTotals(number, 0) for name, number in counted.items()})
        for counted in ({"web": 1, "api": 5}, {"web": 2, "api": 9}, {"web": 4})
    )
    assert after.with_gone(seen).since(before).requests == 7
