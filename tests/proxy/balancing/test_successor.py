"""A worker and its successor share a slot for a time, and nobody else's turns or limits change."""

from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.config import Balance, Ejection, Health, Target

BALANCES = get_args(Balance)


class Service:
    """A pool of slots that each have one worker, which is up; numbers go on from there."""

    def __init__(
        self, *weights: int, balance: Balance = "round_robin", ejection: Ejection | None = None
    ) -> None:
        self.now = 0.0
        self.drawn = 0
        self.weights = weights
        self.panics: list[bool] = []
        self.pool = Pool(
            [
                Target(member=slot, slot=slot, address="", weight=weight, joined=True, up=True)
                for slot, weight in enumerate(weights)
            ],
            balance=balance,
            health=Health(rise=1, fall=1),
            ejection=ejection or Ejection(failures=1),
            random=self.random,
            on_change=lambda *_: None,
            on_panic=self.panics.append,
        )
        self.next_number = len(weights)

    def random(self) -> float:
        self.drawn += 1
        return self.drawn * 0.618033988749895 % 1

    def current(self, slot: int) -> Member:
        """The oldest worker in this slot."""
        return next(member for member in self.pool.members if member.slot == slot)

    def add_successor(self, slot: int) -> Member:
        target = Target(member=self.next_number, slot=slot, address="", weight=self.weights[slot])
        self.next_number += 1
        return self.pool.add(target)

    def check(self, member: Member, *, ok: bool = True, is_listening: bool = True) -> None:
        self.pool.checked(member, ok=ok, now=self.now, reason="", is_listening=is_listening)

    def enter(self, slot: int) -> Member:
        """A successor comes into the rotation beside the worker that is there."""
        new = self.add_successor(slot)
        self.pool.join(new.number)
        self.check(new)
        return new

    def leave(self, member: Member) -> None:
        """A worker is drained, ends and is removed."""
        self.pool.drain(member.number)
        self.pool.leave(member.number)
        self.pool.remove(member.number)

    def picked(self, times: int) -> list[Member]:
        found = [self.pool.pick(f"10.0.{n // 250}.{n % 250}") for n in range(times)]
        return [member for member in found if member is not None]


# Turns


@pytest.mark.parametrize("balance", ["round_robin", "least_connections"])
def test_both_have_their_turns_and_the_split_is_even_again_afterwards(balance: Balance) -> None:
    service = Service(1, 1, 1, balance=balance)
    for slot in range(3):
        old = service.current(slot)
        new = service.enter(slot)
        assert set(Counter(service.picked(40)).values()) == {10}
        service.leave(old)
        assert Counter(service.picked(30)) == dict.fromkeys(service.pool.members, 10)
        assert new in service.pool.members
        assert old not in service.pool.members


@pytest.mark.parametrize("balance", ["power_of_two", "random"])
def test_chance_is_even_again_when_the_old_worker_has_left(balance: Balance) -> None:
    service = Service(1, 1, 1, balance=balance)
    for slot in range(3):
        old = service.current(slot)
        service.enter(slot)
        assert len(Counter(service.picked(400))) == 4
        service.leave(old)
        shares = Counter(service.picked(3000))
        assert [shares[one] / 3000 for one in service.pool.members] == pytest.approx(
            [1 / 3] * 3, abs=0.03
        )


@given(data=st.data())
def test_who_stays_misses_no_turn_and_gets_none_twice(data: st.DataObject) -> None:
    """Whenever each step of a replacement happens, and whatever else is replaced at that time."""
    slots = data.draw(st.integers(2, 5))
    replaced = data.draw(st.lists(st.integers(1, slots - 1), max_size=6))
    service = Service(*[1] * slots)
    stays = [service.current(slot) for slot in range(slots) if slot not in replaced]
    turns: list[Member] = []

    def pick_some() -> None:
        turns.extend(service.picked(data.draw(st.integers(0, 7))))

    for slot in replaced:
        pick_some()
        new = service.add_successor(slot)
        pick_some()
        service.pool.join(new.number)
        pick_some()
        if data.draw(st.booleans()):
            # A bad one: it goes, and the old one stays.
            service.leave(new)
            continue
        service.check(new)
        pick_some()
        service.pool.drain(service.current(slot).number)
        pick_some()
        service.leave(service.current(slot))
    turns.extend(service.picked(2 * slots))
    seen = [member for member in turns if member in stays]
    assert seen == [stays[place % len(stays)] for place in range(len(seen))]
    assert Counter(turns[-slots:]) == dict.fromkeys(service.pool.members, 1)


