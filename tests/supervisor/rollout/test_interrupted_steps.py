"""Whatever a worker of the service does in the middle of a step, the step has the right outcome:
every state with every event.
"""

from collections.abc import Callable
from itertools import product
from typing import Final

import pytest
from tests.supervisor.rollout.test_replacements import (
    MORE,
    START_S,
    WATCH_S,
    WEB,
    Harness,
    Worker,
    run_tasks,
)

from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.rollout.replacement_step import OVERLAP, StepState

STATES: Final = (*OVERLAP, StepState.DRAINING)


class Run(Harness):
    """A step of web/0, in a roll-out, in the state that is asked for."""

    def __init__(self) -> None:
        super().__init__(watch_s=WATCH_S)
        self.old, self.other = self.workers[0], self.workers[1]

    @property
    def new(self) -> Worker:
        return self.successors[0]

    @property
    def at(self) -> str:
        return self.told[-1][1]

    async def bring_to(self, state: StepState) -> None:
        is_canary = state is StepState.CANARY
        self.replacements.request_slot(WEB, "a roll-out", canary=is_canary)
        await run_tasks()
        if state is not StepState.STARTING:
            self.new.set_state(State.UP)
            await run_tasks()
        if state not in (StepState.STARTING, StepState.CHECKING):
            await self.comes_up(self.new)
        if state is StepState.CONFIRMING:
            self.unconfirmed.add(self.new)
        if state in (StepState.CONFIRMING, StepState.CANARY, StepState.DRAINING):
            await self.pass_time(WATCH_S)
        assert self.at == state.value

    async def go_on(self) -> None:
        """The new process does all that it has to do."""
        self.unconfirmed.discard(self.new)
        if self.new.state is State.STARTING:
            self.new.set_state(State.UP)
            await run_tasks()
        await self.comes_up(self.new)
        await self.pass_time(WATCH_S)
        self.replacements.pass_canaries()
        await self.pass_time(0)

    async def end_all(self) -> None:
        """What was told to leave leaves."""
        for worker in self.made:
            if worker.state is State.STOPPING:
                await self.ends(worker)


Event = Callable[[Run], object]


def comes_back(worker: Worker) -> None:
    """It crashes, and is started again, unless it was told to leave."""
    worker.set_state(State.BACKOFF)
    if worker.state is State.BACKOFF:
        worker.set_state(State.STARTING)
        worker.set_state(State.UP)


OLD_OR_OTHER: Final[dict[str, Event]] = {
    "the old one crashes": lambda run: run.old.set_state(State.BACKOFF),
    "the old one crashes and comes back": lambda run: comes_back(run.old),
    "the old one retires": lambda run: run.request(run.old),
    "the old one loses its channel": lambda run: run.request(run.old, "channel"),
    "the old one hangs": lambda run: run.request(run.old, "liveness"),
    "the old one is unhealthy": lambda run: run.request(run.old, "unhealthy"),
    "another one crashes": lambda run: comes_back(run.other),
    "another one retires": lambda run: run.request(run.other),
    "another one hangs": lambda run: run.request(run.other, "liveness"),
}
"""None of them says anything about the new process."""
NEW: Final[dict[str, Event]] = {
    "crashes": lambda run: run.new.set_state(State.BACKOFF),
    "retires": lambda run: run.request(run.new),
    "loses its channel": lambda run: run.request(run.new, "channel"),
}
"""It cannot stay."""


@pytest.mark.parametrize(("state", "event"), list(product(STATES, OLD_OR_OTHER)))
async def test_what_others_do_neither_fails_a_step_nor_begins_another_one(
    state: StepState, event: str
) -> None:
    run = Run()
    await run.bring_to(state)
    OLD_OR_OTHER[event](run)
    await run_tasks()
    has_ended = state is StepState.DRAINING and "the old one crashes" in event
    assert run.at == ("done" if has_ended else state.value)
    # Only a canary waits for so long that one that hangs cannot wait for it.
    beside = [MORE] if state is StepState.CANARY and event in ASKED_BY_ANOTHER else []
    assert [one.name for one in run.successors[1:]] == [f"{name}/{slot}" for name, slot in beside]
    await run.go_on()
    assert run.current(WEB) is run.new
    await run.end_all()
    assert run.told[-1] == ("web/0", "done")
    assert run.old not in run.members
    assert not run.rolls()
    # Nothing that was said of the old process is held against the new one.
    waits = [MORE] if event in ASKED_BY_ANOTHER else []
    assert [one.name for one in run.successors[1:]] == [f"{name}/{slot}" for name, slot in waits]


