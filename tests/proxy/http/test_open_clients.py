"""Whoever looks for old connections sees each of them in turn, and never all at once."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.http.open_clients import ClientHandle, OpenClients


@given(st.integers(0, 30), st.integers(1, 12))
def test_each_has_its_turn_before_any_has_a_second_one(count: int, limit: int) -> None:
    clients = OpenClients()
    all_of_them = [ClientHandle() for _ in range(count)]
    for client in all_of_them:
        clients.add(client)
    seen: list[ClientHandle] = []
    while len(seen) < count:
        batch = clients.next_batch(limit)
        assert len(batch) == min(limit, count)
        seen += batch
    assert seen[:count] == all_of_them
    assert len(clients) == count


def test_one_that_is_closed_is_not_looked_at() -> None:
    clients = OpenClients()
    first, other = ClientHandle(), ClientHandle()
    clients.add(first)
    clients.add(other)
    clients.discard(first)
    clients.discard(first)
    assert clients.next_batch(10) == list(clients) == [other]
