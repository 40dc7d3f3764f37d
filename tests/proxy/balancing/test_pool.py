"""Checks and failures move members as configured, and a usable rotation is never emptied.

Covers `balancing/member`, `balancing/ejections` and `balancing/check_results`.
"""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.balancing.ejections import MAX_EJECTION_MULTIPLIER
from penstock_proxy.balancing.member_state import (
    MemberState,
)
from penstock_proxy.balancing.pool import Member, Pool
from penstock_proxy.config import Balance, Ejection, Health, Target

AT_ONCE = Health(rise=1, fall=1)
TWICE = Ejection(failures=2, eject_for=10.0, max_ejected=0.5)


def never() -> float:
    raise AssertionError("this policy needs no randomness")


class Service:
    """A pool of n workers that have all passed a check, and the changes that it reported."""

    def __init__(
        self,
        n: int,
        *,
        health: Health = AT_ONCE,
        ejection: Ejection = TWICE,
        balance: Balance = "round_robin",
        up: bool = True,
    ) -> None:
        self.changes: list[tuple[int, str]] = []
        self.pool = Pool(
            [
                Target(member=slot, slot=slot, address=f"127.0.0.1:{8101 + slot}", joined=up, up=up)
                for slot in range(n)
            ],
            balance=balance,
            health=health,
            ejection=ejection,
            random=never,
            on_change=lambda member, reason: self.changes.append((member.slot, reason)),
        )
        self.members = self.pool.members

    def check(self, slot: int, *results: bool, now: float = 0.0, reason: str = "HTTP 503") -> None:
        for ok in results:
            self.pool.checked(self.members[slot], ok=ok, now=now, reason=reason)

    def fail(self, slot: int, times: int = 1, now: float = 0.0) -> None:
        for _ in range(times):
            self.pool.failed(self.members[slot], now)

    def turns(self, n: int) -> list[int | None]:
        picked = [self.pool.pick("client") for _ in range(n)]
        return [member.slot if member else None for member in picked]

    def states(self) -> str:
        return " ".join(member.state for member in self.members)


# Active checks


def test_no_member_is_picked_before_its_first_good_check() -> None:
    service = Service(2, up=False)
    assert service.turns(1) == [None]
    service.pool.join(0)
    service.pool.join(1)
    assert service.turns(1) == [None]
    assert service.states() == "checking checking"

    service.check(1, False, True)
    assert service.turns(2) == [1, 1]
    assert service.pool.in_rotation == 1
    assert service.changes == [(1, "passed its first check")]


def test_one_good_check_is_enough_for_a_start_but_not_for_a_comeback() -> None:
    service = Service(1, health=Health(rise=2, fall=3))
    service.check(0, False, False, True, False, False)
    assert service.states() == "up", "a good check ends a row of bad ones"
    service.check(0, False)
    assert service.states() == "down"
    service.check(0, True, False, True)
    assert service.states() == "down", "a bad check ends a row of good ones"
    service.check(0, True)
    assert service.states() == "up"
    assert service.changes == [
        (0, "failed 3 checks in a row: HTTP 503"),
        (0, "passed 2 checks in a row"),
    ]


def test_a_single_failed_check_is_not_logged_as_several_in_a_row() -> None:
    service = Service(1)
    service.check(0, False, True, reason="timed out")
    assert service.changes == [(0, "failed a check: timed out"), (0, "passed a check")]


def test_a_new_member_needs_one_good_check_however_many_were_bad() -> None:
    service = Service(1, health=Health(rise=2, fall=2), up=False)
    service.pool.join(0)
    service.check(0, False, False, False, reason="connection refused")
    assert service.states() == "checking"
    assert service.members[0].reason == "no good check yet: connection refused"
    service.check(0, True)
    assert service.states() == "up"


def test_a_check_of_an_absent_member_changes_nothing() -> None:
    service = Service(1)
    service.pool.leave(0)
    service.check(0, True, False, True)
    assert service.states() == "absent"


# Messages of the supervisor


def test_a_member_without_a_process_is_out_at_once_and_needs_a_new_check() -> None:
    service = Service(2)
    service.pool.leave(0)
    assert service.turns(2) == [1, 1]
    service.pool.join(0)
    assert service.turns(2) == [1, 1]
    service.check(0, True)
    assert sorted(service.turns(2), key=str) == [0, 1]
    assert service.changes == [(0, "process is gone"), (0, "passed its first check")]


