"""Whoever is let in can be served: a proxy never runs out of descriptors in the middle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.service.fd_budget import RESERVE, FdBudget

COUNT = st.integers(0, 50)


def test_a_limit_that_lets_nobody_in_is_said_at_once() -> None:
    FdBudget(1 + 5 + RESERVE + 2, listeners=1, other=5).check()
    with pytest.raises(OSError, match="at least 56 descriptors are needed, and 55 allowed"):
        FdBudget(55, listeners=1, other=5).check()


def test_room_is_for_a_client_and_its_way_to_a_worker() -> None:
    account = FdBudget(RESERVE + 3 + 2, listeners=1, other=2)
    assert account.room() > 0
    account.clients += 1
    assert account.room() < 1


def test_a_client_without_its_worker_yet_keeps_the_place_for_it() -> None:
    account = FdBudget(RESERVE + 4, listeners=0, other=0)
    account.clients = 1
    assert account.room() > 0
    account.clients = 2
    assert account.room() < 1


def test_idle_connections_to_workers_take_room_too() -> None:
    account = FdBudget(RESERVE + 10, listeners=0, other=0)
    account.upstreams = 8
    assert account.room() > 0
    account.upstreams = 9
    assert account.room() < 1


def test_what_is_passed_to_a_worker_needs_one_until_it_is_taken() -> None:
    account = FdBudget(RESERVE + 5, listeners=0, other=0)
    account.pending = 1
    account.in_flight = 2
    assert account.room() > 0
    assert account.open == 1
    account.in_flight = 3
    assert account.room() < 1


@given(limit=st.integers(0, 400), listeners=COUNT, other=COUNT, events=st.lists(st.booleans()))
def test_everybody_who_was_let_in_finds_a_second_descriptor(
    limit: int, listeners: int, other: int, events: list[bool]
) -> None:
    account = FdBudget(limit, listeners, other)
    for connects in events:
        if connects and account.upstreams < account.clients:
            account.upstreams += 1
        else:
            # All at once, as an acceptor takes them.
            account.clients += max(0, account.room())
            assert account.room() < 1
    account.upstreams = max(account.upstreams, account.clients)
    assert account.clients == 0 or account.open + RESERVE <= limit


@given(listeners=COUNT, other=COUNT, clients=COUNT, upstreams=COUNT, pending=COUNT)
def test_the_kinds_add_up(
    listeners: int, other: int, clients: int, upstreams: int, pending: int
) -> None:
    account = FdBudget(1024, listeners, other)
    account.clients, account.upstreams, account.pending = clients, upstreams, pending
    assert sum(account.by_kind().values()) == account.open
    assert set(account.by_kind()) == {"listener", "client", "upstream", "other"}
