"""Every state and event of a step has an outcome, and none of them harms what serves."""

from itertools import product

import pytest

from penstock_supervisor.rollout.replacement_step import (
    ENDED,
    OVERLAP,
    TRANSITIONS,
    StepCommand,
    StepEvent,
    StepMachine,
    StepState,
)

TAKES_AWAY = (StepCommand.TAKE_OVER, StepCommand.FORGET_OLD)


def test_the_table_is_total() -> None:
    assert set(TRANSITIONS) == set(StepState)
    for row in TRANSITIONS.values():
        assert set(row) == set(StepEvent)


@pytest.mark.parametrize(("state", "event"), list(product(StepState, StepEvent)))
def test_only_a_new_process_that_was_watched_takes_the_slot(
    state: StepState, event: StepEvent
) -> None:
    step = TRANSITIONS[state][event]
    takes_over = StepCommand.TAKE_OVER in step.commands
    assert takes_over == (
        (state, event)
        in ((StepState.WATCHING, StepEvent.CONFIRMED), (StepState.CONFIRMING, StepEvent.CONFIRMED))
    )


@pytest.mark.parametrize("state", OVERLAP)
def test_a_failure_in_the_overlap_leaves_the_old_process_alone(state: StepState) -> None:
    machine = StepMachine(state)
    done: list[StepCommand] = []
    for event in (
        StepEvent.CANCEL, StepEvent.EXITED, StepEvent.WATCHED, StepEvent.CONFIRMED,
        StepEvent.OLD_ENDED,
    ):  # fmt: skip
        done += machine.handle(event)
    assert machine.state is StepState.FAILED
    assert not set(done) & set(TAKES_AWAY)
    assert done[-1] is StepCommand.FORGET_NEW


@pytest.mark.parametrize(("state", "event"), list(product(StepState, StepEvent)))
def test_an_old_process_that_is_held_back_is_let_go_with_the_canary(
    state: StepState, event: StepEvent
) -> None:
    step = TRANSITIONS[state][event]
    may_hold = state in (StepState.CANARY, StepState.CONFIRMING)
    leaves = may_hold and step.to in (StepState.FAILING, StepState.FAILED)
    assert leaves == (StepCommand.RELEASE_OLD in step.commands)


@pytest.mark.parametrize("state", ENDED)
def test_an_end_is_an_end(state: StepState) -> None:
    machine = StepMachine(state)
    for event in StepEvent:
        assert machine.handle(event) == ()
    assert machine.state is state


def test_a_good_replacement_goes_through_all_states() -> None:
    machine = StepMachine(StepState.STARTING)
    course = (
        StepEvent.READY, StepEvent.UP, StepEvent.WATCHED, StepEvent.CONFIRMED, StepEvent.OLD_ENDED,
    )  # fmt: skip
    seen = [(machine.handle(event), machine.state)[1] for event in course]
    assert seen == [
        StepState.CHECKING, StepState.WATCHING, StepState.CONFIRMING, StepState.DRAINING,
        StepState.DONE,
    ]  # fmt: skip


def test_every_state_leads_to_an_end() -> None:
    """Whatever the state, the old process' end, or the new one's, or the time brings it there."""
    for state in StepState:
        machine = StepMachine(state)
        for event in (
            StepEvent.OLD_ENDED, StepEvent.LATE, StepEvent.FELL, StepEvent.EXITED,
            StepEvent.OLD_ENDED,
        ):  # fmt: skip
            machine.handle(event)
        assert machine.state in ENDED
