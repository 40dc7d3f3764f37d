"""Members are added and removed at any time, and nothing is kept of removed ones: `pool`."""

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.config import Balance, Ejection, Health, Target

EVERY = pytest.mark.parametrize("balance", get_args(Balance))
UP = "was up before the proxy was restarted"
FIRST = "passed its first check"


class Service:
    """A pool that begins empty, and the changes that it reported."""

    def __init__(
        self,
        balance: Balance = "round_robin",
        *,
        per_worker: int = 0,
        slow_start: float = 0.0,
        panic: float = 0.0,
        max_ejected: float = 1.0,
    ) -> None:
        self.changes: list[tuple[int, str]] = []
        self.panics: list[bool] = []
        self.now = 1000.0
        self.drawn = 0
        self.pool = Pool(
            (),
            balance=balance,
            health=Health(rise=1, fall=1, slow_start=slow_start),
            ejection=Ejection(failures=1, max_ejected=max_ejected, panic=panic),
            random=self.random,
            on_change=lambda member, reason: self.changes.append((member.number, reason)),
            on_panic=self.panics.append,
            per_worker=per_worker,
        )

    def random(self) -> float:
        """Every third, and not the same each time."""
        self.drawn += 1
        return self.drawn % 7 / 7

    def add(self, *slots: int, up: bool = True) -> None:
        for slot in slots:
            member = self.pool.add(
                Target(member=slot, slot=slot, address=f"127.0.0.1:{slot + 1}", joined=True)
            )
            if up:
                self.check(member)

    def check(self, member: Member, *, ok: bool = True, is_listening: bool = True) -> None:
        self.pool.checked(member, ok=ok, now=self.now, reason="HTTP 500", is_listening=is_listening)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.pool.tick(self.now)

    def turns(self, picks: int, avoid: Sequence[Member] = ()) -> list[int]:
        found = (self.pool.pick(f"10.0.0.{n}", avoid) for n in range(picks))
        return [member.slot for member in found if member is not None]


# Those that are added


@EVERY
def test_an_added_member_is_picked_after_its_first_good_check(balance: Balance) -> None:
    service = Service(balance)
    assert service.turns(3) == []
    service.add(3, up=False)
    assert service.turns(3) == []
    service.check(service.pool.member(3), ok=False)
    assert service.turns(3) == []
    service.check(service.pool.member(3))
    assert service.turns(3) == [3, 3, 3]
    assert service.changes == [(3, FIRST)]


def test_an_added_member_without_a_process_waits_for_it() -> None:
    service = Service()
    member = service.pool.add(Target(member=0, slot=0, address=""))
    assert member.state is MemberState.ABSENT
    service.check(member)
    assert service.turns(1) == []
    service.pool.join(0)
    service.check(member)
    assert service.turns(1) == [0]


def test_a_member_that_is_added_as_up_is_picked_at_once_and_reported() -> None:
    service = Service(slow_start=10.0)
    service.pool.add(Target(member=0, slot=0, address="", joined=True, up=True))
    assert (service.turns(1), service.pool.available, service.changes) == ([0], 1, [(0, UP)])


def test_a_number_is_given_once() -> None:
    service = Service()
    service.add(0)
    with pytest.raises(ValueError, match="member 0 is there already"):
        service.add(0)
    with pytest.raises(KeyError):
        service.pool.remove(1)


def test_an_added_member_has_a_slow_start() -> None:
    service = Service(slow_start=10.0)
    service.add(0, 1)
    service.wait(100.0)
    service.add(2)
    assert service.pool.member(2).weight_factor == 0.1
    assert service.turns(42).count(2) == 2
    service.wait(10.0)
    assert service.turns(42).count(2) == 14


# Those that are removed


@EVERY
def test_a_removed_member_is_not_picked_and_is_reported(balance: Balance) -> None:
    service = Service(balance)
    service.add(0, 1, 2)
    service.changes.clear()
    removed = service.pool.remove(1)
    assert (removed.slot, removed.state) == (1, MemberState.ABSENT)
    assert set(service.turns(60)) == {0, 2}
    assert service.changes == [(1, "was removed")]
    assert [row["slot"] for row in service.pool.snapshot()] == [0, 2]


