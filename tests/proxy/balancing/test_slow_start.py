"""A member that enters the rotation starts slowly, and panic mode uses all that live: `pool`."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Pool
from penstock_proxy.balancing.slow_start import MIN_WEIGHT_FACTOR
from penstock_proxy.config import Balance, Ejection, Health, Target

PERIOD = 10.0


class Service:
    """A pool whose workers have all been warm for long, or not even started."""

    def __init__(
        self,
        *weights: int,
        balance: Balance = "round_robin",
        slow_start: float = PERIOD,
        panic: float = 0.0,
        up: bool = True,
    ) -> None:
        self.panics: list[bool] = []
        self.now = 1000.0
        self.pool = Pool(
            [
                Target(
                    member=n, slot=n, address=f"127.0.0.1:{n + 1}", joined=up, up=up, weight=weight
                )
                for n, weight in enumerate(weights)
            ],
            balance=balance,
            health=Health(rise=1, fall=1, slow_start=slow_start),
            ejection=Ejection(failures=1, max_ejected=1.0, panic=panic),
            random=random.Random(1).random,
            on_change=lambda *_: None,
            on_panic=self.panics.append,
        )
        self.members = self.pool.members

    def check(self, slot: int, *, ok: bool, is_listening: bool = True) -> None:
        self.pool.checked(
            self.members[slot], ok=ok, now=self.now, reason="", is_listening=is_listening
        )

    def restart(self, slot: int) -> None:
        self.pool.leave(slot)
        self.pool.join(slot)
        self.check(slot, ok=True)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.pool.tick(self.now)

    def turns(self, picks: int) -> list[int]:
        return [m.slot for _ in range(picks) if (m := self.pool.pick("client")) is not None]

    def shares(self, picks: int) -> list[float]:
        count = Counter(self.turns(picks))
        return [count[member.slot] / picks for member in self.members]


# Slow start


@pytest.mark.parametrize("balance", ["round_robin", "least_connections", "power_of_two", "random"])
def test_a_newcomer_takes_more_and_more_until_it_has_its_share(balance: Balance) -> None:
    service = Service(1, 1, 1, balance=balance)
    service.restart(1)
    shares = []
    for _ in range(11):
        shares.append(service.shares(3000)[1])
        service.wait(PERIOD / 10)
    parts = [max(MIN_WEIGHT_FACTOR, tenth / 10) for tenth in range(11)]
    if balance == "power_of_two":
        # In two of three pairs, and there against one other.
        expected = [2 / 3 * part / (1 + part) for part in parts]
    else:
        expected = [part / (2 + part) for part in parts]
    tolerance = 0.002 if balance in ("round_robin", "least_connections") else 0.03
    assert shares == pytest.approx(expected, abs=tolerance)
    assert shares[-1] == pytest.approx(1 / 3, abs=tolerance)


@pytest.mark.parametrize("balance", ["least_connections", "power_of_two"])
def test_a_newcomer_has_its_part_of_open_connections(balance: Balance) -> None:
    service = Service(1, 1, 1, balance=balance)
    service.restart(2)
    service.wait(PERIOD / 2)
    for _ in range(250):
        member = service.pool.pick("client")
        assert member is not None
        member.active += 1
    assert [member.active for member in service.members] == pytest.approx([100, 100, 50], abs=3)


def test_the_turns_of_a_newcomer_are_the_same_every_time() -> None:
    def turns() -> list[int]:
        service = Service(2, 1, 1)
        service.restart(0)
        service.wait(3.0)
        return service.turns(100)

    assert turns() == turns()


@given(
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    steps=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["restart", "down", "up", "wait"])),
        max_size=12,
    ),
)
def test_turns_follow_the_weights_whichever_members_come_and_go(
    weights: list[int], steps: list[tuple[int, str]]
) -> None:
    service = Service(*weights)
    for number, step in steps:
        slot = number % len(weights)
        if step == "restart":
            service.restart(slot)
        elif step == "wait":
            service.wait(1.7)
        else:
            service.check(slot, ok=step == "up")
    service.wait(0.25)
    present = [m for m in service.members if m.state is MemberState.UP]
    if not present:
        assert service.turns(3) == []
        return
    assert max(m.weight_factor for m in present) == 1, "one member always has its whole share"
    assert all(MIN_WEIGHT_FACTOR <= m.weight_factor <= 1 for m in present)
    worth = {m.slot: m.weight * m.weight_factor for m in present}
    picks = 4000
    count = Counter(service.turns(picks))
    assert count.keys() <= worth.keys()
    for slot, value in worth.items():
        expected = picks * value / sum(worth.values())
        assert count[slot] == pytest.approx(expected, abs=0.01 * picks)


def test_when_the_newcomer_is_warm_the_turns_are_exact_again() -> None:
    service = Service(1, 1, 1)
    service.restart(0)
    service.wait(PERIOD)
    turns = service.turns(30)
    assert all(sorted(turns[at : at + 3]) == [0, 1, 2] for at in range(0, 30, 3))


@pytest.mark.parametrize("pause", [0.0, 0.3, 4.0])
def test_there_is_no_slow_start_when_all_join_at_a_start(pause: float) -> None:
    service = Service(1, 1, 1, up=False)
    for slot in range(3):
        service.pool.join(slot)
        service.check(slot, ok=True)
        service.wait(pause)
    assert [member.weight_factor for member in service.members] == [1.0] * 3
    assert service.shares(30) == [1 / 3] * 3


def test_the_only_member_gets_all_requests() -> None:
    service = Service(1, 1)
    service.restart(0)
    assert service.members[0].weight_factor == MIN_WEIGHT_FACTOR
    service.pool.leave(1)
    assert service.turns(3) == [0, 0, 0]
    service.wait(0.25)
    assert service.members[0].weight_factor == 1


def test_a_request_that_tried_the_others_gets_the_newcomer_at_once() -> None:
    service = Service(1, 1)
    service.restart(0)
    for _ in range(5):
        assert service.pool.pick("client", (service.members[1],)) is service.members[0]
    assert service.pool.pick("client", service.members) is None


def test_an_ejected_member_has_a_slow_start_as_well() -> None:
    service = Service(1, 1, 1)
    service.pool.failed(service.members[1], service.now)
    assert service.members[1].state.value == "ejected"
    service.wait(11.0)
    assert service.members[1].state.value == "up"
    assert service.members[1].weight_factor < 0.2


def test_without_slow_start_and_for_a_hash_a_newcomer_has_its_share_at_once() -> None:
    for service in (Service(1, 1, slow_start=0.0), Service(1, 1, balance="client_hash")):
        service.restart(0)
        assert [member.weight_factor for member in service.members] == [1.0, 1.0]


# Panic


def test_with_too_few_in_the_rotation_all_living_members_are_picked() -> None:
    service = Service(1, 1, 1, 1, panic=0.5)
    service.check(0, ok=False)
    service.check(1, ok=False)
    assert (service.panics, sorted(set(service.turns(8)))) == ([], [2, 3])
    service.check(2, ok=False)
    assert (service.panics, sorted(set(service.turns(8)))) == ([True], [0, 1, 2, 3])
    assert service.pool.in_rotation == 1, "their state is what it was"
    service.check(3, ok=False)
    assert sorted(set(service.turns(8))) == [0, 1, 2, 3]
    service.check(3, ok=True)
    service.check(0, ok=True)
    assert (service.panics, sorted(set(service.turns(8)))) == ([True, False], [0, 3])


def test_in_panic_mode_no_absent_member_is_picked() -> None:
    service = Service(1, 1, 1, 1, 1, 1, panic=0.9)
    service.check(0, ok=False)
    assert service.panics == [True]
    service.check(1, ok=False, is_listening=False)
    service.pool.drain(2)
    service.pool.leave(3)
    service.pool.leave(4)
    service.pool.join(4)
    service.check(4, ok=False)
    assert [m.state.value for m in service.members] == [
        "down", "down", "draining", "absent", "checking", "up",
    ]  # fmt: skip
    assert sorted(set(service.turns(20))) == [0, 5]
    service.pool.drain(0)
    assert service.turns(3) == [5, 5, 5]
    assert service.panics == [True, False]


def test_members_that_all_refuse_cause_no_panic_mode() -> None:
    service = Service(1, 1, panic=0.25)
    service.check(0, ok=False, is_listening=False)
    service.check(1, ok=False, is_listening=False)
    assert (service.turns(3), service.panics) == ([], [])
    service.check(1, ok=False)
    assert (service.turns(3), service.panics) == ([1, 1, 1], [True])


@given(
    workers=st.integers(1, 6),
    panic=st.sampled_from([0.0, 0.25, 0.5, 0.58, 1.0]),
    steps=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["good", "bad", "gone", "fails", "drain", "leave", "join", "wait"]),
        ),
        max_size=30,
    ),
)
def test_picks_come_from_the_rotation_or_from_all_living_members(
    workers: int, panic: float, steps: list[tuple[int, str]]
) -> None:
    service = Service(*[1] * workers, panic=panic, slow_start=0.0)
    there = dict.fromkeys(range(workers), True)
    for number, step in steps:
        slot = number % workers
        if step in ("good", "bad", "gone"):
            there[slot] = step != "gone"
            service.check(slot, ok=step == "good", is_listening=there[slot])
        elif step == "fails":
            service.pool.failed(service.members[slot], service.now)
        elif step == "wait":
            service.wait(7.0)
        else:
            before = service.members[slot].generation
            {"drain": service.pool.drain, "leave": service.pool.leave, "join": service.pool.join}[
                step
            ](slot)
            there[slot] = there[slot] or service.members[slot].generation != before
        # The model: the set of each kind, computed from the states alone.
        up = {m.slot for m in service.members if m.state is MemberState.UP}
        living = {
            m.slot
            for m in service.members
            if m.state is MemberState.UP
            or (m.state in (MemberState.DOWN, MemberState.EJECTED) and there[m.slot])
        }
        panics = len(up) < panic * len(living) - 1e-9
        assert set(service.turns(workers * 2)) == (living if panics else up)
        assert service.pool.available == len(living if panics else up)
        assert (service.panics[-1] if service.panics else False) == panics
