"""Who is ended to make room: nobody who is served, the greedy first, then the longest idle."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.errors import Fault
from penstock_proxy.listener.eviction import (
    GRACE_S,
    Candidate,
    Holder,
    candidates,
    choose,
    equal_share,
)
from penstock_proxy.net.timer_wheel import NEVER

NOW = 100.0
CAPACITY = 20


@dataclass(frozen=True)
class Client:
    counted_address: str
    idle_since: float
    is_kept_alive: bool
    number: int = 0

    def end_idle(self, fault: Fault) -> bool:
        raise NotImplementedError


def holder_of(address: str) -> Holder:
    return None, address


def count_in(clients: Sequence[Client], holder: Holder) -> int:
    """What the client limit would say: a trusted proxy's connections are not counted."""
    return sum(client.counted_address == holder[1] for client in clients) if holder[1] else 0


def share_of(clients: Sequence[Client]) -> int:
    return equal_share(CAPACITY, len({c.counted_address for c in clients} - {""}))


def victims(clients: Sequence[Client], wanted: int, min_idle_s: float = 0.0) -> list[Client]:
    found = candidates(clients, NOW, min_idle_s, holder_of)
    chosen = choose(found, wanted, partial(count_in, clients), share_of(clients))
    return [as_client(one) for one in chosen]


def as_client(one: Candidate) -> Client:
    assert isinstance(one.connection, Client)
    return one.connection


def may_be_ended(client: Client) -> bool:
    return client.idle_since + (0.0 if client.is_kept_alive else GRACE_S) <= NOW


SINCE = st.one_of(st.just(NEVER), st.floats(0, NOW + 5))
CLIENTS = st.lists(
    st.builds(Client, st.sampled_from(["", "a", "b", "c", "d"]), SINCE, st.booleans()),
    max_size=CAPACITY,
).map(
    lambda clients: [
        Client(one.counted_address, one.idle_since, one.is_kept_alive, number)
        for number, one in enumerate(clients)
    ]
)
WANTED = st.integers(1, CAPACITY)


@given(CLIENTS, WANTED)
def test_nobody_is_ended_who_is_served_or_has_just_come(clients: list[Client], wanted: int) -> None:
    assert all(map(may_be_ended, victims(clients, wanted)))


@given(CLIENTS, WANTED)
def test_as_many_as_are_wanted_are_ended_if_there_are_so_many(
    clients: list[Client], wanted: int
) -> None:
    chosen = victims(clients, wanted)
    assert len(chosen) == len(set(chosen)) == min(wanted, sum(map(may_be_ended, clients)))


@given(CLIENTS, WANTED)
def test_nobody_within_the_share_loses_before_all_that_others_have_above_it(
    clients: list[Client], wanted: int
) -> None:
    chosen = victims(clients, wanted)
    share = share_of(clients)
    had = Counter(client.counted_address for client in clients)
    lost = Counter(client.counted_address for client in chosen)
    left = [client for client in clients if client not in chosen]
    if any(address == "" or had[address] - count < share for address, count in lost.items()):
        # Somebody within the share lost one: so nobody has an endable one above the share.
        assert not any(
            client.counted_address
            and had[client.counted_address] - lost[client.counted_address] > share
            for client in filter(may_be_ended, left)
        )


@given(CLIENTS, WANTED)
def test_an_address_loses_its_kept_alive_connections_first_and_the_longest_idle_of_them(
    clients: list[Client], wanted: int
) -> None:
    chosen = victims(clients, wanted)
    for lost in chosen:
        for other in filter(may_be_ended, clients):
            if other.counted_address == lost.counted_address and other not in chosen:
                assert (not lost.is_kept_alive, lost.idle_since) <= (
                    not other.is_kept_alive,
                    other.idle_since,
                )


@given(CLIENTS, WANTED)
def test_after_enough_rounds_no_address_has_more_idle_ones_than_its_share(
    clients: list[Client], wanted: int
) -> None:
    """Round after round, as many as wait are ended, as long as anybody is above the share."""
    share = share_of(clients)
    left = list(clients)
    for _ in range(CAPACITY):
        found = candidates(left, NOW, 0.0, holder_of)
        ended = {as_client(one) for one in choose(found, wanted, partial(count_in, left), share)}
        left = [client for client in left if client not in ended]
    idle = Counter(client.counted_address for client in left if may_be_ended(client))
    assert all(count <= share for address, count in idle.items() if address)


def test_two_addresses_that_have_everything_both_lose_and_a_third_loses_nothing() -> None:
    greedy = [Client(address, 50 + n, True, n) for n in range(9) for address in ("a", "b")]
    modest = [Client("c", 1, True), Client("c", 2, True, 1)]
    lost = Counter(client.counted_address for client in victims([*modest, *greedy], 8))
    assert lost == {"a": 4, "b": 4}


def test_within_the_share_a_kept_alive_connection_goes_before_half_a_request() -> None:
    clients = [Client("a", 10, False), Client("b", 90, True), Client("c", 80, True)]
    assert [one.counted_address for one in victims(clients, 3)] == ["c", "b", "a"]


def test_half_a_request_of_a_greedy_address_goes_before_another_ones_kept_connection() -> None:
    greedy = [Client("a", 90, False, n) for n in range(15)]
    clients = [Client("b", 1, True), *greedy]
    assert {one.counted_address for one in victims(clients, 5)} == {"a"}


def test_only_who_has_been_idle_for_a_moment_is_ended_before_anybody_has_waited() -> None:
    clients = [Client("a", NOW - 2, True), Client("b", NOW - 0.5, True)]
    assert [one.counted_address for one in victims(clients, 2, min_idle_s=1.0)] == ["a"]
    assert len(victims(clients, 2)) == 2


def test_a_share_is_never_nothing() -> None:
    assert equal_share(100, 2) == 33
    assert equal_share(3, 100) == 1
