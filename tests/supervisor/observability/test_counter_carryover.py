"""The counters of a proxy outlive its process, however often it ends; its gauges do not."""

from typing import Any

from penstock_supervisor.observability.counter_carryover import (
    add,
    carry_over,
    departed,
    ejections,
    series,
    stats_without,
    without,
)
from penstock_supervisor.observability.traffic import Traffic

TOTAL, ACTIVE = "penstock_connections_total", "penstock_connections_active"


def number(value: Any) -> float:
    return float(value)


def test_counters_are_kept_and_gauges_are_not(made: Any) -> None:
    kept = carry_over({}, made.proxy_stats(web=[made.row(0)]))
    assert series(kept)["web"][TOTAL] == {"": 5}
    assert ACTIVE not in series(kept)["web"]
    assert ejections(kept, "web") == {0: 2}


def test_every_end_adds_to_those_before(made: Any) -> None:
    stats = made.proxy_stats(web=[made.row(0), made.row(1, ejections=0)])
    kept = carry_over(carry_over({}, stats), stats)
    assert series(kept)["web"][TOTAL] == {"": 10}
    assert ejections(kept, "web") == {0: 4}


def test_a_process_that_never_answered_changes_nothing(made: Any) -> None:
    kept = carry_over({}, made.proxy_stats(web=[made.row(0)]))
    assert carry_over(kept, {}) == kept
    assert carry_over({}, {}) == {"services": {}, "ejections": {}}


def test_sums_do_not_go_down_when_a_proxy_is_killed(made: Any) -> None:
    stats = made.proxy_stats(web=[made.row(0)])
    one, other = made.proxy(slot=0, stats=stats), made.proxy(slot=1, stats=stats)
    before = Traffic(made.snapshot(one, other))
    killed = made.proxy(slot=1, stats={}, carryover=carry_over({}, stats))
    for now in (killed, made.proxy(slot=1, stats=stats, carryover=carry_over({}, stats))):
        traffic = Traffic(made.snapshot(one, now))
        for name in (TOTAL, "penstock_requests_total"):
            was, is_ = (one.series["web"][name] for one in (before, traffic))
            assert all(number(is_[labels]) >= number(value) for labels, value in was.items())
        assert traffic.pools["web"][0]["ejections"] >= before.pools["web"][0]["ejections"]
    killed_only = Traffic(made.snapshot(one, killed))
    assert killed_only.series["web"][ACTIVE] == {"": 2}, "its clients are gone"


def test_what_a_proxy_had_counted_that_is_gone_for_good_is_added_to_another_ones() -> None:
    one = {"services": {"web": {TOTAL: {"": 2}}}, "ejections": {"web": {0: 1}}}
    other = {"services": {"web": {TOTAL: {"": 3}}, "api": {TOTAL: {"": 5}}},
             "ejections": {"web": {0: 2, 1: 4}}}  # fmt: skip
    assert add(one, other) == {
        "services": {"web": {TOTAL: {"": 5}}, "api": {TOTAL: {"": 5}}},
        "ejections": {"web": {0: 3, 1: 4}},
    }
    assert add({}, one) == one


def test_what_was_told_last_of_a_service_that_is_gone_is_kept_once() -> None:
    last = {"metrics": {"services": {"web": {TOTAL: {"": 2}}, "old": {TOTAL: {"": 7}}}}}
    present = {"metrics": {"services": {"web": {TOTAL: {"": 3}}}}}
    kept = departed({}, last, present)
    assert series(kept) == {"old": {TOTAL: {"": 7}}}
    assert departed(kept, present, present) == kept


def test_nothing_is_left_of_a_service_that_is_forgotten() -> None:
    both = {"web": {TOTAL: {"": 2}}, "old": {TOTAL: {"": 7}}}
    stats = {"metrics": {"services": both}, "pools": {"web": [], "old": []}}
    kept = {"services": both, "ejections": {"web": {0: 1}, "old": {0: 2}}}
    assert without(kept, "old") == {
        "services": {"web": both["web"]}, "ejections": {"web": {0: 1}},
    }  # fmt: skip
    assert without({}, "old") == {}
    rest = stats_without(stats, "old")
    assert rest == {"metrics": {"services": {"web": both["web"]}}, "pools": {"web": []}}
    # The next answer, which has nothing of it, is no news.
    assert departed({}, rest, rest) == {}
    assert stats_without(rest, "old") == rest
    assert stats_without({}, "old") == {}
