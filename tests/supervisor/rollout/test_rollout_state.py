"""Every state and event of a roll-out has an outcome, and every course ends with a result."""

from itertools import product

import pytest

from penstock_supervisor.rollout.rollout_state import (
    TRANSITIONS,
    Result,
    RolloutCommand,
    RolloutEvent,
    RolloutMachine,
    RolloutState,
)

E = RolloutEvent


def test_the_table_is_total() -> None:
    assert set(TRANSITIONS) == set(RolloutState)
    for row in TRANSITIONS.values():
        assert set(row) == set(RolloutEvent)


@pytest.mark.parametrize(
    ("events", "result"),
    [
        ((E.BEGIN, E.APPLIED, E.ALL_DONE, E.FINISHED), Result.SUCCEEDED),
        ((E.BEGIN, E.REFUSED), Result.REFUSED),
        ((E.BEGIN, E.APPLY_FAILED, E.ALL_DONE, E.FINISHED), Result.ABORTED),
        ((E.FAULT, E.ALL_DONE, E.FINISHED), Result.ABORTED),
        ((E.BEGIN, E.FAULT, E.FAULT, E.FAULT), Result.ABORTED),
        ((E.BEGIN, E.APPLIED, E.ALL_DONE, E.FAULT), Result.ABORTED),
        ((E.BEGIN, E.APPLIED, E.STEP_FAILED, E.ALL_DONE, E.FINISHED), Result.ABORTED),
        ((E.BEGIN, E.APPLIED, E.FIRST_DONE, E.GOOD, E.ALL_DONE, E.FINISHED), Result.SUCCEEDED),
        ((E.BEGIN, E.APPLIED, E.FIRST_DONE, E.WORSE, E.ALL_DONE, E.FINISHED), Result.ROLLED_BACK),
        ((E.BEGIN, E.APPLIED, E.FIRST_DONE, E.SUPERSEDE, E.FINISHED), Result.SUPERSEDED),
        ((E.BEGIN, E.APPLIED, E.SUPERSEDE, E.FINISHED), Result.SUPERSEDED),
        ((E.SUPERSEDE,), Result.SUPERSEDED),
        ((E.BEGIN, E.APPLIED, E.JOIN, E.ALL_DONE, E.FINISHED), Result.SUCCEEDED),
        (
            (
                E.BEGIN,
                E.APPLIED,
                E.FIRST_DONE,
                E.JOIN,
                E.FIRST_DONE,
                E.GOOD,
                E.ALL_DONE,
                E.FINISHED,
            ),
            Result.SUCCEEDED,
        ),
        (
            (
                E.BEGIN,
                E.APPLIED,
                E.FIRST_DONE,
                E.JOIN,
                E.FIRST_DONE,
                E.WORSE,
                E.ALL_DONE,
                E.FINISHED,
            ),
            Result.ROLLED_BACK,
        ),
        # What failed first is told, whatever comes then.
        (
            (E.BEGIN, E.APPLIED, E.STEP_FAILED, E.STEP_FAILED, E.SUPERSEDE, E.ALL_DONE, E.FINISHED),
            Result.ABORTED,
        ),
    ],
)
def test_a_course_ends_with_a_result(events: tuple[RolloutEvent, ...], result: Result) -> None:
    machine = RolloutMachine()
    for event in events:
        assert machine.state is not RolloutState.ENDED
        machine.handle(event)
    assert (machine.state, machine.result) == (RolloutState.ENDED, result)


@pytest.mark.parametrize("state", [one for one in RolloutState if one is not RolloutState.ENDED])
def test_a_stop_of_the_run_ends_every_state(state: RolloutState) -> None:
    step = TRANSITIONS[state][RolloutEvent.STOP]
    assert (step.to, step.result) == (RolloutState.ENDED, Result.CANCELLED)


@pytest.mark.parametrize(("state", "event"), list(product(RolloutState, RolloutEvent)))
def test_who_goes_back_reverts_its_settings(state: RolloutState, event: RolloutEvent) -> None:
    """Nothing ends aborted or rolled back with the settings of the new version in force, but after
    a fault of ours when the new version served already."""
    step = TRANSITIONS[state][event]
    if (state, event) == (RolloutState.FINISHING, RolloutEvent.FAULT):
        return
    if step.result in (Result.ABORTED, Result.ROLLED_BACK):
        assert step.to in (RolloutState.ROLLING_BACK, RolloutState.REVERTING)
    if step.to is RolloutState.REVERTING and state is not step.to:
        assert step.commands == (RolloutCommand.REVERT,)


def test_who_joins_has_all_begin_anew_as_long_as_it_goes_forward() -> None:
    anew = {
        state
        for state, row in TRANSITIONS.items()
        if RolloutCommand.ROLL_ANEW in row[RolloutEvent.JOIN].commands
    }
    assert anew == {RolloutState.ROLLING, RolloutState.CANARY}
    for state in anew:
        assert TRANSITIONS[state][RolloutEvent.JOIN].to is RolloutState.ROLLING
    for state in set(RolloutState) - anew:
        assert TRANSITIONS[state][RolloutEvent.JOIN] == (state, (), None)


def test_only_a_complete_roll_out_succeeds() -> None:
    for state, row in TRANSITIONS.items():
        for event, step in row.items():
            if step.result is Result.SUCCEEDED:
                assert (state, event) == (RolloutState.ROLLING, RolloutEvent.ALL_DONE)
