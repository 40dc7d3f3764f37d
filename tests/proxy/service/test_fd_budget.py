"""Every accepted client can be served: a proxy never runs out of descriptors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.service.fd_budget import RESERVE, FdBudget

COUNT = st.integers(0, 50)


def test_a_limit_too_low_for_one_connection_is_an_error_at_once() -> None:
    FdBudget(1 + 5 + RESERVE + 2, listeners=1, other=5).check()
    with pytest.raises(OSError, match="at least 56 descriptors are needed, and 55 allowed"):
        FdBudget(55, listeners=1, other=5).check()


def test_room_is_for_a_client_and_its_connection_to_a_worker() -> None:
    budget = FdBudget(RESERVE + 3 + 2, listeners=1, other=2)
    assert budget.room() > 0
    budget.clients += 1
    assert budget.room() < 1


def test_a_client_without_a_worker_yet_reserves_a_descriptor_for_it() -> None:
    budget = FdBudget(RESERVE + 4, listeners=0, other=0)
    budget.clients = 1
    assert budget.room() > 0
    budget.clients = 2
    assert budget.room() < 1


def test_idle_connections_to_workers_take_room_too() -> None:
    budget = FdBudget(RESERVE + 10, listeners=0, other=0)
    budget.upstreams = 8
    assert budget.room() > 0
    budget.upstreams = 9
    assert budget.room() < 1


def test_a_passed_connection_needs_one_descriptor_until_it_is_accepted() -> None:
    budget = FdBudget(RESERVE + 5, listeners=0, other=0)
    budget.pending = 1
    budget.in_flight = 2
    assert budget.room() > 0
    assert budget.open == 1
    budget.in_flight = 3
    assert budget.room() < 1


def test_a_pipe_takes_the_room_of_a_client() -> None:
    budget = FdBudget(RESERVE + 4, listeners=0, other=0)
    budget.pipes = 2
    assert budget.room() == 1
    assert budget.open == 2


@given(limit=st.integers(0, 400), listeners=COUNT, other=COUNT, events=st.lists(st.booleans()))
def test_every_accepted_client_finds_a_second_descriptor(
    limit: int, listeners: int, other: int, events: list[bool]
) -> None:
    budget = FdBudget(limit, listeners, other)
    for connects in events:
        if connects and budget.upstreams < budget.clients:
            budget.upstreams += 1
        else:
            # All at once, as an acceptor takes them.
            budget.clients += max(0, budget.room())
            assert budget.room() < 1
    budget.upstreams = max(budget.upstreams, budget.clients)
    assert budget.clients == 0 or budget.open + RESERVE <= limit


@given(listeners=COUNT, other=COUNT, clients=COUNT, upstreams=COUNT, pending=COUNT, pipes=COUNT)
def test_the_kinds_add_up(
    listeners: int, other: int, clients: int, upstreams: int, pending: int, pipes: int
) -> None:
    budget = FdBudget(1024, listeners, other)
    budget.clients, budget.upstreams, budget.pending = clients, upstreams, pending
    budget.pipes = pipes
    assert sum(budget.by_kind().values()) == budget.open
    assert set(budget.by_kind()) == {"listener", "client", "upstream", "pipe", "other"}
