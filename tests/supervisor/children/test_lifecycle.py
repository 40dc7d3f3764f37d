"""The table is complete, and no order of events makes two processes or timers of one child."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.children.lifecycle import (
    TRANSITIONS,
    Command,
    ImpossibleEventError,
    Lifecycle,
    LifecycleEvent,
    State,
)


@pytest.mark.parametrize(("state", "event"), list(product(State, LifecycleEvent)))
def test_every_pair_was_thought_of(state: State, event: LifecycleEvent) -> None:
    assert event in TRANSITIONS[state]


@pytest.mark.parametrize(("state", "event"), list(product(State, LifecycleEvent)))
def test_a_pair_either_moves_or_is_refused_by_name(state: State, event: LifecycleEvent) -> None:
    life = Lifecycle("web/0")
    life._state = state
    step = TRANSITIONS[state][event]
    if step is None:
        with pytest.raises(ImpossibleEventError, match=f"web/0: {event.name} while {state.name}"):
            life.handle(event)
        assert life.state is state
    else:
        assert life.handle(event) == step.commands
        assert life.state is step.to


def test_every_state_can_be_reached() -> None:
    reached = {step.to for row in TRANSITIONS.values() for step in row.values() if step}
    assert reached == set(State)


def test_every_command_is_given_somewhere() -> None:
    given_ = {c for row in TRANSITIONS.values() for step in row.values() if step for c in step[1]}
    assert given_ == set(Command)


def risen() -> Lifecycle:
    life = Lifecycle("web/0")
    assert life.handle(LifecycleEvent.START) == (Command.SPAWN, Command.ARM_START)
    assert life.handle(LifecycleEvent.READY) == (Command.DISARM, Command.JOIN)
    return life


def test_a_child_that_ignores_term_is_killed() -> None:
    life = risen()

    assert life.handle(LifecycleEvent.STOP) == (Command.LEAVE, Command.TERMINATE, Command.ARM_KILL)
    assert life.handle(LifecycleEvent.DEADLINE) == (Command.KILL,)
    assert life.handle(LifecycleEvent.EXITED) == (Command.DISARM,)
    assert life.state is State.DOWN


def test_a_crash_leaves_the_rotation_and_waits_before_the_next_start() -> None:
    life = risen()

    assert life.handle(LifecycleEvent.EXITED) == (Command.LEAVE, Command.ARM_BACKOFF)
    assert life.handle(LifecycleEvent.DEADLINE) == (Command.SPAWN, Command.ARM_START)


def test_one_exit_too_many_is_an_alarm_and_no_start() -> None:
    life = risen()

    assert life.handle(LifecycleEvent.NO_RESTART) == (Command.LEAVE, Command.GIVE_UP)
    assert (life.state, life.at_rest) == (State.GIVEN_UP, True)
    assert life.handle(LifecycleEvent.START) == (Command.SPAWN, Command.ARM_START)


def test_a_child_that_answers_after_its_deadline_is_not_joined() -> None:
    life = Lifecycle("web/0")
    life.handle(LifecycleEvent.START)

    assert life.handle(LifecycleEvent.DEADLINE) == (Command.KILL,)
    assert life.handle(LifecycleEvent.READY) == ()
    assert life.handle(LifecycleEvent.EXITED) == (Command.ARM_BACKOFF,)


class World:
    """The kernel and the proxy as the child sees them: at most what really can happen next."""

    def __init__(self) -> None:
        self.processes = 0
        self.timer = False
        self.joined = False

    def possible(self) -> list[LifecycleEvent]:
        events = [LifecycleEvent.START, LifecycleEvent.STOP, LifecycleEvent.STOP_NOW]
        if self.processes:
            events += [LifecycleEvent.READY, LifecycleEvent.EXITED, LifecycleEvent.NO_RESTART]
        if self.timer:
            events.append(LifecycleEvent.DEADLINE)
        return events

    def happens(self, event: LifecycleEvent) -> None:
        if event in (LifecycleEvent.EXITED, LifecycleEvent.NO_RESTART):
            self.processes -= 1
        if event is LifecycleEvent.DEADLINE:
            self.timer = False

    def execute(self, command: Command) -> None:
        match command:
            case Command.SPAWN:
                self.processes += 1
            case Command.ARM_START | Command.ARM_KILL | Command.ARM_BACKOFF:
                self.timer = True
            case Command.DISARM:
                self.timer = False
            case Command.TERMINATE | Command.KILL:
                assert self.processes, "signalled a process that does not exist"
            case Command.JOIN:
                assert self.processes
                assert not self.joined
                self.joined = True
            case Command.LEAVE:
                assert self.joined
                self.joined = False
            case Command.GIVE_UP:
                assert not self.processes


@given(st.data())
def test_no_order_of_events_breaks_the_world(data: st.DataObject) -> None:
    life, world = Lifecycle("web/0"), World()
    for _ in range(data.draw(st.integers(0, 40))):
        event = data.draw(st.sampled_from(world.possible()))
        world.happens(event)
        for command in life.handle(event):
            world.execute(command)
        assert world.processes <= 1
        assert world.joined is (life.state is State.UP)
        if life.at_rest:
            assert (world.processes, world.timer) == (0, False)
        if life.state in (State.STARTING, State.BACKOFF):
            assert world.timer, "nothing would ever happen again"


@given(st.data())
def test_after_a_stop_nothing_is_ever_started_unasked(data: st.DataObject) -> None:
    life, world = Lifecycle("web/0"), World()
    stopped = False
    for _ in range(data.draw(st.integers(0, 40))):
        event = data.draw(st.sampled_from(world.possible()))
        stopped = event in (LifecycleEvent.STOP, LifecycleEvent.STOP_NOW) or (
            stopped and event is not LifecycleEvent.START
        )
        world.happens(event)
        commands = life.handle(event)
        for command in commands:
            world.execute(command)
        if stopped:
            assert Command.SPAWN not in commands
