"""The transition table is complete, and no order of events starts two processes or timers."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.children.lifecycle import (
    SHOWN,
    TRANSITIONS,
    Command,
    ImpossibleEventError,
    Lifecycle,
    LifecycleEvent,
    ProcessState,
    State,
    shown,
)


@pytest.mark.parametrize(("state", "event"), list(product(State, LifecycleEvent)))
def test_every_pair_of_state_and_event_has_an_entry(state: State, event: LifecycleEvent) -> None:
    assert event in TRANSITIONS[state]


@pytest.mark.parametrize(("state", "event"), list(product(State, LifecycleEvent)))
def test_a_pair_of_state_and_event_has_a_step_or_is_an_error_that_names_it(
    state: State, event: LifecycleEvent
) -> None:
    lifecycle = Lifecycle("web/0")
    lifecycle._state = state
    step = TRANSITIONS[state][event]
    if step is None:
        with pytest.raises(ImpossibleEventError, match=f"web/0: {event.name} while {state.name}"):
            lifecycle.handle(event)
        assert lifecycle.state is state
    else:
        assert lifecycle.handle(event) == step.commands
        assert lifecycle.state is step.to


def test_every_state_can_be_reached() -> None:
    reached = {step.to for row in TRANSITIONS.values() for step in row.values() if step}
    assert reached == set(State)


def test_every_command_is_used_by_a_step() -> None:
    given_ = {c for row in TRANSITIONS.values() for step in row.values() if step for c in step[1]}
    assert given_ == set(Command)


def ready_child() -> Lifecycle:
    lifecycle = Lifecycle("web/0")
    assert lifecycle.handle(LifecycleEvent.START) == (Command.SPAWN, Command.ARM_START)
    assert lifecycle.handle(LifecycleEvent.READY) == (Command.ARM_PROOF, Command.JOIN)
    return lifecycle


def test_a_child_that_ignores_term_is_killed() -> None:
    lifecycle = ready_child()

    assert lifecycle.handle(LifecycleEvent.STOP) == (
        Command.LEAVE,
        Command.TERMINATE,
        Command.ARM_KILL,
    )
    assert lifecycle.handle(LifecycleEvent.DEADLINE) == (Command.KILL,)
    assert lifecycle.handle(LifecycleEvent.EXITED) == (Command.DISARM,)
    assert lifecycle.state is State.DOWN


def test_a_crash_leaves_the_rotation_and_waits_before_the_next_start() -> None:
    lifecycle = ready_child()

    assert lifecycle.handle(LifecycleEvent.EXITED) == (Command.LEAVE, Command.ARM_BACKOFF)
    assert lifecycle.handle(LifecycleEvent.DEADLINE) == (Command.SPAWN, Command.ARM_START)


def test_one_exit_too_many_is_a_giveup_and_the_next_start_is_later() -> None:
    lifecycle = ready_child()

    assert lifecycle.handle(LifecycleEvent.TOO_OFTEN) == (
        Command.LEAVE,
        Command.ARM_RETRY,
        Command.GIVE_UP,
    )
    assert (lifecycle.state, lifecycle.at_rest) == (State.CRASH_LOOP, False)
    assert lifecycle.handle(LifecycleEvent.DEADLINE) == (Command.SPAWN, Command.ARM_START)


def test_a_child_in_a_crash_loop_is_started_at_once_for_an_operator_and_not_after_a_stop() -> None:
    for event, commands in (
        (LifecycleEvent.START, (Command.SPAWN, Command.ARM_START)),
        (LifecycleEvent.STOP, (Command.DISARM,)),
        (LifecycleEvent.STOP_NOW, (Command.DISARM,)),
    ):
        lifecycle = ready_child()
        lifecycle.handle(LifecycleEvent.TOO_OFTEN)
        assert lifecycle.handle(event) == commands


def test_without_a_retry_one_exit_too_many_is_the_end_until_an_operator_asks() -> None:
    lifecycle = ready_child()

    assert lifecycle.handle(LifecycleEvent.NO_RESTART) == (
        Command.LEAVE,
        Command.DISARM,
        Command.GIVE_UP,
    )
    assert (lifecycle.state, lifecycle.at_rest) == (State.GIVEN_UP, True)
    assert lifecycle.handle(LifecycleEvent.START) == (Command.SPAWN, Command.ARM_START)


def test_a_child_that_stays_ready_has_proved_it() -> None:
    lifecycle = ready_child()

    assert lifecycle.handle(LifecycleEvent.DEADLINE) == (Command.PROVED,)
    assert lifecycle.state is State.UP


@pytest.mark.parametrize("state", State)
def test_a_replaced_process_drains_as_long_as_it_serves(state: State) -> None:
    assert shown(state, replaced=False) is SHOWN[state]
    serves = state in (State.UP, State.STOPPING)
    assert shown(state, replaced=True) is (ProcessState.DRAINING if serves else SHOWN[state])


def test_every_word_is_shown_for_some_state() -> None:
    assert {*SHOWN.values(), ProcessState.DRAINING} == set(ProcessState)


def test_a_child_that_gets_ready_after_its_deadline_does_not_join() -> None:
    lifecycle = Lifecycle("web/0")
    lifecycle.handle(LifecycleEvent.START)

    assert lifecycle.handle(LifecycleEvent.DEADLINE) == (Command.KILL,)
    assert lifecycle.handle(LifecycleEvent.READY) == ()
    assert lifecycle.handle(LifecycleEvent.EXITED) == (Command.ARM_BACKOFF,)


ENDS = (LifecycleEvent.EXITED, LifecycleEvent.TOO_OFTEN, LifecycleEvent.NO_RESTART)

ARMS = {
    Command.ARM_START: True, Command.ARM_KILL: True, Command.ARM_PROOF: True,
    Command.ARM_BACKOFF: False, Command.ARM_RETRY: False,
}  # fmt: skip
"""Commands that set the timer, and whether there is a process then."""


class Model:
    """A model of the kernel and the proxy: which events are possible, and what commands change."""

    def __init__(self) -> None:
        self.processes = 0
        self.timer = False
        self.joined = False

    def possible(self) -> list[LifecycleEvent]:
        events = [LifecycleEvent.START, LifecycleEvent.STOP, LifecycleEvent.STOP_NOW]
        if self.processes:
            events += [LifecycleEvent.READY, *ENDS]
        if self.timer:
            events.append(LifecycleEvent.DEADLINE)
        return events

    def apply(self, event: LifecycleEvent) -> None:
        if event in ENDS:
            self.processes -= 1
        if event is LifecycleEvent.DEADLINE:
            self.timer = False

    def execute(self, command: Command) -> None:
        match command:
            case Command.SPAWN:
                self.processes += 1
            case (
                Command.ARM_START | Command.ARM_KILL | Command.ARM_PROOF
                | Command.ARM_BACKOFF | Command.ARM_RETRY
            ):  # fmt: skip
                assert bool(self.processes) is ARMS[command]
                self.timer = True
            case Command.DISARM:
                self.timer = False
            case Command.TERMINATE | Command.KILL:
                assert self.processes, "signalled a process that does not exist"
            case Command.JOIN | Command.LEAVE:
                assert self.joined is (command is Command.LEAVE)
                self.joined = command is Command.JOIN
            case Command.GIVE_UP:
                assert not self.processes
            case Command.PROVED:
                assert self.joined


@given(st.data())
def test_no_order_of_events_breaks_the_model(data: st.DataObject) -> None:
    lifecycle, model = Lifecycle("web/0"), Model()
    for _ in range(data.draw(st.integers(0, 40))):
        event = data.draw(st.sampled_from(model.possible()))
        model.apply(event)
        for command in lifecycle.handle(event):
            model.execute(command)
        assert model.processes <= 1
        assert model.joined is (lifecycle.state is State.UP)
        if lifecycle.at_rest:
            assert (model.processes, model.timer) == (0, False)
        if lifecycle.waits_for_start or lifecycle.state is State.STARTING:
            assert model.timer, "nothing would ever happen again"


@given(st.data())
def test_after_a_stop_no_process_is_started_without_a_request(data: st.DataObject) -> None:
    lifecycle, model = Lifecycle("web/0"), Model()
    stopped = False
    for _ in range(data.draw(st.integers(0, 40))):
        event = data.draw(st.sampled_from(model.possible()))
        stopped = event in (LifecycleEvent.STOP, LifecycleEvent.STOP_NOW) or (
            stopped and event is not LifecycleEvent.START
        )
        model.apply(event)
        commands = lifecycle.handle(event)
        for command in commands:
            model.execute(command)
        if stopped:
            assert Command.SPAWN not in commands
