"""What may follow a failed attempt, in every case."""

from itertools import product

import pytest

from penstock_proxy.errors import RESPONSE_TIMEOUT, WORKER_CLOSED, Fault
from penstock_proxy.http.retry import RULES, Again, Loss, RetryState, had_ended_idle


def after(
    loss: Loss,
    *,
    idempotent: bool,
    used: bool,
    repeatable: bool = True,
    fault: Fault = WORKER_CLOSED,
) -> Again:
    state = RetryState()
    return state.after(loss, fault, idempotent=idempotent, repeatable=repeatable, used=used)


@pytest.mark.parametrize(("loss", "idempotent"), list(product(Loss, [True, False])))
def test_every_case_was_thought_of(loss: Loss, *, idempotent: bool) -> None:
    assert idempotent in RULES[loss]


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("loss", [Loss.STALE, Loss.BROKEN])
def test_what_may_have_been_done_is_never_done_twice(loss: Loss, *, used: bool) -> None:
    assert after(loss, idempotent=False, used=used) is Again.NEVER


@pytest.mark.parametrize(("idempotent", "used"), list(product([True, False], repeat=2)))
def test_what_nobody_has_seen_is_sent_again_whatever_it_is(*, idempotent: bool, used: bool) -> None:
    unsent = after(Loss.UNSENT, idempotent=idempotent, used=used)
    unread = after(Loss.UNREAD, idempotent=idempotent, used=used)
    assert unsent is Again.ELSEWHERE
    assert unread is (Again.RECONNECT if used else Again.PAID)


def test_only_the_end_of_a_kept_connection_is_free_after_a_worker_had_a_request() -> None:
    assert after(Loss.STALE, idempotent=True, used=True) is Again.RECONNECT
    assert after(Loss.BROKEN, idempotent=True, used=True) is Again.PAID


@pytest.mark.parametrize(
    ("loss", "idempotent", "used"), list(product(Loss, [True, False], [True, False]))
)
def test_what_the_client_has_seen_or_is_gone_is_never_sent_again(
    loss: Loss, *, idempotent: bool, used: bool
) -> None:
    assert after(loss, idempotent=idempotent, used=used, repeatable=False) is Again.NEVER


def test_a_second_silent_worker_is_the_last_one() -> None:
    state = RetryState()

    def silent() -> Again:
        return state.after(
            Loss.BROKEN, RESPONSE_TIMEOUT, idempotent=True, repeatable=True, used=False
        )

    assert silent() is Again.PAID
    state.failed(None, RESPONSE_TIMEOUT)
    assert silent() is Again.NEVER


@pytest.mark.parametrize("used", [True, False])
def test_a_kept_connection_that_had_ended_says_nothing_of_its_worker(*, used: bool) -> None:
    assert had_ended_idle(Loss.STALE, used=used)
    assert had_ended_idle(Loss.UNREAD, used=used) is used
    assert not had_ended_idle(Loss.UNSENT, used=used)
    assert not had_ended_idle(Loss.BROKEN, used=used)
