"""A policy is exchanged for another one while members come, go and change, and picks of nobody else
meanwhile; no change of one member looks at the others."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_proxy.balancing.member import Member
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.policies.client_hash import ClientHash
from penstock_proxy.balancing.pool import Pool
from penstock_proxy.config import Balance, Ejection, Health, Target

EVERY: list[Balance] = list(get_args(Balance))


def never_told(*_: object) -> None:
    """Whoever is told of changes."""


class Events:
    """A pool, and what may happen to its members at any time."""

    def __init__(self, balance: Balance, dice: random.Random, count: int, weights: int) -> None:
        self.dice = dice
        self.weights = weights
        self.number = 0
        self.pool = Pool(
            (), balance=balance, health=Health(rise=1, fall=1), ejection=Ejection(panic=0.4),
            random=dice.random, on_change=never_told,
        )  # fmt: skip
        for _ in range(count):
            self.add()
        for member in self.pool.members:
            self.check(member, ok=True)

    def add(self) -> None:
        weight = self.dice.randint(1, self.weights)
        number = self.number = self.number + 1
        self.pool.add(Target(member=number, slot=number, address="", joined=True, weight=weight))

    def check(self, member: Member, *, ok: bool, is_listening: bool = True) -> None:
        self.pool.checked(member, ok=ok, now=0.0, reason="", is_listening=is_listening)

    def happens(self) -> None:
        """Something does."""
        members, dice = self.pool.members, self.dice
        what = dice.randrange(5)
        if what == 0 or not members:
            self.add()
        elif what == 1:
            self.pool.remove(dice.choice(members).number)
        else:
            is_listening = dice.random() < 0.7
            self.check(dice.choice(members), ok=what < 4, is_listening=is_listening)

    def picks(self) -> None:
        """It picks one of those that may be picked, if there is one, and else nobody."""
        for number in range(3):
            member = self.pool.pick(f"10.0.0.{number}")
            assert member in self.pool.eligible if self.pool.eligible else member is None
        up = {member for member in self.pool.members if member.state is MemberState.UP}
        assert up <= set(self.pool.eligible) <= set(self.pool.members)
        assert len(self.pool.eligible) == self.pool.available

    def shares(self) -> Counter[int]:
        """Of one round, by number."""
        turns = sum(member.weight for member in self.pool.eligible)
        return Counter(one.number for one in map(self.pool.pick, [""] * turns) if one is not None)


def interleaved(events: Events, work: Iterator[None], times: int) -> None:
    """Do the work, and let so many things happen in each of its steps."""
    for _ in work:
        for _ in range(times):
            events.happens()
            events.picks()
    events.picks()


@pytest.mark.parametrize("after", EVERY)
@pytest.mark.parametrize("before", EVERY)
@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 30), times=st.integers(0, 2), weights=st.sampled_from([1, 4]))
def test_every_policy_is_exchanged_for_every_other_one_while_members_come_and_go(
    before: Balance, after: Balance, seed: int, times: int, weights: int
) -> None:
    events = Events(before, random.Random(seed), 20, weights)
    pool = events.pool
    changed = {member.number: events.dice.randint(1, weights) for member in pool.members}
    interleaved(events, pool.setting_weights(changed), times)
    work = pool.configuring(after, Health(rise=1, fall=1), Ejection(panic=0.4), 0, 0.0)
    interleaved(events, work, times)
    assert pool._rotation._coming is None
    if after == "round_robin":
        expected = {member.number: member.weight for member in pool.eligible}
        assert events.shares() == expected
    for member in pool.members:
        pool.remove(member.number)
    assert pool.pick("") is None


class Looked:
    """Counts how often a number of a member is looked at: its hash is."""

    looks = 0


@pytest.mark.parametrize("balance", EVERY)
@pytest.mark.parametrize("panic", [0.0, 0.25])
def test_a_member_that_comes_enters_leaves_or_goes_is_the_only_one_that_is_looked_at(
    balance: Balance, panic: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def most(count: int) -> int:
        """How often members were looked up for the change of one of these, at the most."""
        events = Events(balance, random.Random(7), count, 1)
        pool = events.pool
        pool.configure(balance, Health(rise=1, fall=1), Ejection(panic=panic), 0, 0.0)
        found = []
        for member in events.dice.sample(pool.members, count // 2):
            for ok in (False, True, False, True):
                Looked.looks = 0
                events.check(member, ok=ok)
                found.append(Looked.looks)
        for _ in range(20):
            Looked.looks = 0
            events.add()
            found.append(Looked.looks)
        return max(found)

    def counted(_: Member) -> int:
        Looked.looks += 1
        return object.__hash__(_)

    monkeypatch.setattr(Member, "__hash__", counted)
    assert most(400) <= most(20) + 5


def test_many_members_of_unequal_weights_have_their_shares_at_once_and_even_turns_soon() -> None:
    events = Events("round_robin", random.Random(3), 0, 3)
    pool = events.pool
    for _ in range(300):
        events.add()
    assert pool._policy.is_rough
    for member in pool.members:
        events.check(member, ok=True)
    expected = {member.number: member.weight for member in pool.members}
    assert events.shares() == expected
    steps = 0
    for _ in pool.ticking(0.0):
        steps += 1
        events.picks()
    assert next(pool.ticking(0.0), pool) is pool, "nothing is left to do"
    assert steps > 300
    assert events.shares() == expected
    heavy = next(member for member in pool.members if member.weight == 3)
    round_ = [pool.pick("") for _ in range(sum(expected.values()))]
    at = [place for place, member in enumerate(round_) if member is heavy]
    assert all(after - before > len(round_) // 6 for before, after in pairwise(at))


def test_a_large_ring_whose_weights_cross_its_bound_is_made_anew_in_steps() -> None:
    events = Events("client_hash", random.Random(3), 0, 1)
    pool = events.pool
    events.weights = 100
    for _ in range(100):
        events.add()
    ring = pool._policy
    assert isinstance(ring, ClientHash)
    assert ring.is_rough
    for member in pool.members:
        events.check(member, ok=True)
    steps = 0
    for _ in pool.ticking(0.0):
        steps += 1
        events.picks()
    another = pool._policy
    assert isinstance(another, ClientHash)
    assert len(ring._ring) < len(another._ring) <= 1 << 17
    assert steps > len(another._ring) / 64
    assert not another.is_rough
    fresh: ClientHash[Member] = ClientHash(pool.members, random.random)
    fresh.set_rotation(pool.members)
    for number in range(100):
        assert pool.pick(f"10.0.0.{number}") is fresh.pick(f"10.0.0.{number}")