@EVERY
def test_after_the_last_member_the_rotation_is_empty_until_another_is_added(
    balance: Balance,
) -> None:
    service = Service(balance)
    service.add(0)
    service.pool.remove(0)
    assert (service.turns(2), service.pool.in_rotation, service.pool.available) == ([], 0, 0)
    service.add(0)
    assert service.turns(2) == [0, 0]


@EVERY
def test_requests_of_a_removed_member_may_end_later(balance: Balance) -> None:
    service = Service(balance, per_worker=1)
    service.add(0, 1)
    for _ in range(2):
        member = service.pool.pick("10.0.0.1")
        assert member is not None
        member.active += 1
    gone = service.pool.remove(0)
    service.add(0)
    new = service.pool.member(0)
    assert (gone.active, new.active, service.pool.available) == (1, 0, 1)

    service.pool.failed(gone, service.now)
    service.pool.succeeded(gone)
    gone.active -= 1
    assert not service.pool.released(gone), "there is no more room than before"
    service.check(gone, is_listening=False)
    service.check(gone, ok=False)
    assert gone.state is MemberState.ABSENT
    assert (new.state, new.consecutive_failures, service.pool.available) == (MemberState.UP, 0, 1)
    assert service.turns(1) == [0]


def test_a_removed_ejected_member_ends_no_other_ejection() -> None:
    service = Service()
    service.add(0, 1, 2)
    service.pool.failed(service.pool.member(0), service.now)
    service.pool.failed(service.pool.member(1), service.now)
    service.changes.clear()
    service.pool.remove(0)
    assert not service.changes, "it was out already"
    assert service.turns(2) == [2, 2]
    service.wait(10.0)
    assert (sorted(service.turns(2)), service.changes) == ([1, 2], [(1, "its ejection is over")])


def test_ejections_end_when_the_last_other_member_is_removed() -> None:
    service = Service()
    service.add(0, 1)
    service.pool.failed(service.pool.member(0), service.now)
    service.changes.clear()
    service.pool.remove(1)
    assert service.turns(1) == [0]
    assert service.changes == [(1, "was removed"), (0, "nobody else is left")]


def test_a_removal_counts_in_what_may_be_ejected() -> None:
    service = Service(max_ejected=0.5)
    service.add(0, 1, 2, 3)
    service.pool.failed(service.pool.member(0), service.now)
    service.pool.remove(2)
    service.pool.failed(service.pool.member(1), service.now)
    assert service.pool.in_rotation == 2, "1 of 3 is ejected, 2 of 3 would be too many"


def test_panic_mode_ends_when_the_members_that_caused_it_are_removed() -> None:
    service = Service(panic=0.5)
    service.add(0, 1, 2, 3, 4)
    for slot in (0, 1, 2):
        service.check(service.pool.member(slot), ok=False)
    assert (service.panics, set(service.turns(9))) == ([True], {0, 1, 2, 3, 4})
    service.pool.remove(0)
    assert service.panics == [True, False]
    assert set(service.turns(9)) == {3, 4}


def test_panic_mode_begins_when_too_few_are_left_and_never_picks_removed_members() -> None:
    service = Service(panic=0.5)
    service.add(0, 1, 2)
    service.check(service.pool.member(0), ok=False)
    assert (service.panics, set(service.turns(6))) == ([], {1, 2})
    service.check(service.pool.member(1), ok=False)
    service.pool.remove(2)
    assert service.panics == [True]
    assert set(service.turns(6)) == {0, 1}


@pytest.mark.parametrize("slot", [0, 2])
def test_remaining_members_have_the_whole_share_when_others_are_removed(slot: int) -> None:
    service = Service(slow_start=10.0)
    service.add(0, 1)
    service.wait(100.0)
    service.add(2)
    service.pool.remove(slot)
    if slot == 0:
        assert service.turns(22).count(2) == 2
        service.pool.remove(1)
        assert service.turns(2) == [2, 2]
    else:
        assert service.turns(4) == [0, 1, 0, 1]
    service.wait(0.25)
    assert {member.weight_factor for member in service.pool.members} == {1.0}


# Nothing is left of them


