"""Every failure of an attempt has a rule, and a request is executed as often as is allowed."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import Retries, RetryKind
from penstock_proxy.errors import (
    ANSWERED,
    BAD_RESPONSE,
    CONNECT_FAILED,
    FAULTS,
    NO_WORKER,
    RESPONSE_TIMEOUT,
    WORKER_CLOSED,
    WORKER_RESET,
    Fault,
    Side,
)
from penstock_proxy.http.retry import (
    KINDS,
    NOT_EXECUTED,
    RULES,
    Failure,
    RetryDecision,
    RetryState,
    closed_while_idle,
)

FAULT_OF: dict[Failure, Fault] = {
    Failure.UNSENT: CONNECT_FAILED,
    Failure.ANSWERED: ANSWERED[503],
}
"""An example for each failure; all others are WORKER_CLOSED."""
ALL_KINDS: tuple[RetryKind, ...] = ("connect", "reset", "timeout", "502", "503", "504")


def member(slot: int) -> Member:
    return Member(slot, slot, f"127.0.0.1:{slot + 1}", 1, MemberState.UP)


def decide(
    failure: Failure,
    *,
    idempotent: bool,
    repeatable: bool = True,
    fault: Fault | None = None,
    retries: Retries = Retries(on=ALL_KINDS),  # noqa: B008 — it is frozen
) -> RetryDecision:
    return RetryState(retries).decide(
        failure,
        fault or FAULT_OF.get(failure, WORKER_CLOSED),
        idempotent=idempotent,
        repeatable=repeatable,
    )


# -- the rules


@pytest.mark.parametrize(("failure", "idempotent"), list(product(Failure, [True, False])))
def test_every_failure_has_a_rule(failure: Failure, *, idempotent: bool) -> None:
    assert RULES.keys() == set(Failure)
    assert RULES[failure].keys() == {True, False}
    assert decide(failure, idempotent=idempotent) is RULES[failure][idempotent]


def test_every_fault_of_a_worker_is_a_kind_that_can_be_named() -> None:
    workers = {fault for fault in FAULTS if fault.side is Side.WORKER}
    assert workers <= KINDS.keys()
    assert set(KINDS.values()) == set(ALL_KINDS)


@pytest.mark.parametrize("failure", [one for one in Failure if one not in NOT_EXECUTED])
def test_what_may_have_been_executed_is_repeated_only_if_it_is_idempotent(
    failure: Failure,
) -> None:
    assert decide(failure, idempotent=False) is RetryDecision.FAIL
    # A kept connection that ended says little about its worker, and happens once to a request.
    is_free = failure is Failure.STALE
    again = RetryDecision.NEXT_WORKER if is_free else RetryDecision.NEXT_WORKER_IF_PAID
    assert decide(failure, idempotent=True) is again


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_request_that_no_worker_has_read_is_retried_whatever_its_method(
    *, idempotent: bool
) -> None:
    assert {failure: decide(failure, idempotent=idempotent) for failure in NOT_EXECUTED} == {
        Failure.UNSENT: RetryDecision.NEXT_WORKER,
        Failure.CLOSED: RetryDecision.RECONNECT,
        Failure.UNREAD: RetryDecision.NEXT_WORKER_IF_PAID,
    }


@pytest.mark.parametrize(("failure", "idempotent"), list(product(Failure, [True, False])))
def test_a_request_that_is_not_repeatable_is_never_retried(
    failure: Failure, *, idempotent: bool
) -> None:
    assert decide(failure, idempotent=idempotent, repeatable=False) is RetryDecision.FAIL


@pytest.mark.parametrize("failure", Failure)
def test_a_kept_connection_that_ended_does_not_count_against_its_worker(failure: Failure) -> None:
    assert closed_while_idle(failure) is (failure in (Failure.CLOSED, Failure.STALE))


# -- retries.on


@pytest.mark.parametrize(("fault", "kind"), list(KINDS.items()), ids=lambda one: str(one))
def test_only_the_kinds_that_are_named_are_retried(fault: Fault, kind: RetryKind) -> None:
    failure = Failure.UNSENT if kind == "connect" else Failure.BROKEN
    others = tuple(one for one in ALL_KINDS if one != kind)
    assert decide(failure, idempotent=True, fault=fault, retries=Retries(on=others)) is (
        RetryDecision.FAIL
    )
    assert decide(failure, idempotent=True, fault=fault, retries=Retries(on=(kind,))) in (
        RetryDecision.NEXT_WORKER,
        RetryDecision.NEXT_WORKER_IF_PAID,
    )


def test_by_default_what_failed_to_connect_or_broke_off_is_retried_and_nothing_else() -> None:
    defaults = Retries()
    retried = {
        fault
        for fault in KINDS
        if decide(Failure.BROKEN, idempotent=True, fault=fault, retries=defaults)
        is not RetryDecision.FAIL
    }
    assert retried >= {CONNECT_FAILED, WORKER_RESET, WORKER_CLOSED, BAD_RESPONSE}
    assert not retried & {RESPONSE_TIMEOUT, *ANSWERED.values()}


def test_a_connection_that_was_closed_before_the_request_came_is_nobodys_failure() -> None:
    off = Retries(attempts=1, on=())
    assert decide(Failure.CLOSED, idempotent=False, retries=off) is RetryDecision.RECONNECT


# -- retries.attempts


@pytest.mark.parametrize("attempts", [1, 2, 3, 8])
@pytest.mark.parametrize("failure", [one for one in Failure if one not in NOT_EXECUTED])
def test_as_many_workers_execute_a_request_as_are_allowed_to(
    failure: Failure, attempts: int
) -> None:
    state = RetryState(Retries(attempts=attempts, on=ALL_KINDS))
    fault = FAULT_OF.get(failure, WORKER_CLOSED)
    for slot in range(attempts - 1):
        decision = state.decide(failure, fault, idempotent=True, repeatable=True)
        assert decision is RULES[failure][True]
        state.record(member(slot), failure, fault, 0.0)
    exhausted = state.decide(failure, fault, idempotent=True, repeatable=True)
    assert exhausted is RetryDecision.EXHAUSTED


@given(st.lists(st.tuples(st.sampled_from(Failure), st.booleans()), max_size=30), st.integers(1, 4))
def test_whatever_happens_no_more_workers_execute_a_request(
    failures: list[tuple[Failure, bool]], attempts: int
) -> None:
    state = RetryState(Retries(attempts=attempts, on=ALL_KINDS))
    executed = 0
    for slot, (failure, idempotent) in enumerate(failures):
        executed += failure not in NOT_EXECUTED
        fault = FAULT_OF.get(failure, WORKER_CLOSED)
        decision = state.decide(failure, fault, idempotent=idempotent, repeatable=True)
        if decision in (RetryDecision.FAIL, RetryDecision.EXHAUSTED):
            break
        assert executed < attempts or failure in NOT_EXECUTED
        if decision is not RetryDecision.RECONNECT:
            state.record(member(slot), failure, fault, 0.0)
    assert executed <= attempts


# -- which worker


def test_a_worker_that_may_have_read_it_does_not_get_it_again_but_its_successor_may() -> None:
    state = RetryState(Retries())
    first, second = member(0), member(1)
    state.record(first, Failure.BROKEN, WORKER_RESET, 0.0)
    state.record(second, Failure.UNSENT, CONNECT_FAILED, 0.0)
    assert set(state.avoided()) == {first, second}
    state.tried = ()
    assert state.avoided() == (first,)
    first.generation += 1
    assert state.avoided() == ()


def test_a_worker_that_refuses_does_not_hide_how_an_earlier_one_failed() -> None:
    state = RetryState(Retries())
    assert state.last_fault is NO_WORKER
    state.record(member(0), Failure.UNSENT, CONNECT_FAILED, 0.0)
    assert state.last_fault is CONNECT_FAILED
    state.record(member(1), Failure.BROKEN, BAD_RESPONSE, 0.0)
    state.record(member(2), Failure.UNSENT, CONNECT_FAILED, 0.0)
    assert state.last_fault is BAD_RESPONSE


@pytest.mark.parametrize("fault", [WORKER_RESET, WORKER_CLOSED, BAD_RESPONSE, RESPONSE_TIMEOUT])
def test_a_successor_is_waited_for_only_if_the_worker_may_have_died(fault: Fault) -> None:
    state = RetryState(Retries(on=ALL_KINDS))
    state.record(member(0), Failure.BROKEN, fault, 100.0)
    assert state.may_wait(100.0) is (fault in (WORKER_RESET, WORKER_CLOSED))
    assert not state.may_wait(101.0)


def test_only_after_a_kept_connection_has_ended_the_same_worker_may_be_asked_again() -> None:
    state = RetryState(Retries(attempts=3))
    state.record(member(0), Failure.STALE, WORKER_CLOSED, 0.0)
    assert (state.may_reconnect, state.new_connection_only) == (True, True)
    state.record(member(0), Failure.BROKEN, WORKER_CLOSED, 0.0)
    assert (state.may_reconnect, state.new_connection_only) == (False, True)
