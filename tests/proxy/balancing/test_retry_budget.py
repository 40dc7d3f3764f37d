"""Retries are limited: for a service by its budget, for one request by rounds."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.balancing.retry_budget import SLICES, Attempts, RetryBudget
from penstock_proxy.config import Retries
from penstock_proxy.errors import CONNECT_FAILED, NO_WORKER

# The budget


def taken(budget: RetryBudget, now: float) -> int:
    """All that it gives at once."""
    count = 0
    while budget.take(now):
        count += 1
    return count


def test_an_idle_service_has_the_minimum() -> None:
    budget = RetryBudget(Retries(budget=0.2, min_per_second=3), 100.0)
    assert taken(budget, 100.0) == 3 * SLICES
    assert taken(budget, 109.0) == 0
    assert taken(budget, 110.0) == 3 * SLICES


def test_a_busy_service_has_a_share_of_its_requests() -> None:
    budget = RetryBudget(Retries(budget=0.2, min_per_second=3), 0.0)
    budget.count_requests(1000, 0.5)
    assert taken(budget, 5.0) == 200
    budget.count_requests(1500, 6.0)
    assert taken(budget, 6.0) == 100
    assert taken(budget, 14.0) == 0, "of the first 1000 nothing is left"


def test_no_budget_is_no_retries() -> None:
    budget = RetryBudget(Retries(budget=0.0, min_per_second=0), 0.0)
    budget.count_requests(1_000_000, 1.0)
    assert taken(budget, 1.0) == 0


def test_a_clock_that_stops_or_leaps_does_no_harm() -> None:
    budget = RetryBudget(Retries(budget=1.0, min_per_second=0), 50.0)
    budget.count_requests(10, 1e9)
    assert taken(budget, 1e9) == 10
    assert taken(budget, 1e9 - 5) == 0


@given(
    share=st.sampled_from([0.0, 0.2, 0.29, 1.0]),
    least=st.integers(0, 5),
    steps=st.lists(st.tuples(st.floats(0, 4), st.integers(0, 40), st.integers(0, 40)), max_size=60),
)
def test_no_ten_seconds_have_more_retries_than_the_budget_allows(
    share: float, least: int, steps: list[tuple[float, int, int]]
) -> None:
    start = 1000.0
    budget = RetryBudget(Retries(budget=share, min_per_second=least), start)
    now, total = start, 0
    requests: list[tuple[int, int]] = []
    retries: list[int] = []
    for pause, more, asked in steps:
        now += pause
        total += more
        budget.count_requests(total, now)
        requests.append((int(now), more))
        for _ in range(asked):
            seconds = range(int(now) - SLICES + 1, int(now) + 1)
            seen = sum(count for second, count in requests if second in seconds)
            made = sum(second in seconds for second in retries)
            allowed = max(share * seen + 1e-9, least * SLICES)
            # The model: exact books of every second.
            assert budget.take(now) == (made + 1 <= allowed)
            if made + 1 <= allowed:
                retries.append(int(now))
    assert all(one <= other for one, other in pairwise(retries))


# The attempts of one request


def member(slot: int) -> Member:
    return Member(slot, slot, f"127.0.0.1:{slot + 1}", 1, MemberState.UP)


def test_the_members_that_have_failed_are_remembered_and_the_last_fault() -> None:
    attempts = Attempts()
    assert attempts.last_fault is NO_WORKER
    first, second = member(0), member(1)
    attempts.failed(first, CONNECT_FAILED)
    attempts.failed(second, CONNECT_FAILED)
    assert (attempts.tried, attempts.last_fault) == ((first, second), CONNECT_FAILED)