def test_the_supervisor_may_repeat_a_message() -> None:
    service = Service(1)
    generation = service.members[0].generation
    service.pool.join(0)
    assert (service.states(), service.members[0].generation) == ("up", generation)
    service.pool.leave(0)
    service.pool.leave(0)
    assert service.changes == [(0, "process is gone")]
    assert service.members[0].generation == generation + 1


def test_a_new_proxy_starts_with_the_states_of_the_last_one() -> None:
    targets = [
        Target(member=0, slot=0, address="127.0.0.1:1", joined=True, up=True),
        Target(member=1, slot=1, address="127.0.0.1:2", joined=True),
        Target(member=2, slot=2, address="127.0.0.1:3", up=True),
    ]
    changes: list[str] = []
    pool = Pool(
        targets,
        balance="client_hash",
        health=Health(),
        ejection=Ejection(),
        random=never,
        on_change=lambda _, reason: changes.append(reason),
    )
    assert [member.state for member in pool.members] == ["up", "checking", "absent"]
    assert pool.pick("10.0.0.1") is pool.members[0]
    assert not changes


def test_the_rotation_is_updated_before_on_change_is_called() -> None:
    seen: list[tuple[int, Member | None]] = []
    pool = Pool(
        [Target(member=0, slot=0, address="127.0.0.1:1", joined=True)],
        balance="round_robin",
        health=AT_ONCE,
        ejection=TWICE,
        random=never,
        on_change=lambda _member, _reason: seen.append((pool.in_rotation, pool.pick("client"))),
    )
    pool.checked(pool.members[0], ok=True, now=0.0, reason="")
    pool.leave(0)
    assert seen == [(1, pool.members[0]), (0, None)]


# Passive failures


def test_failures_in_a_row_eject_for_a_time() -> None:
    service = Service(2)
    service.fail(0, 2, now=100.0)
    assert service.turns(2) == [1, 1]
    service.pool.tick(109.9)
    assert service.pool.in_rotation == 1
    service.pool.tick(110.0)
    assert service.pool.in_rotation == 2
    assert service.members[0].consecutive_failures == 0
    assert service.changes == [
        (0, "for 10 s, after 2 failures in a row"),
        (0, "its ejection is over"),
    ]
    assert [member.ejections for member in service.members] == [1, 0]


def test_a_success_ends_a_row_of_failures() -> None:
    service = Service(2)
    service.fail(0)
    service.pool.succeeded(service.members[0])
    service.fail(0)
    assert service.pool.in_rotation == 2


def test_zero_failures_switch_ejection_off() -> None:
    service = Service(2, ejection=Ejection(failures=0))
    service.fail(0, 100)
    assert service.states() == "up up"


def test_the_last_one_in_the_rotation_is_never_ejected() -> None:
    service = Service(2, ejection=Ejection(failures=1, max_ejected=1.0))
    service.fail(0)
    service.fail(1, 10)
    assert service.states() == "ejected up"
    assert service.changes == [(0, "for 10 s, after a failure")]


@pytest.mark.parametrize(
    ("share", "members", "most"), [(0.5, 5, 2), (0.5, 2, 1), (0.0, 9, 0), (0.29, 100, 29)]
)
def test_no_more_than_the_share_is_ejected(share: float, members: int, most: int) -> None:
    service = Service(members, ejection=Ejection(failures=1, max_ejected=share))
    for slot in range(members):
        service.fail(slot)
    assert service.states().count("ejected") == most


def test_a_member_that_could_not_be_ejected_is_ejected_when_the_share_allows() -> None:
    service = Service(2)
    service.fail(0, 2, now=0.0)
    service.fail(1, 3, now=5.0)
    service.pool.tick(10.0)
    service.fail(1, now=11.0)
    assert service.states() == "up ejected"


def test_each_ejection_is_longer_up_to_a_limit() -> None:
    service = Service(2)
    now, durations = 0.0, []
    for _ in range(MAX_EJECTION_MULTIPLIER + 2):
        service.fail(0, 2, now)
        durations.append(service.members[0].ejected_until - now)
        now = service.members[0].ejected_until
        service.pool.tick(now)
    assert durations == [10.0 * n for n in range(1, MAX_EJECTION_MULTIPLIER + 1)] + [100.0, 100.0]


