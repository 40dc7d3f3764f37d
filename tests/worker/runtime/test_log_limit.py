"""Of many equal reports few are logged, and none is lost from the count."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_worker.runtime.log_limit import INTERVAL_S, MAX_PLACES, MAX_REPORTS, LogLimit


def test_a_place_is_logged_at_once_and_then_once_an_interval() -> None:
    limit = LogLimit()
    assert limit.seen("a", 0.0) == 0
    assert [limit.seen("a", 1.0) for _ in range(5)] == [None] * 5
    assert limit.seen("a", INTERVAL_S) == 5, "with the number of those before"
    assert limit.left_out() == ({}, 0)


def test_places_do_not_delay_each_other() -> None:
    limit = LogLimit()
    assert [limit.seen(place, 0.0) for place in "abc"] == [0, 0, 0]


def test_ever_new_places_are_bounded() -> None:
    limit = LogLimit()
    logged = [limit.seen(number, 0.0) for number in range(1000)]
    assert logged.count(0) == MAX_REPORTS
    assert limit.left_out() == ({}, 1000 - MAX_REPORTS)


def test_what_was_left_out_can_be_asked_for() -> None:
    limit = LogLimit()
    limit.seen("a", 0.0)
    limit.seen("a", 1.0)
    limit.add_left_out(3)
    assert limit.left_out() == ({"a": 1}, 3)
    assert limit.left_out() == ({}, 0)


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(0, 5)), max_size=600))
def test_every_report_is_logged_or_counted_and_memory_is_bounded(
    reports: list[tuple[int, float]],
) -> None:
    limit, now, accounted = LogLimit(), 0.0, 0
    for place, pause in reports:
        now += pause
        left_out = limit.seen(place, now)
        accounted += 0 if left_out is None else 1 + left_out
        assert len(limit._logged_at) <= MAX_PLACES
        assert limit._left_out.keys() <= limit._logged_at.keys()
    by_place, others = limit.left_out()
    assert accounted + sum(by_place.values()) + others == len(reports)
