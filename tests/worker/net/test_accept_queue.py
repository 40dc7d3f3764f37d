"""The estimate finds connections that waited past the time limit, and never one too early."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_worker.net.accept_queue import AcceptQueue

MAX_WAIT_S = 2.0


def test_the_first_look_finds_no_connection_overdue() -> None:
    assert AcceptQueue(MAX_WAIT_S).overdue(100.0, accepted=0, waiting=7) == 0


def test_a_connection_still_queued_after_the_time_limit_is_overdue() -> None:
    accept_queue = AcceptQueue(MAX_WAIT_S)
    accept_queue.overdue(100.0, accepted=10, waiting=3)
    assert accept_queue.overdue(101.9, accepted=10, waiting=5) == 0
    assert accept_queue.overdue(102.0, accepted=10, waiting=9) == 3
    assert accept_queue.overdue(103.9, accepted=13, waiting=6) == 2
    assert accept_queue.overdue(104.0, accepted=15, waiting=6) == 4


def test_a_connection_accepted_meanwhile_is_not_overdue() -> None:
    accept_queue = AcceptQueue(MAX_WAIT_S)
    accept_queue.overdue(100.0, accepted=0, waiting=5)
    assert accept_queue.overdue(102.0, accepted=4, waiting=20) == 1
    assert accept_queue.overdue(102.1, accepted=9, waiting=20) == 0


def test_an_empty_queue_resets_the_estimate() -> None:
    accept_queue = AcceptQueue(MAX_WAIT_S)
    accept_queue.overdue(100.0, accepted=0, waiting=5)
    watched = [accept_queue.was_occupied]
    accept_queue.overdue(101.0, accepted=5, waiting=0)
    watched.append(accept_queue.was_occupied)
    assert watched == [True, False]
    assert accept_queue.overdue(102.0, accepted=5, waiting=5) == 0


def test_a_connection_that_another_process_may_have_accepted_is_not_overdue() -> None:
    accept_queue = AcceptQueue(MAX_WAIT_S)
    accept_queue.overdue(100.0, accepted=0, waiting=5)
    accept_queue.overdue(101.0, accepted=0, waiting=1)
    assert accept_queue.overdue(102.0, accepted=0, waiting=4) == 1


def test_with_a_time_limit_of_zero_every_connection_is_overdue_at_once() -> None:
    assert AcceptQueue(0.0).overdue(100.0, accepted=0, waiting=5) == 5


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(0, 5), st.integers(0, 5)), max_size=40))
def test_a_connection_is_never_overdue_before_the_time_limit(
    steps: list[tuple[float, int, int]],
) -> None:
    accept_queue = AcceptQueue(MAX_WAIT_S)
    now, accepted = 0.0, 0
    queue: list[float] = []
    for passed, come, gone in steps:
        now += passed
        queue += [now] * come
        accepted += len(queue[:gone])
        del queue[:gone]
        overdue = accept_queue.overdue(now, accepted, len(queue))
        assert all(now - came >= MAX_WAIT_S for came in queue[:overdue])
        accepted += overdue
        del queue[:overdue]
        # A connection is found late by at most the time between two looks.
        assert all(now - came < MAX_WAIT_S + 1.0 for came in queue)