@pytest.mark.parametrize(
    ("healthy", "duration"),
    [(0.0, 40.0), (29.9, 40.0), (30.0, 30.0), (49.9, 30.0), (50.0, 20.0), (60.0, 10.0)],
)
def test_an_ejection_is_forgotten_after_as_long_a_time_in_health(
    healthy: float, duration: float
) -> None:
    service = Service(2)
    now = 0.0
    for _ in range(3):
        service.fail(0, 2, now)
        now = service.members[0].ejected_until
        service.pool.tick(now)
    service.fail(0, 2, now + healthy)
    assert service.members[0].ejected_until - (now + healthy) == pytest.approx(duration)


def test_time_spent_down_is_not_health() -> None:
    service = Service(2)
    service.fail(0, 2, now=0.0)
    service.pool.tick(10.0)
    service.check(0, False, now=11.0)
    service.check(0, True, now=1000.0)
    service.fail(0, 2, now=1001.0)
    assert service.members[0].ejected_until == 1001.0 + 20.0


def test_a_new_process_has_no_failures() -> None:
    service = Service(2)
    service.fail(0, 2, now=0.0)
    service.pool.leave(0)
    service.pool.join(0)
    service.check(0, True, now=1.0)
    service.fail(0, 2, now=1.0)
    assert service.members[0].ejected_until == 11.0
    assert service.members[0].ejections == 2, "the metric forgets nothing"


def test_an_ejected_member_that_fails_its_checks_is_down_and_stays_down() -> None:
    service = Service(2)
    service.fail(0, 2, now=0.0)
    service.check(0, True, False)
    assert service.states() == "down up"
    service.pool.tick(1000.0)
    assert service.states() == "down up"


def test_good_checks_do_not_shorten_an_ejection() -> None:
    service = Service(2)
    service.fail(0, 2, now=0.0)
    service.check(0, True, True, True)
    assert service.states() == "ejected up"


@pytest.mark.parametrize("state", [s for s in MemberState if s is not MemberState.UP])
def test_failures_of_a_member_out_of_the_rotation_do_not_count(state: MemberState) -> None:
    service = Service(3)
    service.members[0].state = state
    service.fail(0, 10)
    assert (service.members[0].state, service.members[0].consecutive_failures) == (state, 0)


def test_ejections_end_when_no_other_member_is_left() -> None:
    service = Service(2)
    service.fail(0, 2)
    service.pool.leave(1)
    assert service.turns(1) == [0]
    assert service.changes[1:] == [(1, "process is gone"), (0, "nobody else is left")]


# For people


def test_rows_are_plain_values() -> None:
    service = Service(2)
    service.members[1].active = 3
    service.fail(1)
    service.fail(0, 2)
    assert service.pool.snapshot() == [
        {
            "member": 0,
            "slot": 0,
            "address": "127.0.0.1:8101",
            "name": "",
            "weight": 1,
            "health": "ejected",
            "active": 0,
            "failures": 2,
            "ejections": 1,
            "reason": "for 10 s, after 2 failures in a row",
        },
        {
            "member": 1,
            "slot": 1,
            "address": "127.0.0.1:8102",
            "name": "",
            "weight": 1,
            "health": "up",
            "active": 3,
            "failures": 1,
            "ejections": 0,
            "reason": "was up before the proxy was restarted",
        },
    ]
    assert type(service.pool.snapshot()[0]["health"]) is str


# Any order of events


def anything(service: Service, data: st.DataObject, now: float) -> None:
    slot = data.draw(st.integers(0, len(service.members) - 1))
    member, pool = service.members[slot], service.pool
    possible = [
        lambda: pool.join(slot),
        lambda: pool.leave(slot),
        lambda: pool.checked(member, ok=True, now=now, reason=""),
        lambda: pool.checked(member, ok=False, now=now, reason="HTTP 500"),
        lambda: pool.failed(member, now),
        lambda: pool.succeeded(member),
        lambda: pool.tick(now),
    ]
    data.draw(st.sampled_from(possible))()