def contents(found: object, seen: dict[int, object]) -> list[object]:
    """An object, and all values that it holds."""
    if id(found) in seen or isinstance(found, type) or callable(found):
        return []
    seen[id(found)] = found
    if isinstance(found, dict):
        inner = [*found, *found.values()]
    elif isinstance(found, list | tuple | set | frozenset):
        inner = list(found)
    else:
        names = [name for kind in type(found).__mro__ for name in getattr(kind, "__slots__", ())]
        inner = [getattr(found, name) for name in (*names, *getattr(found, "__dict__", ()))]
    return [found, *(value for one in inner for value in contents(one, seen))]


@EVERY
@pytest.mark.parametrize("per_worker", [0, 1])
def test_nothing_is_kept_of_members_that_come_and_go_for_ever(
    balance: Balance, per_worker: int
) -> None:
    service = Service(balance, per_worker=per_worker, slow_start=10.0, panic=0.3)
    service.add(0, 1)
    sizes = []
    for number in range(2, 32):
        weight = number % 3 + 1
        member = service.pool.add(
            Target(member=number, slot=number % 5, address="", joined=True, weight=weight)
        )
        service.check(member)
        service.wait(1.0)
        for avoided in ((), service.pool.members[:2]):
            if (picked := service.pool.pick("10.0.0.1", avoided)) is not None:
                picked.active += 1
        if number % 4 == 0:
            service.pool.failed(member, service.now)
        elif number % 4 == 1:
            service.check(member, ok=False)
        service.pool.remove(number)
        for one in (*service.pool.members, member):
            one.active = 0
            service.pool.released(one)
        service.pool.pick("10.0.0.1")
        held = contents(service.pool, {})
        assert {m for m in held if isinstance(m, Member)} == set(service.pool.members)
        sizes.append(len(held))
    assert max(sizes[10:]) <= max(sizes[:10])


@pytest.mark.parametrize("balance", ["least_connections", "power_of_two", "random"])
def test_no_member_is_in_slow_start_when_the_only_one_is_removed(balance: Balance) -> None:
    service = Service(balance, slow_start=10.0)
    service.add(0, 1)
    service.wait(100.0)
    service.add(2)
    assert service.pool._slow_start.slow
    service.pool.remove(2)
    assert not service.pool._slow_start.slow


# Any order of events


