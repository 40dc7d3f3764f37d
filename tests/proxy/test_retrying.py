"""What may be tried again, and that retries are bounded whatever happens."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.config import Retries
from penstock_proxy.retrying import RULES, SLICES, Again, Budget, Loss, again

# The rule


@pytest.mark.parametrize(("loss", "idempotent"), list(product(Loss, [True, False])))
def test_every_case_was_thought_of(loss: Loss, *, idempotent: bool) -> None:
    assert idempotent in RULES[loss]


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("loss", [Loss.STALE, Loss.BROKEN])
def test_what_may_have_been_done_is_never_done_twice(loss: Loss, *, used: bool) -> None:
    assert again(loss, idempotent=False, used=used) is Again.NEVER


@pytest.mark.parametrize(("idempotent", "used"), list(product([True, False], repeat=2)))
def test_what_nobody_has_seen_is_sent_again_whatever_it_is(*, idempotent: bool, used: bool) -> None:
    unsent = again(Loss.UNSENT, idempotent=idempotent, used=used)
    unread = again(Loss.UNREAD, idempotent=idempotent, used=used)
    assert unsent is Again.ELSEWHERE
    assert unread is (Again.AFRESH if used else Again.PAID)


def test_only_the_end_of_a_kept_connection_is_free_after_a_worker_had_a_request() -> None:
    assert again(Loss.STALE, idempotent=True, used=True) is Again.AFRESH
    assert again(Loss.BROKEN, idempotent=True, used=True) is Again.PAID


# The budget


def taken(budget: Budget, now: float) -> int:
    """All that it gives at once."""
    count = 0
    while budget.take(now):
        count += 1
    return count


def test_a_service_at_rest_has_its_least() -> None:
    budget = Budget(Retries(budget=0.2, min_per_second=3), 100.0)
    assert taken(budget, 100.0) == 3 * SLICES
    assert taken(budget, 109.0) == 0
    assert taken(budget, 110.0) == 3 * SLICES


def test_a_busy_service_has_its_share() -> None:
    budget = Budget(Retries(budget=0.2, min_per_second=3), 0.0)
    budget.seen(1000, 0.5)
    assert taken(budget, 5.0) == 200
    budget.seen(1500, 6.0)
    assert taken(budget, 6.0) == 100
    assert taken(budget, 14.0) == 0, "of the first 1000 nothing is left"


def test_no_budget_is_no_retries() -> None:
    budget = Budget(Retries(budget=0.0, min_per_second=0), 0.0)
    budget.seen(1_000_000, 1.0)
    assert taken(budget, 1.0) == 0


def test_a_clock_that_stands_still_or_leaps_is_no_matter() -> None:
    budget = Budget(Retries(budget=1.0, min_per_second=0), 50.0)
    budget.seen(10, 1e9)
    assert taken(budget, 1e9) == 10
    assert taken(budget, 1e9 - 5) == 0


@given(
    share=st.sampled_from([0.0, 0.2, 0.29, 1.0]),
    least=st.integers(0, 5),
    steps=st.lists(st.tuples(st.floats(0, 4), st.integers(0, 40), st.integers(0, 40)), max_size=60),
)
def test_in_no_ten_seconds_are_there_more_retries_than_the_budget_says(
    share: float, least: int, steps: list[tuple[float, int, int]]
) -> None:
    start = 1000.0
    budget = Budget(Retries(budget=share, min_per_second=least), start)
    now, total = start, 0
    requests: list[tuple[int, int]] = []
    retries: list[int] = []
    for pause, more, asked in steps:
        now += pause
        total += more
        budget.seen(total, now)
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