@given(st.data())
def test_no_order_of_events_ejects_too_many_or_picks_a_member_out_of_the_rotation(
    data: st.DataObject,
) -> None:
    share = data.draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    service = Service(
        data.draw(st.integers(1, 5)),
        health=Health(rise=data.draw(st.integers(1, 2)), fall=data.draw(st.integers(1, 2))),
        # In a panic it picks everybody, and that is its own matter.
        ejection=Ejection(failures=data.draw(st.integers(1, 2)), max_ejected=share, panic=0.0),
        up=data.draw(st.booleans()),
    )
    inside = {member for member in service.members if member.state is MemberState.UP}
    now = 0.0
    for _ in range(data.draw(st.integers(0, 40))):
        now += data.draw(st.sampled_from([0.0, 1.0, 15.0]))
        ejections = sum(member.ejections for member in service.members)
        anything(service, data, now)

        up = [member for member in service.members if member.state is MemberState.UP]
        ejected = [member for member in service.members if member.state is MemberState.EJECTED]
        assert service.pool.in_rotation == len(up)
        assert set(service.turns(len(up))) == {member.slot for member in up}
        assert up or not ejected, "a member is kept out although no other is left"
        if sum(member.ejections for member in service.members) > ejections:
            assert len(ejected) <= share * (len(up) + len(ejected))
        for slot, _reason in service.changes:
            member = service.members[slot]
            # One that was ejected and fails its checks is reported, too, and was out already.
            if member in inside or member.state is not MemberState.DOWN:
                inside ^= {member}
        service.changes.clear()
        assert inside == set(up), "an entry or exit was not reported, or reported twice"


# Held: the supervisor doubts that the process lives


def test_good_checks_do_not_bring_back_a_member_that_is_held() -> None:
    service = Service(2)
    service.pool.hold(1, "does not answer")
    # The kernel still accepts connections for a process that is stopped.
    service.check(1, True, True, True)
    assert service.states() == "up down"
    assert service.turns(2) == [0, 0]
    assert service.changes == [(1, "does not answer")]


def test_a_released_member_is_back_at_once_if_its_checks_passed_meanwhile() -> None:
    service = Service(2, health=Health(rise=2, fall=1))
    service.pool.hold(1, "does not answer")
    service.check(1, True, True)
    service.pool.release(1, now=9.0)
    assert service.states() == "up up"
    assert service.members[1].up_since == 9.0


def test_a_released_member_whose_checks_failed_has_to_pass_them_first() -> None:
    service = Service(2, health=Health(rise=2, fall=1))
    service.pool.hold(1, "does not answer")
    service.check(1, True, False)
    service.pool.release(1, now=9.0)
    assert service.states() == "up down"
    service.check(1, True, True)
    assert service.states() == "up up"


def test_a_new_process_is_not_held() -> None:
    service = Service(2)
    service.pool.hold(1, "does not answer")
    service.pool.leave(1)
    service.pool.join(1)
    service.check(1, True)
    assert service.states() == "up up"


def test_a_member_that_is_held_before_its_first_check_waits_for_its_release() -> None:
    service = Service(2, up=False)
    service.pool.join(0)
    service.pool.hold(0, "does not answer")
    service.check(0, True)
    assert service.states() == "checking absent"
    service.pool.release(0, now=1.0)
    assert service.states() == "up absent"


def test_if_all_members_are_held_all_are_used() -> None:
    service = Service(3)
    for slot in range(3):
        service.pool.hold(slot, "does not answer")
    assert service.states() == "down down down"
    assert sorted(slot for slot in service.turns(3) if slot is not None) == [0, 1, 2]


def test_a_failing_check_of_an_ejected_member_is_reported() -> None:
    service = Service(3)
    service.fail(0, 2)
    service.check(0, False)
    assert service.states() == "down up up"
    assert [slot for slot, _ in service.changes] == [0, 0]


def test_many_weights_are_changed_at_once_and_the_order_of_turns_is_made_anew_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service(3)
    made: list[str] = []
    genuine = service.pool._exchanging_policy

    def counted(balance: Balance) -> Iterator[None]:
        made.append(balance)
        return genuine(balance)

    monkeypatch.setattr(service.pool, "_exchanging_policy", counted)
    service.pool.set_weights({0: 2, 1: 2, 2: 1, 99: 5})
    assert made == ["round_robin"]
    turns = service.turns(5)
    assert [turns.count(slot) for slot in range(3)] == [2, 2, 1]
    service.pool.set_weights({0: 2, 1: 2})
    assert made == ["round_robin"]
