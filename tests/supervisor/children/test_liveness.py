"""A process that is silent is first doubted and then taken for hung; one answer ends either."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.children.liveness import NEVER, TRANSITIONS, Life, Liveness, Sign


def ask_each_second(liveness: Liveness, start: float, seconds: int) -> list[Life]:
    lives = []
    for second in range(seconds):
        lives.append(liveness.judge(start + second))
        liveness.asked(start + second)
    return lives


def test_every_pair_of_life_and_sign_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Life)
    assert all(set(row) == set(Sign) for row in TRANSITIONS.values())


def test_a_silent_process_is_doubted_first_and_then_hung() -> None:
    lives = ask_each_second(Liveness(doubt_s=3.0, hung_s=6.0), 10.0, 8)
    assert lives == [Life.ALIVE] * 3 + [Life.DOUBTED] * 3 + [Life.HUNG] * 2


@pytest.mark.parametrize("silent_s", [4, 9])
def test_one_answer_ends_it(silent_s: int) -> None:
    liveness = Liveness(doubt_s=3.0, hung_s=6.0)
    ask_each_second(liveness, 0.0, silent_s)
    liveness.answered()
    assert liveness.judge(9.0) is Life.ALIVE
    assert liveness.silent_s(9.0) == 0.0


def test_who_is_not_asked_is_not_silent() -> None:
    liveness = Liveness(hung_s=6.0)
    assert liveness.judge(1000.0) is Life.ALIVE


def test_a_few_questions_are_no_silence_however_long_they_take() -> None:
    liveness = Liveness(doubt_s=NEVER, hung_s=6.0, least=3)
    for asked_at in (0.0, 3600.0):
        liveness.asked(asked_at)
        assert liveness.judge(asked_at + 3000.0) is Life.ALIVE
    liveness.asked(7200.0)
    assert liveness.judge(7200.0) is Life.HUNG, "without a doubt before"


def test_time_in_which_the_supervisor_did_not_run_does_not_count() -> None:
    liveness = Liveness(doubt_s=3.0, hung_s=6.0)
    ask_each_second(liveness, 0.0, 3)
    liveness.begin_again(1000.0)
    assert liveness.judge(1000.0) is Life.ALIVE
    assert ask_each_second(liveness, 1000.0, 4) == [Life.ALIVE] * 3 + [Life.DOUBTED]


def test_a_doubt_stays_when_the_supervisor_counts_again() -> None:
    liveness = Liveness(doubt_s=3.0, hung_s=6.0)
    ask_each_second(liveness, 0.0, 5)
    liveness.begin_again(1000.0)
    assert liveness.judge(1000.0) is Life.DOUBTED


@given(st.lists(st.sampled_from(["ask", "answer", "sleep", "judge"]), max_size=60))
def test_a_process_that_answers_within_the_time_is_never_doubted(steps: list[str]) -> None:
    liveness, now = Liveness(doubt_s=3.0, hung_s=6.0), 0.0
    unanswered_since: float | None = None
    for step in steps:
        now += 1.0
        if step == "ask":
            liveness.asked(now)
            unanswered_since = now if unanswered_since is None else unanswered_since
        elif step == "answer":
            liveness.answered()
            unanswered_since = None
        elif step == "sleep":
            now += 100.0
            liveness.begin_again(now)
            unanswered_since = None if unanswered_since is None else now
        was_alive, life = liveness.life is Life.ALIVE, liveness.judge(now)
        if unanswered_since is None or (was_alive and now - unanswered_since < 3.0):
            assert life is Life.ALIVE
