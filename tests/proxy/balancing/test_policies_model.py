"""The fast order by load picks what a plain definition of the policy picks, whatever happens.

Covers `balancing/policies/least_connections` and `balancing/policies/schedule`.
Covers `balancing/policies/random_choice` and `balancing/policies/client_hash`.
"""

import random
from collections import Counter
from collections.abc import Collection
from math import gcd
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.proxy.balancing.test_policies import Worker, workers

from penstock_proxy.balancing.policies.client_hash import ClientHash
from penstock_proxy.balancing.policies.least_connections import LeastConnections
from penstock_proxy.balancing.policies.random_choice import PowerOfTwo, WeightedRandom
from penstock_proxy.balancing.policies.schedule import same_turn, schedule


class Plain:
    """Least connections as a sentence: of those with the least load the next one in the order of
    turns, where one in slow start has to save up for its turn."""

    def __init__(self, members: list[Worker]) -> None:
        self.members = list(members)
        self.order = self._turns()
        self.at = 0
        self.credit: dict[Worker, float] = {}

    def _turns(self) -> list[Worker]:
        return [self.members[index] for index in schedule([one.weight for one in self.members])]

    def add(self, member: Worker) -> None:
        self.members.append(member)
        before, self.order = self.order, self._turns()
        self.at = same_turn(before, self.at, self.order) if before else 0

    def remove(self, member: Worker) -> None:
        self.members.remove(member)
        self.credit.pop(member, None)
        self.at -= self.order[: self.at].count(member)
        self.order = [one for one in self.order if one is not member]
        self.at %= max(1, len(self.order))

    def load(self, member: Worker) -> float:
        if member in self.credit:
            return member.active / (member.weight * member.weight_factor)
        return member.active / member.weight

    def pick(self, rotation: Collection[Worker], avoid: Collection[Worker]) -> Worker | None:
        allowed = [one for one in rotation if one not in avoid]
        if not allowed:
            return None
        least = min(map(self.load, allowed))
        otherwise = None
        for step in range(len(self.order)):
            place = (self.at + step) % len(self.order)
            member = self.order[place]
            if member not in allowed or self.load(member) != least:
                continue
            if member in self.credit:
                self.credit[member] += member.weight_factor
                if self.credit[member] < 1 - 1e-9:
                    otherwise = place if otherwise is None else otherwise
                    continue
                self.credit[member] -= 1
            otherwise = place
            break
        assert otherwise is not None
        self.at = (otherwise + 1) % len(self.order)
        return self.order[otherwise]


class LeastConnectionsModel(RuleBasedStateMachine):
    """Requests come and end, members come, go and change."""

    @initialize(weights=st.lists(st.integers(1, 4), max_size=6))
    def start(self, weights: list[int]) -> None:
        self.members = workers(*weights)
        self.policy = LeastConnections(self.members, random.random)
        self.plain = Plain(self.members)
        self.rotation: list[Worker] = []
        self.in_flight: list[Worker] = []
        self.number = len(weights)

    @rule(data=st.data(), count=st.integers(1, 8))
    def requests(self, data: st.DataObject, count: int) -> None:
        avoid = [one for one in self.members if data.draw(st.integers(0, 5)) == 0]
        for _ in range(count):
            expected = self.plain.pick(self.rotation, avoid)
            assert self.policy.pick("", avoid) is expected
            if expected is not None:
                expected.active += 1
                self.in_flight.append(expected)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, len(self.in_flight)))):
            member = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
            member.active -= 1
            self.policy.lessened(member)

    @rule(data=st.data())
    def rotates(self, data: st.DataObject) -> None:
        self.rotation = [one for one in self.members if data.draw(st.integers(0, 3))]
        self.policy.set_rotation(self.rotation)

    @rule(weight=st.integers(1, 4))
    def comes(self, weight: int) -> None:
        member = Worker(f"w{self.number}", weight, slot=self.number, number=self.number)
        self.number += 1
        self.members.append(member)
        self.policy.add(member)
        self.plain.add(member)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.members))
        self.members.remove(member)
        self.rotation = [one for one in self.rotation if one is not member]
        self.policy.set_rotation(self.rotation)
        self.policy.remove(member)
        self.plain.remove(member)

    @rule(data=st.data())
    def warms_up(self, data: st.DataObject) -> None:
        for member in self.members:
            member.weight_factor = data.draw(st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.0]))
        slow = [one for one in self.members if one.weight_factor < 1]
        self.policy.set_slow_start(slow)
        self.plain.credit = {one: self.plain.credit.get(one, 0.0) for one in slow}


