"""Waits double up to a limit and are reset by a long time ready; too many exits are a crash loop,
which has one start now and then and is left by a long time ready.
"""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.process.restart_policy import RestartPolicy


def always_one() -> float:
    return 1.0


def policy(
    *,
    max_restarts: int = 5,
    within_s: float = 60.0,
    random: Callable[[], float] = always_one,
    first_at_once: bool = False,
    retry_after_s: float = 0.0,
) -> RestartPolicy:
    return RestartPolicy(
        max_restarts=max_restarts,
        within_s=within_s,
        backoff_s=0.1,
        backoff_max_s=1.0,
        random=random,
        first_at_once=first_at_once,
        retry_after_s=retry_after_s,
    )


def test_waits_double_up_to_the_limit() -> None:
    crashing = policy()
    assert [crashing.exited(now, 0) for now in range(5)] == [0.1, 0.2, 0.4, 0.8, 1.0]


def test_one_exit_more_than_allowed_is_a_giveup() -> None:
    crashing = policy(max_restarts=2)
    assert crashing.exited(0, 0) is not None
    assert crashing.exited(1, 0) is not None
    assert crashing.exited(2, 0) is None
    assert crashing.recent_exits == 3


def test_exits_outside_the_window_do_not_count() -> None:
    crashing = policy(max_restarts=1, within_s=60)
    assert crashing.exited(0, 0) is not None
    assert crashing.exited(61, 0) is not None
    assert crashing.exited(100, 0) is None


def test_a_long_time_ready_resets_the_wait() -> None:
    crashing = policy()
    crashing.exited(0, 0)
    crashing.exited(1, 0)
    assert crashing.exited(10, ready_for_s=1.0) == 0.1
    assert crashing.exited(11, ready_for_s=0.9) == 0.2


def test_a_postponed_start_waits_longer_each_time_and_does_not_count_as_an_exit() -> None:
    crashing = policy(max_restarts=1)
    crashing.exited(0, 0)
    assert [crashing.postponed() for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert crashing.recent_exits == 1


def test_a_proxy_restarts_at_once_but_only_once_in_a_row() -> None:
    proxy = policy(first_at_once=True)
    assert [proxy.exited(now, 0) for now in range(3)] == [0.0, 0.1, 0.2]
    assert proxy.exited(4, ready_for_s=5) == 0.0


def test_a_requested_start_forgets_earlier_exits() -> None:
    crashing = policy(max_restarts=1)
    crashing.exited(0, 0)
    crashing.forget()
    assert crashing.exited(1, 0) == 0.1


def in_crash_loop() -> RestartPolicy:
    crashing = policy(max_restarts=1, retry_after_s=30)
    found = [(crashing.exited(now, 0), crashing.in_crash_loop) for now in (0, 1)]
    assert found == [(0.1, False), (30, True)]
    return crashing


def test_in_a_crash_loop_each_exit_waits_for_the_retry_however_old_the_others_are() -> None:
    crashing = in_crash_loop()
    assert [crashing.exited(now, 0) for now in (40, 80, 10_000)] == [30, 30, 30]
    assert crashing.exited(10_001, ready_for_s=0.99) == 30
    assert crashing.in_crash_loop


def test_a_crash_loop_is_left_when_it_was_ready_for_long_enough_and_counts_from_zero() -> None:
    crashing = in_crash_loop()
    assert crashing.exited(40, ready_for_s=1.0) == 0.1
    assert (crashing.in_crash_loop, crashing.recent_exits) == (False, 1)


def test_a_crash_loop_is_left_as_soon_as_that_time_has_passed() -> None:
    crashing = in_crash_loop()
    assert crashing.proof_s == 1.0
    found = crashing.proved(), crashing.in_crash_loop, crashing.proved()
    assert found == (True, False, False)
    assert crashing.exited(3, 0) == 0.1


def test_proving_outside_a_crash_loop_forgets_no_exit_of_the_window() -> None:
    crashing = policy(max_restarts=1)
    crashing.exited(0, 0)
    assert not crashing.proved()
    assert crashing.exited(5, 5) is None


def test_without_a_retry_a_crash_loop_has_no_next_start() -> None:
    crashing = policy(max_restarts=1)
    crashing.exited(0, 0)
    assert crashing.exited(1, 0) is None
    assert crashing.in_crash_loop


def test_a_requested_start_ends_a_crash_loop() -> None:
    crashing = in_crash_loop()
    crashing.forget()
    assert not crashing.in_crash_loop
    assert crashing.exited(2, 0) == 0.1


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=200),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 5),
)
def test_a_wait_is_that_of_the_crash_loop_or_of_the_backoff_with_its_jitter(
    steps: list[tuple[float, float]], luck: float, n: int
) -> None:
    crashing, now, recent = (
        policy(max_restarts=n, random=lambda: luck, retry_after_s=30), 0.0, list[float]()
    )  # fmt: skip
    was_in_loop = False
    for gap, ready_for in steps:
        now += gap
        if was_in_loop and ready_for >= 1.0:
            recent.clear()
        recent = [one for one in (*recent, now) if now - one <= 60.0]
        wait = crashing.exited(now, ready_for)
        assert wait is not None
        in_loop = len(recent) > n or (was_in_loop and ready_for < 1.0)
        assert crashing.in_crash_loop is in_loop
        assert (15.0 <= wait <= 30.0) if in_loop else (0.05 <= wait <= 1.0)
        was_in_loop = in_loop


@given(st.lists(st.floats(0, 100), max_size=300), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_longer_than_the_limit_nor_shorter_than_half_the_first(
    gaps: list[float], luck: float
) -> None:
    crashing = policy(max_restarts=10_000, random=lambda: luck)
    now = 0.0
    for gap in gaps:
        now += gap
        wait = crashing.exited(now, ready_for_s=gap)
        assert wait is not None
        assert 0.05 <= wait <= 1.0


@given(st.lists(st.floats(0, 30), min_size=1, max_size=200), st.integers(1, 10))
def test_a_crash_loop_begins_with_more_than_n_exits_in_any_window(
    gaps: list[float], n: int
) -> None:
    crashing, now = policy(max_restarts=n), 0.0
    exits: list[float] = []
    for gap in gaps:
        now += gap
        exits.append(now)
        in_window = sum(now - exit_ <= 60.0 for exit_ in exits)
        assert (crashing.exited(now, 0) is None) is (in_window > n)
        if in_window > n:
            # From here on it stays in the crash loop, whatever the window has.
            crashing.forget()
            exits.clear()


def test_other_numbers_count_from_now_on_and_what_has_happened_stays() -> None:
    policy = RestartPolicy(
        max_restarts=9, within_s=60.0, backoff_s=1.0, backoff_max_s=8.0, random=lambda: 1.0
    )
    assert [policy.exited(now, 0.0) for now in (0.0, 1.0)] == [1.0, 2.0]
    policy.configure(
        max_restarts=2, within_s=60.0, backoff_s=1.0, backoff_max_s=8.0, retry_after_s=7.0
    )
    assert policy.exited(2.0, 0.0) == 7.0
    assert policy.in_crash_loop
