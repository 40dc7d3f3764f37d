"""Every failure of an attempt has a rule, and no rule lets a request be done twice."""

from itertools import product

import pytest

from penstock_proxy.errors import RESPONSE_TIMEOUT, WORKER_CLOSED, Fault
from penstock_proxy.http.retry import RULES, Failure, RetryDecision, RetryState, closed_while_idle


def decide(
    failure: Failure,
    *,
    idempotent: bool,
    used: bool,
    repeatable: bool = True,
    fault: Fault = WORKER_CLOSED,
) -> RetryDecision:
    state = RetryState()
    return state.decide(failure, fault, idempotent=idempotent, repeatable=repeatable, used=used)


@pytest.mark.parametrize(("failure", "idempotent"), list(product(Failure, [True, False])))
def test_every_failure_has_a_rule(failure: Failure, *, idempotent: bool) -> None:
    assert idempotent in RULES[failure]


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("failure", [Failure.STALE, Failure.BROKEN])
def test_what_may_have_been_done_is_never_done_twice(failure: Failure, *, used: bool) -> None:
    assert decide(failure, idempotent=False, used=used) is RetryDecision.FAIL


@pytest.mark.parametrize(("idempotent", "used"), list(product([True, False], repeat=2)))
def test_a_request_that_no_worker_has_read_is_retried_whatever_its_method(
    *, idempotent: bool, used: bool
) -> None:
    unsent = decide(Failure.UNSENT, idempotent=idempotent, used=used)
    unread = decide(Failure.UNREAD, idempotent=idempotent, used=used)
    assert unsent is RetryDecision.NEXT_WORKER
    assert unread is (RetryDecision.RECONNECT if used else RetryDecision.NEXT_WORKER_IF_PAID)


def test_only_the_close_of_an_idle_connection_is_retried_for_free() -> None:
    assert decide(Failure.STALE, idempotent=True, used=True) is RetryDecision.RECONNECT
    assert decide(Failure.BROKEN, idempotent=True, used=True) is RetryDecision.NEXT_WORKER_IF_PAID


@pytest.mark.parametrize(
    ("failure", "idempotent", "used"), list(product(Failure, [True, False], [True, False]))
)
def test_a_request_that_is_not_repeatable_is_never_retried(
    failure: Failure, *, idempotent: bool, used: bool
) -> None:
    assert decide(failure, idempotent=idempotent, used=used, repeatable=False) is RetryDecision.FAIL


def test_after_a_second_response_time_out_there_is_no_retry() -> None:
    state = RetryState()

    def silent() -> RetryDecision:
        return state.decide(
            Failure.BROKEN, RESPONSE_TIMEOUT, idempotent=True, repeatable=True, used=False
        )

    assert silent() is RetryDecision.NEXT_WORKER_IF_PAID
    state.failed(None, RESPONSE_TIMEOUT)
    assert silent() is RetryDecision.FAIL


@pytest.mark.parametrize("used", [True, False])
def test_the_close_of_an_idle_connection_does_not_count_against_its_worker(*, used: bool) -> None:
    assert closed_while_idle(Failure.STALE, used=used)
    assert closed_while_idle(Failure.UNREAD, used=used) is used
    assert not closed_while_idle(Failure.UNSENT, used=used)
    assert not closed_while_idle(Failure.BROKEN, used=used)