TestLeastConnections = LeastConnectionsModel.TestCase
TestLeastConnections.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_the_schedule_is_the_smooth_one_of_nginx(weights: list[int]) -> None:
    divisor = gcd(*weights)
    total = sum(weights) // divisor
    credit = [0] * len(weights)
    expected = []
    for _ in range(total):
        credit = [have + weight // divisor for have, weight in zip(credit, weights, strict=True)]
        richest = max(range(len(credit)), key=credit.__getitem__)
        credit[richest] -= total
        expected.append(richest)
    assert schedule(weights) == expected


class Counted(list[Worker]):
    """Members, and how many of them were looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


def test_a_pick_among_a_thousand_looks_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    members = workers(*[1] * 1000)
    least = LeastConnections(members, random.random)
    least.set_rotation(members)
    looked = least._schedule = Counted(least._schedule)
    in_flight = []
    dice = random.Random(3)
    for _ in range(5000):
        picked = least.pick("")
        assert picked is not None
        picked.active += 1
        in_flight.append(picked)
        if len(in_flight) > 1500:
            ended = in_flight.pop(dice.randrange(len(in_flight)))
            ended.active -= 1
            least.lessened(ended)
    assert looked.looks <= 4 * 5000
    assert len(least._loads) == len(least._known) < 20


@pytest.mark.parametrize("kind", [PowerOfTwo, WeightedRandom])
def test_of_many_members_those_to_avoid_are_never_drawn(kind: type) -> None:
    members = workers(*[1] * 100)
    policy = kind(members, random.Random(5).random)
    policy.set_rotation(members)
    for count in (0, 1, 50, 97, 98, 99):
        avoid = set(members[:count])
        picked = Counter(policy.pick("", avoid) for _ in range(2000))
        assert set(picked) <= set(members) - avoid
        assert len(picked) > (100 - count) * 0.9
    assert policy.pick("", members) is None


def test_of_many_members_one_in_slow_start_is_drawn_by_its_part() -> None:
    members = workers(*[1] * 50)
    policy: WeightedRandom[Worker] = WeightedRandom(members, random.Random(5).random)
    policy.set_rotation(members)
    for member in members[:25]:
        member.weight_factor = 0.2
    policy.set_slow_start(members[:25])
    picked = Counter(policy.pick("") for _ in range(6000))
    slow = sum(picked[one] for one in members[:25])
    assert slow / 6000 == pytest.approx(0.2 / 1.2, abs=0.02)


@pytest.mark.parametrize("count", [2, 5, 20, 200])
def test_clients_are_spread_evenly_over_few_and_many(count: int) -> None:
    members = workers(*[1] * count)
    ring: ClientHash[Worker] = ClientHash(members, random.random)
    ring.set_rotation(members)
    clients = 400 * count
    share = Counter(ring.pick(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(clients))
    # Of 400 clients, 20 more or less are chance.
    assert max(share.values()) < 1.4 * 400
    assert min(share.values()) > 0.6 * 400


def test_a_ring_that_was_changed_step_by_step_is_the_one_that_is_made_anew() -> None:
    members = workers(*[1, 2, 3] * 20)
    ring: ClientHash[Worker] = ClientHash(members, random.random)
    dice = random.Random(9)
    for _ in range(30):
        rotation = dice.sample(members, dice.randrange(1, len(members)))
        ring.set_rotation(rotation)
        fresh: ClientHash[Worker] = ClientHash(members, random.random)
        fresh.set_rotation(rotation)
        for client in ("10.0.0.1", "::1", "", "10.9.8.7"):
            assert ring.pick(client) is fresh.pick(client)


def test_weights_beyond_the_bound_of_points_still_count() -> None:
    members = workers(*[100] * 50, *[50] * 50)
    ring: ClientHash[Worker] = ClientHash(members, random.random)
    ring.set_rotation(members)
    assert len(ring._ring) <= 1 << 17
    heavy = sum(ring.pick(f"c{n}") in members[:50] for n in range(3000))
    assert heavy / 3000 == pytest.approx(2 / 3, abs=0.05)
