"""No client has more connections than the limit, and no entry stays without a connection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.service.client_limit import ClientLimit


def test_a_client_has_connections_up_to_its_limit_and_no_more() -> None:
    client_limit = ClientLimit(2)
    assert [client_limit.acquire("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert client_limit.acquire("192.0.2.2")
    client_limit.release("192.0.2.1")
    assert client_limit.acquire("192.0.2.1")
    assert not client_limit.acquire("192.0.2.1")


def test_without_a_limit_every_connection_is_accepted_and_counted() -> None:
    client_limit = ClientLimit(0)
    assert all(client_limit.acquire("192.0.2.1") for _ in range(100))
    client_limit.max_per_client = 100
    assert not client_limit.acquire("192.0.2.1")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("not:an:address", "not:an:address", True),
    ],
)
def test_an_ipv6_network_of_64_bits_is_one_client(one: str, other: str, same: bool) -> None:
    client_limit = ClientLimit(1)
    assert client_limit.acquire(one)
    assert client_limit.acquire(other) is not same


ADDRESS = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:1::"])


@given(st.integers(0, 3), st.lists(st.tuples(ADDRESS, st.booleans()), max_size=60))
def test_the_count_is_as_large_as_there_are_connections(
    most: int, events: list[tuple[str, bool]]
) -> None:
    client_limit = ClientLimit(most)
    inside: list[str] = []
    for address, opens in events:
        if opens:
            if client_limit.acquire(address):
                inside.append(address)
        elif address in inside:
            inside.remove(address)
            client_limit.release(address)
        assert len(client_limit) <= len(inside)
    for address in inside:
        client_limit.release(address)
    assert len(client_limit) == 0


def test_a_connection_that_is_counted_for_another_client_leaves_the_first_one() -> None:
    limit = ClientLimit(1)
    assert limit.acquire("192.0.2.1")
    limit.move("192.0.2.1", "192.0.2.1")
    assert limit.count("192.0.2.1") == 1
    # Whatever the limit: it is there already.
    assert limit.acquire("192.0.2.2")
    limit.move("192.0.2.1", "192.0.2.2")
    assert (limit.count("192.0.2.1"), limit.count("192.0.2.2")) == (0, 2)
    limit.move("192.0.2.2", "")
    limit.move("", "192.0.2.1")
    assert (limit.count("192.0.2.1"), limit.count("192.0.2.2")) == (1, 1)
