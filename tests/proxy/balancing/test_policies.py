"""Turns are exact whichever members come and go, and a client keeps its worker.

Covers `balancing/policies/policy`, `balancing/policies/round_robin`, `balancing/policies/choice`.
Covers `balancing/policies/turns`.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.policies import client_hash
from penstock_proxy.balancing.policies.choice import POLICIES, policy
from penstock_proxy.balancing.policies.client_hash import ClientHash
from penstock_proxy.balancing.policies.least_connections import LeastConnections
from penstock_proxy.balancing.policies.policy import Policy
from penstock_proxy.balancing.policies.random_choice import PowerOfTwo, WeightedRandom
from penstock_proxy.balancing.policies.round_robin import RoundRobin
from penstock_proxy.balancing.policies.schedule import schedule
from penstock_proxy.config import Balance


@dataclass(eq=False, slots=True)
class Worker:
    address: str
    weight: int = 1
    active: int = 0
    weight_factor: float = 1.0
    slot: int = 0
    number: int = 0
    is_upstream: bool = False
    state: MemberState = MemberState.UP

    def __repr__(self) -> str:
        return self.address


def workers(*weights: int) -> list[Worker]:
    return [
        Worker(f"w{index}", weight, slot=index, number=index)
        for index, weight in enumerate(weights)
    ]


def names(policy: Policy[Worker], picks: int, avoid: Sequence[Worker] = ()) -> str:
    """Who was picked, as digits in order; "-" for none."""
    return "".join(
        "-" if member is None else member.address[1:]
        for member in (policy.pick("client", avoid) for _ in range(picks))
    )


def drawn(*numbers: float) -> Callable[[], float]:
    return iter(numbers).__next__


weights = st.lists(st.integers(1, 6), min_size=1, max_size=6)


# All policies


@pytest.mark.parametrize("balance", get_args(Balance))
@given(data=st.data())
def test_only_the_rotation_is_picked_and_the_avoided_never(
    balance: Balance, data: st.DataObject
) -> None:
    members = workers(*data.draw(weights))
    chosen = policy(balance, members, random.Random(7).random)
    assert chosen.pick("client", ()) is None, "no member is in the rotation yet"
    for _ in range(5):
        rotation = [member for member in members if data.draw(st.booleans())]
        avoid = [member for member in members if data.draw(st.booleans())]
        for member in members:
            member.active = data.draw(st.integers(0, 3))
        chosen.set_rotation(rotation)
        allowed = set(rotation) - set(avoid)
        for client in ("10.0.0.1", "::1", ""):
            picked = chosen.pick(client, avoid)
            assert picked in allowed if allowed else picked is None
            assert (chosen.pick(client, ()) is None) is (not rotation)


def test_each_name_in_the_configuration_is_a_policy() -> None:
    assert set(POLICIES) == set(get_args(Balance))


@pytest.mark.parametrize("balance", get_args(Balance))
def test_the_attributes_of_a_policy_are_true(balance: Balance) -> None:
    """The facts of its class, by what it does."""
    members = workers(1, 1, 1)

    def picked(client: str = "client") -> list[Worker | None]:
        chosen = policy(balance, members, random.Random(7).random)
        chosen.set_rotation(members)
        if slow:
            chosen.set_slow_start(slow)
        return [chosen.pick(client) for _ in range(60)]

    slow: list[Worker] = []
    facts = POLICIES[balance]
    idle = picked()
    assert facts.uses_client_address == any(picked(f"10.0.0.{n}") != idle for n in range(9))
    members[0].active = 5
    assert facts.counts_open == (picked() != idle)
    members[0].active = 0
    members[0].weight_factor = 0.1
    slow = [members[0]]
    assert facts.ignores_slow_start == (picked() == idle)


def test_every_policy_works_without_members() -> None:
    for balance in get_args(Balance):
        empty: list[Worker] = []
        chosen = policy(balance, empty, random.random)
        chosen.set_rotation([])
        assert chosen.pick("client", ()) is None


# Round robin


def test_workers_take_turns() -> None:
    members = workers(1, 1, 1)
    turns = RoundRobin(members, drawn())
    turns.set_rotation(members)
    assert names(turns, 7) == "0120120"


def test_a_heavy_worker_does_not_get_its_turns_in_one_row() -> None:
    # The example that nginx's smooth weighted round robin is known by.
    assert schedule([5, 1, 1]) == [0, 0, 1, 0, 2, 0, 0]


def test_weights_count_only_against_each_other() -> None:
    assert schedule([50, 100]) == schedule([1, 2])


@given(weights)
def test_a_round_holds_each_worker_as_often_as_its_weight(given_weights: list[int]) -> None:
    divisor = gcd(*given_weights)
    assert Counter(schedule(given_weights)) == {
        index: weight // divisor for index, weight in enumerate(given_weights)
    }


@given(weights, st.data())
def test_over_any_k_rounds_each_worker_gets_its_weight_times_k(
    given_weights: list[int], data: st.DataObject
) -> None:
    members = workers(*given_weights)
    rotation = data.draw(st.lists(st.sampled_from(members), min_size=1, unique=True))
    turns = RoundRobin(members, drawn())
    turns.set_rotation(rotation)
    names(turns, data.draw(st.integers(0, 30)))  # a window may begin anywhere

    rounds = data.draw(st.integers(1, 3))
    window = rounds * sum(member.weight for member in rotation)
    picked = Counter(turns.pick("client") for _ in range(window))
    assert picked == {member: rounds * member.weight for member in rotation}


def test_a_member_that_leaves_and_returns_moves_no_other_turn() -> None:
    members = workers(1, 1, 1, 1)
    turns = RoundRobin(members, drawn())
    turns.set_rotation(members)
    assert names(turns, 2) == "01"
    turns.set_rotation([members[0], members[2], members[3]])
    assert names(turns, 1) == "2", "1 has left, and 2 is still next"
    turns.set_rotation(members)
    assert names(turns, 5) == "30123"


class Walk:
    """The model: a finger on the schedule that skips members that are not wanted."""

    def __init__(self, members: Sequence[Worker]) -> None:
        self.places = [members[i] for i in schedule([member.weight for member in members])]
        self.finger = 0

    def pick(self, wanted: set[Worker]) -> Worker | None:
        if not wanted:
            return None
        while True:
            member = self.places[self.finger % len(self.places)]
            self.finger += 1
            if member in wanted:
                return member


@given(weights, st.data())
def test_turns_are_those_of_a_cursor_in_the_schedule(
    given_weights: list[int], data: st.DataObject
) -> None:
    members = workers(*given_weights)
    turns, model = RoundRobin(members, drawn()), Walk(members)
    rotation: set[Worker] = set()
    some = st.sets(st.sampled_from(members))
    for _ in range(data.draw(st.integers(1, 30))):
        if data.draw(st.booleans()):
            rotation = data.draw(some)
            turns.set_rotation(list(rotation))
        avoid = data.draw(some | st.just(set()))
        assert turns.pick("client", avoid) is model.pick(rotation - avoid)


@given(weights, st.data())
def test_a_member_that_is_removed_moves_no_other_turn(
    given_weights: list[int], data: st.DataObject
) -> None:
    members = workers(*given_weights)
    turns, model = RoundRobin(members, drawn()), Walk(members)
    left = list(members)
    some = st.sets(st.sampled_from(members))
    for _ in range(data.draw(st.integers(1, 30))):
        if data.draw(st.booleans()) and left:
            gone = left.pop(data.draw(st.integers(0, len(left) - 1)))
            # Out of the rotation first, as the pool does it.
            turns.set_rotation(left)
            turns.remove(gone)
        rotation = data.draw(some) & set(left)
        turns.set_rotation(list(rotation))
        avoid = data.draw(some)
        assert turns.pick("client", avoid) is model.pick(rotation - avoid)


class Ring:
    """The model of equals: they stand in the order in which they came, and a finger goes round."""

    def __init__(self) -> None:
        self.places: list[Worker] = []
        self.finger = 0

    def _step(self) -> Worker:
        member = self.places[self.finger]
        self.finger = (self.finger + 1) % len(self.places)
        return member

    def add(self, member: Worker, rotation: set[Worker]) -> None:
        while rotation and self.places[self.finger] not in rotation:
            self._step()
        self.places.append(member)

    def remove(self, member: Worker) -> None:
        place = self.places.index(member)
        del self.places[place]
        self.finger -= place < self.finger
        if self.finger == len(self.places):
            self.finger = 0

    def pick(self, wanted: set[Worker]) -> Worker | None:
        while wanted:
            if (member := self._step()) in wanted:
                return member
        return None


@given(st.lists(st.sampled_from(["add", "remove", "rotate", "pick", "pick", "pick"])), st.data())
def test_a_member_that_is_added_comes_last_and_moves_no_other_turn(
    steps: list[str], data: st.DataObject
) -> None:
    turns, model = RoundRobin[Worker]((), drawn()), Ring()
    rotation: set[Worker] = set()
    for number, step in enumerate(steps):
        if step == "add":
            new = Worker(f"w{number}")
            model.add(new, rotation)
            turns.add(new)
            if data.draw(st.booleans()):
                rotation.add(new)
                turns.set_rotation(list(rotation))
        elif step == "remove" and model.places:
            gone = data.draw(st.sampled_from(model.places))
            rotation.discard(gone)
            turns.set_rotation(list(rotation))
            turns.remove(gone)
            model.remove(gone)
        elif step == "rotate" and model.places:
            rotation = data.draw(st.sets(st.sampled_from(model.places)))
            turns.set_rotation(list(rotation))
        else:
            assert turns.pick("client") is model.pick(rotation)


@given(weights, st.integers(1, 6), st.data())
def test_the_next_member_stays_next_when_one_is_added_whatever_the_weights(
    given_weights: list[int], weight: int, data: st.DataObject
) -> None:
    members = workers(*given_weights)
    rotation = data.draw(st.lists(st.sampled_from(members), min_size=1, unique=True))
    turns, unchanged = RoundRobin(members, drawn()), RoundRobin(members, drawn())
    for one in (turns, unchanged):
        one.set_rotation(rotation)
    before = data.draw(st.integers(0, 30))
    assert names(turns, before) == names(unchanged, before)
    new = Worker("w9", weight)
    turns.add(new)
    assert turns.pick("client") is unchanged.pick("client")

    # And then each gets what it is worth, over any whole rounds.
    rotation.append(new)
    turns.set_rotation(rotation)
    window = sum(member.weight for member in rotation)
    picked = Counter(turns.pick("client") for _ in range(window))
    assert picked == {member: member.weight for member in rotation}


def test_rounds_may_become_shorter_and_longer() -> None:
    one, other, third, fourth = workers(2, 2, 1, 2)
    turns = RoundRobin([one, other, third], drawn())
    turns.remove(third)
    turns.set_rotation([one, other])
    assert names(turns, 2) == "01"
    turns.add(fourth)  # all are equals now: three places where there were four
    turns.set_rotation([one, other, fourth])
    assert names(turns, 4) == "0130"
    turns.remove(fourth)
    turns.add(third)
    turns.set_rotation([one, other, third])
    assert names(turns, 5) == "12010"


def test_a_retry_takes_the_next_turn_so_that_healthy_workers_stay_equal() -> None:
    members = workers(1, 1, 1)
    dead, turns = members[0], RoundRobin(members, drawn())
    turns.set_rotation(members)
    served: Counter[Worker | None] = Counter()
    for _ in range(20):
        picked = turns.pick("client")
        served[turns.pick("client", {dead}) if picked is dead else picked] += 1
    assert served == {members[1]: 10, members[2]: 10}


def test_credit_of_a_member_in_slow_start_is_dropped_when_it_leaves() -> None:
    members = workers(1, 1)
    turns = RoundRobin(members, drawn())
    turns.set_rotation(members)
    members[1].weight_factor = 0.5
    turns.set_slow_start(members[1:])
    assert names(turns, 3) == "001"
    turns.set_rotation(members[:1])
    turns.remove(members[1])
    assert not turns._credit
    assert names(turns, 2) == "00"


def test_a_pick_without_a_result_moves_no_turn() -> None:
    members = workers(1, 1)
    turns = RoundRobin(members, drawn())
    turns.set_rotation(members)
    assert names(turns, 3, avoid=members) == "---"
    assert names(turns, 3) == "010"


# Least connections


def test_the_member_with_the_fewest_requests_for_its_weight_is_picked() -> None:
    members = workers(1, 3, 1)
    least = LeastConnections(members, drawn())
    least.set_rotation(members)
    for member, active in zip(members, (1, 2, 1), strict=True):
        member.active = active
    assert names(least, 2) == "11"
    assert names(least, 4, avoid=[members[1]]) == "2020", "equals take turns"


def test_idle_workers_take_turns_by_weight() -> None:
    members = workers(3, 1)
    least = LeastConnections(members, drawn())
    least.set_rotation(members)
    assert Counter(names(least, 40)) == {"0": 30, "1": 10}


# Power of two


def test_of_two_the_one_with_fewer_requests_for_its_weight_is_picked() -> None:
    members = workers(1, 1, 4)
    members[0].active, members[1].active, members[2].active = 2, 1, 5
    # first = 0; the others from the one behind it are 1 and 2
    two: PowerOfTwo[Worker] = PowerOfTwo(members, drawn(0.0, 0.0, 0.0, 0.9, 0.9, 0.9))
    two.set_rotation(members)
    assert names(two, 3) == "121"


def test_the_two_are_always_different_and_every_pair_comes_up() -> None:
    members = workers(1, 1, 1)
    pairs = set()
    for first in (0.0, 0.4, 0.8):
        for second in (0.0, 0.6):
            two: PowerOfTwo[Worker] = PowerOfTwo(members, drawn(first, second))
            two.set_rotation(members)
            for member in members:
                member.active = 0
            one = two.pick("client")
            assert one is not None
            one.active = 1
            again: PowerOfTwo[Worker] = PowerOfTwo(members, drawn(first, second))
            again.set_rotation(members)
            other = again.pick("client")
            assert other is not None
            assert other is not one
            pairs.add((one.address, other.address))
    assert len(pairs) == 6


def test_a_tie_between_unequal_weights_is_drawn_by_weight() -> None:
    members = workers(3, 1)
    two: PowerOfTwo[Worker] = PowerOfTwo(members, random.Random(1).random)
    two.set_rotation(members)
    picked = Counter(names(two, 4000))
    assert picked["0"] == pytest.approx(3000, rel=0.05)


def test_a_lone_worker_needs_no_second_one() -> None:
    members = workers(1, 1)
    two: PowerOfTwo[Worker] = PowerOfTwo(members, drawn())
    two.set_rotation(members[:1])
    assert names(two, 1) == "0"
    two.set_rotation(members)
    assert names(two, 1, avoid=members[:1]) == "1"


# Hash

CLIENTS = [f"10.0.{n // 250}.{n % 250}" for n in range(2000)]


def homes(members: Sequence[Worker]) -> dict[str, Worker | None]:
    chosen: ClientHash[Worker] = ClientHash(members, drawn())
    chosen.set_rotation(members)
    return {client: chosen.pick(client) for client in CLIENTS}


def test_a_member_that_leaves_moves_only_its_own_clients() -> None:
    members = workers(1, 2, 1, 1)
    before, after = homes(members), homes(members[1:])
    assert {c for c in CLIENTS if before[c] is not after[c]} == {
        client for client, home in before.items() if home is members[0]
    }


def test_a_member_that_is_added_takes_its_share_of_clients_and_moves_no_others() -> None:
    *members, new = workers(1, 2, 1, 1)
    chosen: ClientHash[Worker] = ClientHash(members, drawn())
    chosen.set_rotation(members)
    before = {client: chosen.pick(client) for client in CLIENTS}
    chosen.add(new)
    assert {client: chosen.pick(client) for client in CLIENTS} == before
    chosen.set_rotation([*members, new])
    after = {client: chosen.pick(client) for client in CLIENTS}
    moved = {client for client in CLIENTS if after[client] is not before[client]}
    assert {after[client] for client in moved} == {new}
    assert len(moved) / len(CLIENTS) == pytest.approx(1 / 5, abs=0.04)
    chosen.set_rotation(members)
    chosen.remove(new)
    assert {client: chosen.pick(client) for client in CLIENTS} == before


def upstreams(*weights: int) -> list[Worker]:
    return [replace(member, is_upstream=True) for member in workers(*weights)]


def test_the_order_of_the_list_of_upstreams_moves_no_client() -> None:
    members = upstreams(1, 1, 2)
    for place, member in enumerate(reversed(members)):
        member.slot = member.number = place
    before = homes(upstreams(1, 1, 2))
    assert {c: str(home) for c, home in homes(members[::-1]).items()} == {
        c: str(home) for c, home in before.items()
    }


def test_the_order_of_workers_moves_no_client() -> None:
    members = workers(1, 1, 2)
    assert homes(members) == homes(members[::-1])


def test_clients_spread_by_weight() -> None:
    members = workers(1, 1, 2)
    share = Counter(homes(members).values())
    assert [share[m] / len(CLIENTS) for m in members] == pytest.approx([0.25, 0.25, 0.5], abs=0.04)


def test_the_next_proxy_sends_each_client_where_the_last_one_did() -> None:
    # Literal, so that a change of the hash is seen. Python's own differs by process.
    home = homes(upstreams(1, 1, 1, 1))
    assert "".join(str(home[client])[1:] for client in CLIENTS[:12]) == "002011303133"
    home = homes(workers(1, 1, 1, 1))
    assert "".join(str(home[client])[1:] for client in CLIENTS[:12]) == "203213212111"


def test_a_retry_goes_elsewhere_and_the_client_still_keeps_its_worker() -> None:
    members = workers(1, 1, 1)
    chosen: ClientHash[Worker] = ClientHash(members, drawn())
    chosen.set_rotation(members)
    home = chosen.pick("10.0.0.1")
    assert home is not None
    second = chosen.pick("10.0.0.1", [home])
    assert second not in (home, None)
    assert chosen.pick("10.0.0.1") is home
    chosen.set_rotation([member for member in members if member is not home])
    assert chosen.pick("10.0.0.1") is second, "the second choice is where it goes without home"


def test_the_cache_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_hash, "_MAX_CACHED_CLIENTS", 100)
    members = workers(1, 1)
    chosen: ClientHash[Worker] = ClientHash(members, drawn())
    chosen.set_rotation(members)
    first = {client: chosen.pick(client) for client in CLIENTS}
    assert len(chosen._cached) <= 100
    assert {client: chosen.pick(client) for client in CLIENTS} == first


def test_a_client_stays_in_its_slot_whichever_of_two_workers_has_it() -> None:
    """It goes to the newer one, if that is up."""
    old = workers(1, 1, 1)
    before = homes(old)
    new = Worker("another address", slot=1, number=7)
    for rotation in ([*old, new], [new, *old]):
        after = homes(rotation)
        for client, home in before.items():
            assert after[client] is (new if home is old[1] else home)
    assert homes([old[0], new, old[2]]) == after
    new.state = MemberState.DOWN  # in panic mode
    assert homes([*old, new]) == before
    old[1].state = MemberState.DOWN
    assert homes([*old, new]) == after


def test_a_retry_goes_to_the_other_worker_of_the_slot_first() -> None:
    members = [*workers(1, 1, 1), Worker("new", slot=1, number=7)]
    chosen: ClientHash[Worker] = ClientHash(members, drawn())
    chosen.set_rotation(members)
    client = next(client for client in CLIENTS if chosen.pick(client) is members[3])
    assert chosen.pick(client, [members[3]]) is members[1]


# Random


def test_a_random_pick_is_by_weight() -> None:
    members = workers(1, 3)
    lottery: WeightedRandom[Worker] = WeightedRandom(members, drawn(0.0, 0.25, 0.5, 0.999))
    lottery.set_rotation(members)
    assert names(lottery, 4) == "0111"


def test_a_hash_distinguishes_workers_without_an_address() -> None:
    members = [Worker("", slot=slot) for slot in range(3)]
    policy: ClientHash[Worker] = ClientHash(members, drawn())
    policy.set_rotation(members)
    found = [policy.pick(f"192.0.2.{number}") for number in range(60)]
    assert {member.slot for member in found if member is not None} == {0, 1, 2}
