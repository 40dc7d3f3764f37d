"""The table of member states has an entry for every state and event."""

from itertools import product

import pytest

from penstock_proxy.balancing.member_state import (
    TRANSITIONS,
    ImpossibleEventError,
    MemberEvent,
    MemberState,
)
from penstock_proxy.balancing.pool import Pool
from penstock_proxy.config import Ejection, Health, Target


@pytest.mark.parametrize(("state", "event"), list(product(MemberState, MemberEvent)))
def test_every_pair_of_state_and_event_has_an_entry(state: MemberState, event: MemberEvent) -> None:
    assert event in TRANSITIONS[state]


def test_every_state_can_be_reached() -> None:
    assert {to for row in TRANSITIONS.values() for to in row.values() if to} == set(MemberState)


@pytest.mark.parametrize("state", list(MemberState))
def test_a_member_without_a_process_is_absent_whatever_its_state_was(state: MemberState) -> None:
    assert TRANSITIONS[state][MemberEvent.LEAVE] is MemberState.ABSENT


@pytest.mark.parametrize("state", [s for s in MemberState if s is not MemberState.UP])
def test_the_rotation_is_entered_only_by_a_check_or_an_ejections_end(
    state: MemberState,
) -> None:
    entries = {event for event, to in TRANSITIONS[state].items() if to is MemberState.UP}
    assert entries <= {MemberEvent.RISE, MemberEvent.UNEJECT}


@pytest.mark.parametrize(
    ("state", "event"),
    [(s, e) for s, row in TRANSITIONS.items() for e, to in row.items() if to is None],
)
def test_an_impossible_event_is_a_bug_in_the_pool(state: MemberState, event: MemberEvent) -> None:
    pool = Pool(
        [Target(member=0, slot=0, address="127.0.0.1:8101", joined=True, up=True)],
        balance="round_robin",
        health=Health(),
        ejection=Ejection(),
        random=lambda: 0.0,
        on_change=lambda *_: None,
    )
    pool.members[0].state = state
    with pytest.raises(ImpossibleEventError, match=f"member 0: {event.name} while {state.name}"):
        pool._apply(pool.members[0], event, "no reason")