@given(data=st.data())
def test_shares_are_by_weight_after_any_replacements(data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    service = Service(*weights)
    for slot in data.draw(st.lists(st.integers(0, len(weights) - 1), max_size=8)):
        service.picked(data.draw(st.integers(0, 9)))
        old = service.current(slot)
        service.enter(slot)
        service.picked(data.draw(st.integers(0, 9)))
        service.leave(old)
    shares = Counter(service.picked(10 * sum(weights)))
    assert [shares[service.current(slot)] for slot in range(len(weights))] == [
        10 * weight for weight in weights
    ]


@pytest.mark.parametrize("balance", BALANCES)
def test_a_successor_gets_nothing_before_its_first_good_check(balance: Balance) -> None:
    service = Service(1, 1, balance=balance)
    new = service.add_successor(0)
    assert new not in service.picked(40)
    service.pool.join(new.number)
    service.check(new, ok=False)
    assert new not in service.picked(40)
    service.check(new)
    assert new in service.picked(40)


def test_a_client_is_in_the_same_slot_before_during_and_after() -> None:
    service = Service(1, 2, 1, balance="client_hash")
    before = [member.slot for member in service.picked(500)]
    for slot in range(3):
        old = service.current(slot)
        new = service.enter(slot)
        during = service.picked(500)
        assert [member.slot for member in during] == before
        assert old not in during, "its clients are with the newer one, which is up"
        service.check(new, ok=False)
        again = service.picked(500)
        assert [member.slot for member in again] == before
        assert new not in again, "they are back with the old one"
        service.check(new)
        service.leave(old)
        assert [member.slot for member in service.picked(500)] == before


# Limits


@pytest.mark.parametrize("state", ["absent", "checking", "down", "gone"])
def test_a_successor_that_does_not_serve_brings_no_panic(state: str) -> None:
    """One of two slots serves, as many as there must be; the successor counts for its slot."""
    service = Service(1, 1, ejection=Ejection(failures=1, panic=0.5))
    service.check(service.current(1), ok=False)
    assert service.panics == []
    new = service.add_successor(0)
    if state != "absent":
        service.pool.join(new.number)
    if state in ("down", "gone"):
        service.check(new)
        service.check(new, ok=False, is_listening=state == "down")
    assert service.panics == []
    assert {member.slot for member in service.picked(8)} == {0}


def test_a_successor_that_is_not_in_the_rotation_lets_nobody_else_be_ejected() -> None:
    service = Service(1, 1, ejection=Ejection(failures=1, max_ejected=0.4))
    for slot in (0, 0, 1):
        service.add_successor(slot)
    joined = service.add_successor(1)
    service.pool.join(joined.number)
    service.pool.failed(service.current(0), service.now)
    assert service.current(0).state is MemberState.UP, "it would be one of two"


def test_a_bad_successor_may_be_ejected_where_the_slot_is_the_only_one() -> None:
    service = Service(1)
    new = service.enter(0)
    service.pool.failed(new, service.now)
    assert (new.state, service.current(0).state) == (MemberState.EJECTED, MemberState.UP)
    service.pool.failed(service.current(0), service.now)
    assert service.current(0).state is MemberState.UP


# What is shown


def ejections(service: Service) -> int:
    rows: list[dict[str, Any]] = service.pool.snapshot()
    return sum(row["ejections"] for row in rows if row["slot"] == 0)


def test_ejections_of_a_removed_worker_stay_counted_for_its_slot() -> None:
    service = Service(1, 1, 1)
    service.pool.failed(service.current(0), service.now)
    assert ejections(service) == 1
    old, new = service.current(0), service.enter(0)
    service.leave(old)
    assert ejections(service) == 1
    service.pool.failed(new, service.now)
    assert ejections(service) == 2
    service.leave(new)
    assert ejections(service) == 0, "the slot has no worker, and is not shown"
    service.enter(0)
    assert ejections(service) == 2
    assert [row["ejections"] for row in service.pool.snapshot() if row["slot"] != 0] == [0, 0]


def test_rows_name_the_member_and_its_slot() -> None:
    service = Service(1, 1)
    service.enter(0)
    assert [(row["member"], row["slot"]) for row in service.pool.snapshot()] == [
        (0, 0),
        (1, 1),
        (2, 0),
    ]
