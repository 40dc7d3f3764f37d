"""A replaced worker that falls may come back, and has to stay: every pair of state and sign."""

import pytest

from penstock_supervisor.rollout.serving import TRANSITIONS, ReplacedWorker, Serving, Sign

START_S = 30.0
UP, DOWN = Sign.UP, Sign.DOWN


def test_the_table_is_total() -> None:
    assert {(state, sign) for state, row in TRANSITIONS.items() for sign in row} == {
        (state, sign) for state in Serving for sign in Sign
    }


@pytest.mark.parametrize("state", Serving)
def test_one_that_ended_too_often_is_lost_at_once(state: Serving) -> None:
    assert TRANSITIONS[state][Sign.CRASH_LOOP] is Serving.LOST


@pytest.mark.parametrize("sign", Sign)
def test_who_is_lost_stays_lost(sign: Sign) -> None:
    assert TRANSITIONS[Serving.LOST][sign] is Serving.LOST


def after(*signs: tuple[float, Sign], until: float) -> ReplacedWorker:
    """In the rotation since 0; what it shows, and when."""
    worker = ReplacedWorker(0.0, START_S)
    for at, sign in signs:
        if worker.due is not None and worker.due <= at:
            worker.time_passes(worker.due)
        worker.sees(sign, at, f"at {at:g}")
    if worker.due is not None and worker.due <= until:
        worker.time_passes(worker.due)
    return worker


@pytest.mark.parametrize(
    ("signs", "until", "state"),
    [
        ([], 1e9, Serving.SERVES),
        ([(3, DOWN)], 4, Serving.AWAY),
        ([(3, DOWN)], 3 + START_S, Serving.LOST),
        # It fell after 3 s, and has to stay for 6.
        ([(3, DOWN), (4, UP)], 9, Serving.PROVING),
        ([(3, DOWN), (4, UP)], 10, Serving.SERVES),
        # It falls again and again: each time as if it had never been back.
        ([(3, DOWN), (4, UP), (7, DOWN), (8, UP), (11, DOWN)], 33, Serving.LOST),
        ([(3, DOWN), (4, UP), (7, DOWN), (8, UP)], 14, Serving.SERVES),
        # Back in time, and proved after that time.
        ([(3, DOWN), (32, UP)], 38, Serving.SERVES),
        ([(3, DOWN), (32, UP), (35, DOWN)], 35, Serving.LOST),
        # After an hour: half of the time of a start.
        ([(3600, DOWN), (3601, UP)], 3615, Serving.PROVING),
        ([(3600, DOWN), (3601, UP)], 3616, Serving.SERVES),
        # Every fall has its own time, once it has served again.
        ([(3, DOWN), (4, UP), (100, DOWN)], 129, Serving.AWAY),
        ([(3, DOWN), (4, Sign.CRASH_LOOP), (5, UP)], 100, Serving.LOST),
    ],
)
def test_one_that_falls_has_to_come_back_and_to_stay(
    signs: list[tuple[float, Sign]], until: float, state: Serving
) -> None:
    assert after(*signs, until=until).state is state


def test_the_reason_is_that_of_its_last_fall() -> None:
    assert after((3, DOWN), (4, UP), (7, DOWN), until=8).reason == "at 7"
    lost = after((3, DOWN), until=40)
    assert lost.reason == "at 3; it was not back for good within 30 s"
