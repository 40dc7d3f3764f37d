"""Waits double up to a limit and are reset by a long time ready; too many exits are a giveup."""

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
) -> RestartPolicy:
    return RestartPolicy(
        max_restarts=max_restarts,
        within_s=within_s,
        backoff_s=0.1,
        backoff_max_s=1.0,
        random=random,
        first_at_once=first_at_once,
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
    assert crashing.exited(10, up_for_s=1.0) == 0.1
    assert crashing.exited(11, up_for_s=0.9) == 0.2


def test_a_postponed_start_waits_longer_each_time_and_does_not_count_as_an_exit() -> None:
    crashing = policy(max_restarts=1)
    crashing.exited(0, 0)
    assert [crashing.postponed() for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert crashing.recent_exits == 1


def test_a_proxy_restarts_at_once_but_only_once_in_a_row() -> None:
    proxy = policy(first_at_once=True)
    assert [proxy.exited(now, 0) for now in range(3)] == [0.0, 0.1, 0.2]
    assert proxy.exited(4, up_for_s=5) == 0.0


def test_a_requested_start_forgets_earlier_exits() -> None:
    crashing = policy(max_restarts=1)
    crashing.exited(0, 0)
    crashing.forget()
    assert crashing.exited(1, 0) == 0.1


@given(st.lists(st.floats(0, 100), max_size=300), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_longer_than_the_limit_nor_shorter_than_half_the_first(
    gaps: list[float], luck: float
) -> None:
    crashing = policy(max_restarts=10_000, random=lambda: luck)
    now = 0.0
    for gap in gaps:
        now += gap
        wait = crashing.exited(now, up_for_s=gap)
        assert wait is not None
        assert 0.05 <= wait <= 1.0


@given(st.lists(st.floats(0, 30), min_size=1, max_size=200), st.integers(1, 10))
def test_giving_up_is_exactly_more_than_n_exits_in_any_window(gaps: list[float], n: int) -> None:
    crashing, now = policy(max_restarts=n), 0.0
    exits: list[float] = []
    for gap in gaps:
        now += gap
        exits.append(now)
        in_window = sum(now - exit_ <= 60.0 for exit_ in exits)
        assert (crashing.exited(now, 0) is None) is (in_window > n)