class Events(RuleBasedStateMachine):
    """The model: the members, which of them have passed a check, and their requests in flight."""

    @initialize(
        balance=st.sampled_from(get_args(Balance)),
        per_worker=st.sampled_from([0, 1, 2]),
        slow_start=st.sampled_from([0.0, 10.0]),
        panic=st.sampled_from([0.0, 0.5, 1.0]),
        max_ejected=st.sampled_from([0.5, 1.0]),
    )
    def start(
        self,
        balance: Balance,
        per_worker: int,
        slow_start: float,
        panic: float,
        max_ejected: float,
    ) -> None:
        self.service = Service(
            balance,
            per_worker=per_worker,
            slow_start=slow_start,
            panic=panic,
            max_ejected=max_ejected,
        )
        self.pool = self.service.pool
        self.limit = per_worker
        self.share = max_ejected
        self.there: dict[int, Member] = {}
        self.gone: list[Member] = []
        self.proved: set[Member] = set()
        """A check was good since its process came."""
        self.flight: list[Member] = []
        self.inside: set[Member] = set()
        """According to the changes that were reported."""
        self.ejections: dict[int, int] = {}
        """By slot, as they are shown."""

    def some(self, data: st.DataObject) -> Member:
        return data.draw(st.sampled_from(list(self.there.values())))

    @rule(number=st.integers(0, 4), joined=st.booleans(), weight=st.integers(1, 3))
    def add(self, number: int, joined: bool, weight: int) -> None:
        if number not in self.there:
            # Some are a worker and its successor.
            target = Target(
                member=number, slot=number % 3, address="", joined=joined, weight=weight
            )
            self.there[number] = self.pool.add(target)

    @rule(number=st.integers(0, 4))
    def remove(self, number: int) -> None:
        if number in self.there:
            member = self.there.pop(number)
            others = {one: one.state for one in self.pool.members if one is not member}
            assert self.pool.remove(number) is member
            for one, before in others.items():
                # An ejected one is called back when no other member is left.
                assert one.state is before or before is MemberState.EJECTED
            self.gone.append(member)
            self.proved.discard(member)
            self.check_reports({member.number: member})

    @precondition(lambda self: self.there)
    @rule(data=st.data(), what=st.sampled_from(["join", "drain", "leave"]))
    def ordered(self, data: st.DataObject, what: str) -> None:
        member = self.some(data)
        generation = member.generation
        getattr(self.pool, what)(member.number)
        if member.generation != generation:
            self.proved.discard(member)

    @precondition(lambda self: self.there)
    @rule(data=st.data(), ok=st.booleans(), is_listening=st.booleans())
    def checked(self, data: st.DataObject, ok: bool, is_listening: bool) -> None:
        member = self.some(data)
        if ok and member.state not in (MemberState.ABSENT, MemberState.DRAINING):
            self.proved.add(member)
        self.service.check(member, ok=ok, is_listening=ok or is_listening)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        member = self.some(data)
        ejections = member.ejections
        self.pool.failed(member, self.service.now)
        if member.ejections > ejections:
            ejected = sum(m.state is MemberState.EJECTED for m in self.there.values())
            assert ejected <= self.share * (self.pool.in_rotation + ejected)

    @rule(seconds=st.sampled_from([0.25, 3.0, 12.0]))
    def wait(self, seconds: float) -> None:
        self.service.wait(seconds)

    @rule(client=st.integers(0, 5), avoided=st.sets(st.integers(0, 4), max_size=2))
    def pick(self, client: int, avoided: set[int]) -> None:
        avoid = {self.there[one] for one in avoided if one in self.there} | set(self.gone[-2:])
        member = self.pool.pick(f"10.0.0.{client}", avoid)
        allowed = {m for m in set(self.pool.eligible) - avoid if self.has_room(m)}
        assert member in allowed if allowed else member is None
        if member is not None:
            member.active += 1
            self.flight.append(member)

    @precondition(lambda self: self.flight)
    @rule(data=st.data(), well=st.booleans())
    def ended(self, data: st.DataObject, well: bool) -> None:
        member = self.flight.pop(data.draw(st.integers(0, len(self.flight) - 1)))
        if well:
            self.pool.succeeded(member)
        else:
            self.pool.failed(member, self.service.now)
        was_full = not self.has_room(member)
        member.active -= 1
        assert self.pool.released(member) == (was_full and member in self.there.values())

    @precondition(lambda self: self.gone)
    @rule(data=st.data(), ok=st.booleans(), is_listening=st.booleans())
    def checked_too_late(self, data: st.DataObject, ok: bool, is_listening: bool) -> None:
        picked = self.pool.eligible
        self.service.check(data.draw(st.sampled_from(self.gone)), ok=ok, is_listening=is_listening)
        assert self.pool.eligible == picked

    def has_room(self, member: Member) -> bool:
        return not self.limit or member.active < self.limit

    def check_reports(self, also: dict[int, Member]) -> None:
        for number, _reason in self.service.changes:
            member = also.get(number) or self.there[number]
            # One that was ejected and fails its checks is reported, too, and was out already.
            if member in self.inside or member.state is not MemberState.DOWN:
                self.inside ^= {member}
        self.service.changes.clear()

    @invariant()
    def holds(self) -> None:
        up = {m for m in self.there.values() if m.state is MemberState.UP}
        living = up | {
            m
            for m in self.there.values()
            if m.state in (MemberState.DOWN, MemberState.EJECTED) and m.is_listening
        }
        assert set(self.pool.members) == set(self.there.values())
        assert all(member.state is MemberState.ABSENT for member in self.gone)
        assert all(self.pool.member(number) is one for number, one in self.there.items())
        assert set(self.pool.eligible) in (up, living)
        assert self.pool.in_rotation == len(up)
        assert up <= self.proved, "one is in the rotation whose process passed no check"
        assert up or not any(m.state is MemberState.EJECTED for m in self.there.values())
        assert self.pool.available == sum(map(self.has_room, self.pool.eligible))
        self.check_reports({})
        ejections: dict[int, int] = {}
        for row in self.pool.snapshot():
            ejections[row["slot"]] = ejections.get(row["slot"], 0) + row["ejections"]
        for slot, count in ejections.items():
            assert count >= self.ejections.get(slot, 0), "a counter went down"
        self.ejections.update(ejections)
        assert self.inside == up, "an entry or exit was not reported, or reported twice"


Events.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestEvents = Events.TestCase
