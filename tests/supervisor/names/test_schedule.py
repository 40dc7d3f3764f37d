"""When a name is looked up again, and when it is believed that there is nothing."""

import pytest

from penstock_supervisor.names.schedule import HOLD_S, MAX_RETRY_S, Schedule


@pytest.mark.parametrize(("ttl", "used"), [(0, 1), (0.5, 1), (7, 7), (1e9, 300)])
def test_a_good_answer_holds_for_its_time_within_bounds(ttl: float, used: float) -> None:
    schedule = Schedule(0.0)
    schedule.found(ttl, 100.0)
    assert (schedule.due, schedule.ttl_s) == (100.0 + used, used)


def test_bad_answers_are_followed_by_longer_and_longer_pauses() -> None:
    schedule = Schedule(0.0)
    pauses = []
    for _ in range(2000):
        schedule.failed("timeout", 0.0)
        pauses.append(schedule.due)
    assert pauses[:6] == [1, 2, 4, 8, 16, 30]
    assert pauses[-1] == MAX_RETRY_S
    schedule.found(5, 0.0)
    schedule.failed("timeout", 0.0)
    assert schedule.due == 1


def test_a_change_of_the_result_is_told_once() -> None:
    schedule = Schedule(0.0)
    told = [schedule.found(5, 0.0), schedule.found(5, 1.0)]
    told += [schedule.failed(one, 2.0) for one in ("timeout", "timeout", "failed", "failed")]
    told += [schedule.found(5, 3.0)]
    assert told == [True, False, True, False, True, False, True]


def test_that_there_is_nothing_is_believed_when_it_was_said_for_a_while() -> None:
    schedule = Schedule(0.0)
    schedule.failed("not_found", 10.0)
    assert not schedule.is_gone(10.0 + HOLD_S - 1)
    assert schedule.is_gone(10.0 + HOLD_S)
    schedule.failed("timeout", 10.0 + HOLD_S)
    assert not schedule.is_gone(10.0 + HOLD_S), "nobody says so now"
    schedule.failed("not_found", 11.0 + HOLD_S)
    assert schedule.is_gone(11.0 + HOLD_S)
    schedule.found(5, 12.0 + HOLD_S)
    schedule.failed("not_found", 13.0 + HOLD_S)
    assert not schedule.is_gone(13.0 + HOLD_S)


def test_failures_alone_never_say_that_there_is_nothing() -> None:
    schedule = Schedule(0.0)
    for now in range(1000):
        schedule.failed("failed", float(now))
        assert not schedule.is_gone(float(now))