ASKED_BY_ANOTHER: Final = ("another one retires", "another one hangs")


@pytest.mark.parametrize(("state", "event"), list(product(OVERLAP, NEW)))
async def test_a_new_process_that_cannot_stay_fails_its_step_and_the_old_one_serves(
    state: StepState, event: str
) -> None:
    run = Run()
    await run.bring_to(state)
    NEW[event](run)
    await run_tasks()
    if state is StepState.STARTING and event != "crashes":
        # A child that is not ready sees to that itself. Here it is said at the last moment.
        run.new.set_state(State.UP)
        await run_tasks()
    await run.end_all()
    assert run.told[-1] == ("web/0", "failed")
    assert (run.old.calls, run.current(WEB)) == ([], run.old)
    assert run.old in run.up, "it is held no more"
    assert run.new not in run.members
    assert not run.rolls()
    reason = run.failed.reason
    assert ("exited" if event == "crashes" else "has to go") in reason


@pytest.mark.parametrize("event", ["the old one retires", "the old one loses its channel"])
@pytest.mark.parametrize("state", OVERLAP)
async def test_what_the_old_process_asked_for_meanwhile_is_done_when_it_stays(
    state: StepState, event: str
) -> None:
    run = Run()
    await run.bring_to(state)
    OLD_OR_OTHER[event](run)
    run.new.set_state(State.BACKOFF)
    await run_tasks()
    assert run.told[-1] == ("web/0", "failed")
    assert [one.calls for one in run.successors[1:]] == [
        [f"start for {'retire' if 'retires' in event else 'channel'}"]
    ]


@pytest.mark.parametrize("state", OVERLAP)
async def test_what_a_process_asked_for_that_has_crashed_since_is_forgotten(
    state: StepState,
) -> None:
    run = Run()
    await run.bring_to(state)
    run.request(run.old)
    comes_back(run.old)
    run.new.set_state(State.BACKOFF)
    await run_tasks()
    assert run.told[-1] == ("web/0", "failed")
    assert len(run.successors) == 1


async def test_a_new_process_that_retires_when_it_has_its_slot_is_replaced_after_the_old_one() -> (
    None
):
    run = Run()
    await run.bring_to(StepState.DRAINING)
    run.request(run.new)
    await run_tasks()
    assert len(run.successors) == 1
    await run.end_all()
    assert [one.calls for one in run.successors[1:]] == [["start for retire"]]


@pytest.mark.parametrize("after", [StepState.CONFIRMING, StepState.CANARY])
async def test_a_new_process_that_is_not_confirmed_is_ended_in_time(after: StepState) -> None:
    run = Run()
    await run.bring_to(after)
    run.unconfirmed.add(run.new)
    run.replacements.pass_canaries()
    await run.pass_time(START_S - 1)
    assert run.at == "confirming"
    await run.pass_time(1)
    await run.end_all()
    assert run.failed.reason == "it has not passed a check again within 30 s: status 503"
    assert (run.old.calls, run.current(WEB), run.old in run.up) == ([], run.old, True)


async def test_a_canary_is_asked_twice_and_compared_once() -> None:
    run = Run()
    await run.bring_to(StepState.CANARY)
    run.replacements.pass_canaries()
    await run_tasks()
    assert run.asked == [run.new, run.new]
    assert [state for _, state in run.told].count("canary") == 1
    assert run.current(WEB) is run.new


async def test_one_that_is_watched_for_no_time_is_not_asked_again() -> None:
    harness = Harness()
    harness.roll(WEB)
    await run_tasks()
    await harness.comes_up(harness.successors[0])
    assert harness.asked == []
    assert harness.current(WEB) is harness.successors[0]
