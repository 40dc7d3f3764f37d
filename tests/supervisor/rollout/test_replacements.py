"""Workers are replaced one by one: the old one serves until its successor does, and stays if that
one fails.

Covers `rollout/condition`, `rollout/plans`, `rollout/step`, `rollout/step_commands`.
Covers `rollout/step_events`.
"""

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.replacement_queue import FIRST_PAUSE_S
from penstock_supervisor.rollout.replacement_step import StepState
from penstock_supervisor.rollout.replacements import Replacements
from penstock_supervisor.rollout.step import Step
from penstock_supervisor.rotation.holds import HoldCause

if TYPE_CHECKING:
    from penstock_supervisor.children.child import Child

WEB, MORE, API, ADDED = ("web", 0), ("web", 1), ("api", 0), ("web", 2)
START_S, WATCH_S = 30.0, 5.0


class Worker:
    """A fake child that records its calls. The test decides when it is ready or has ended."""

    def __init__(self, harness: "Harness", slot: tuple[str, int], state: State) -> None:
        service, number = slot
        self.plan = SimpleNamespace(
            service=service, slot=number, start_s=START_S, stop_s=10.0, awaits_accept=False,
            inherits_listener=False,
        )  # fmt: skip
        self.name = f"{service}/{number}"
        self.number = len(harness.made) + 1
        self.pid: int | None = 1000 + self.number
        self.state = state
        self.postponed = False
        self.starts = SimpleNamespace(
            last_output=SimpleNamespace(text=lambda: "its last words"),
            why_ended="exited with status 1",
        )
        self.calls: list[str] = []
        self._harness = harness
        harness.made.append(self)

    @property
    def at_rest(self) -> bool:
        return self.state in (State.DOWN, State.GIVEN_UP)

    def start(self) -> None:
        self.calls.append("start")
        self.state = State.STARTING

    def start_as_replacement(self, reason: str) -> None:
        self.calls.append(f"start for {reason}")
        self.state = State.STARTING

    def stop(self) -> None:
        self.calls.append("stop")
        no_process = self.state in (State.DOWN, State.BACKOFF, State.GIVEN_UP)
        self.set_state(State.DOWN if no_process else State.STOPPING)

    def signal(self, number: int) -> None:
        self.calls.append(f"signal {number}")

    def set_state(self, state: State) -> None:
        self.state = state
        self._harness.replacements.state_changed(cast("Child", self))
        self._harness.condition.notify()


class Clock:
    """The loop, as far as it is used: the time is the test's."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Nothing: the test passes the time, and says so."""


class Harness:
    """Also the rotation, and the plans."""

    def __init__(self, *, beside: bool = True, watch_s: float = 0.0, surge: int = 1) -> None:
        self.slots, self.condition, self.clock = Slots(), Condition(), Clock()
        self.made: list[Worker] = []
        self.up: set[Any] = set()
        self.fallen: set[Any] = set()
        self.ejected: dict[Any, list[tuple[int, int, int]]] = {}
        self.unconfirmed: set[Any] = set()
        self.asked: list[Any] = []
        """Who was to be confirmed."""
        self.members: set[Any] = set()
        self.beside, self.seconds, self.at_a_time = beside, watch_s, surge
        self.wanted = {WEB, MORE, API}
        self.told: list[tuple[str, str]] = []
        self.steps: list[Step] = []
        """Of `told`."""
        self.replacements = Replacements(
            cast("Any", self.clock),
            self.slots,
            cast("Any", self),
            self.condition,
            cast("Any", self),
            cast("Any", lambda plan, _after: Worker(self, plan, State.DOWN)),
        )
        self.replacements.on_step = self._step
        self.workers = [Worker(self, slot, State.UP) for slot in (WEB, MORE, API)]
        for worker in self.workers:
            self.slots.add(cast("Child", worker))
            self.up.add(worker)

    @property
    def successors(self) -> list[Worker]:
        return self.made[3:]

    def request(self, worker: Worker, reason: Any = "retire") -> None:
        why = f"{worker.name} has to go"
        self.replacements.request(cast("Child", worker), reason, why)

    def roll(self, *slots: tuple[str, int]) -> None:
        for slot in slots:
            self.replacements.request_slot(slot, "a roll-out")

    def rolls(self) -> bool:
        return self.replacements.is_rolling

    def names(self) -> list[str]:
        return [worker.name for worker in self.successors]

    def current(self, slot: tuple[str, int]) -> Worker:
        return cast("Worker", self.slots.current[slot])

    async def comes_up(self, worker: Worker) -> None:
        worker.set_state(State.UP)
        self.up.add(worker)
        await self.pass_time(0)

    async def ends(self, worker: Worker) -> None:
        worker.set_state(State.DOWN)
        await run_tasks()

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.replacements.advance()
        await run_tasks()

    def _step(self, step: Step) -> None:
        self.told.append((step.name, step.state.value))
        self.steps.append(step)
        if step.state is StepState.FAILED:
            self.failed = step

    # The plans.

    def successor_plan(self, child: Any, *, renewed: bool) -> tuple[Any, bool]:
        del renewed
        return (child.plan.service, child.plan.slot), self.beside

    def worker_plan(self, slot: Any) -> Any:
        return slot

    def is_wanted(self, slot: Any) -> bool:
        return slot in self.wanted

    def slot_removed(self, plan: Any) -> None:
        del plan

    def surge(self, service: str) -> int:
        del service
        return self.at_a_time

    def watch_s(self, service: str) -> float:
        del service
        return self.seconds

    # The rotation.

    def add(self, child: Any) -> None:
        self.members.add(child)

    def remove(self, child: Any) -> None:
        self.members.discard(child)
        self.up.discard(child)

    def drain(self, child: Any, on_drained: Callable[[], None]) -> None:
        self.up.discard(child)
        on_drained()

    def hold(self, child: Any, reason: str, cause: HoldCause) -> None:
        del reason
        assert cause is HoldCause.COMPARED
        self.up.discard(child)

    def release(self, child: Any, cause: HoldCause) -> None:
        assert cause is HoldCause.COMPARED
        self.up.add(child)

    def is_up(self, child: Any) -> bool:
        return child in self.up

    def has_fallen(self, child: Any) -> bool:
        return child in self.fallen or child in self.ejected

    def ejection(self, child: Any) -> list[tuple[int, int, int]] | None:
        return self.ejected.get(child)

    def confirm(self, child: Any, then: Callable[[], None]) -> None:
        self.asked.append(child)
        then()

    def is_confirmed(self, child: Any) -> bool:
        return child in self.asked and child in self.up - self.unconfirmed

    def why_not_up(self, child: Any) -> str:
        del child
        return "status 503"


async def run_tasks() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


# -- one worker


@pytest.mark.parametrize("way", ["asked for", "rolled"])
async def test_a_worker_serves_until_its_successor_is_in_every_rotation(way: str) -> None:
    harness = Harness()
    old = harness.workers[0]
    if way == "rolled":
        harness.roll(WEB)
    else:
        harness.request(old)
    await run_tasks()
    (new,) = harness.successors
    assert old.calls == []
    new.set_state(State.UP)
    await run_tasks()
    assert (old.calls, harness.current(WEB)) == ([], old), "it is only ready"
    await harness.comes_up(new)
    assert (old.calls, harness.current(WEB)) == (["stop"], new)
    await harness.ends(old)
    assert old not in harness.members


async def test_the_process_of_a_start_that_takes_its_time_is_told_when_there_is_one() -> None:
    harness = Harness()
    harness.roll(WEB)
    await run_tasks()
    (new,) = harness.successors
    # It looks where to start.
    new.pid, told = None, len(harness.told)
    harness.steps[-1].new_pid = None
    new.set_state(State.STARTING)
    await run_tasks()
    assert len(harness.told) == told
    new.pid = 4711
    new.set_state(State.STARTING)
    await run_tasks()
    assert harness.told[told:] == [("web/0", "starting")]
    assert harness.steps[-1].new_pid == 4711


async def test_a_roll_out_watches_the_new_process_before_it_takes_the_slot() -> None:
    harness = Harness(watch_s=WATCH_S)
    old = harness.workers[0]
    harness.roll(WEB)
    await run_tasks()
    await harness.comes_up(harness.successors[0])
    await harness.pass_time(WATCH_S - 1)
    assert old.calls == []
    await harness.pass_time(1)
    assert old.calls == ["stop"]
    assert harness.told == [
        ("web/0", "starting"), ("web/0", "checking"), ("web/0", "watching"),
        ("web/0", "confirming"), ("web/0", "draining"),
    ]  # fmt: skip


async def test_a_step_shows_the_old_process_that_there_is() -> None:
    harness = Harness(watch_s=WATCH_S)
    old, steps = harness.workers[0], list[Step]()
    harness.replacements.on_step = steps.append
    harness.roll(WEB)
    await run_tasks()
    await harness.comes_up(harness.successors[0])
    told = len(steps)
    old.pid = None
    old.set_state(State.BACKOFF)
    await run_tasks()
    old.pid = 2000
    old.set_state(State.STARTING)
    await run_tasks()
    assert [step.old_pid for step in steps[told:]] == [2000], "told when it has changed"
    old.set_state(State.UP)
    await harness.pass_time(WATCH_S)
    await harness.ends(old)
    assert (steps[-1].state, steps[-1].old_pid) == (StepState.DONE, 2000)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (StepState.STARTING, "exited with status 1"),
        (StepState.CHECKING, "exited with status 1"),
        (StepState.WATCHING, "exited with status 1, while it was in the rotation"),
    ],
)
async def test_a_successor_that_ends_leaves_the_old_worker_as_it_is(
    state: StepState, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    # It is no error by itself: the roll-out says what becomes of it.
    caplog.set_level(logging.INFO)
    harness = Harness(watch_s=WATCH_S)
    old = harness.workers[0]
    harness.roll(WEB, MORE)
    await run_tasks()
    (new,) = harness.successors
    if state is not StepState.STARTING:
        new.set_state(State.UP)
        await run_tasks()
    if state is StepState.WATCHING:
        await harness.comes_up(new)
    assert harness.told[-1] == ("web/0", state.value)
    new.set_state(State.BACKOFF)
    await run_tasks()
    assert new.calls == ["start", "stop"]
    assert (old.calls, harness.current(WEB)) == ([], old)
    assert new not in harness.members
    assert (harness.failed.reason, harness.failed.detail) == (why, "its last words")
    assert f"web/0 could not be replaced: {why}; the old process stays" in caplog.messages
    assert {record.levelno for record in caplog.records} == {logging.INFO}


async def test_a_successor_that_never_passes_its_check_is_ended_in_time() -> None:
    harness = Harness()
    harness.roll(WEB)
    await run_tasks()
    (new,) = harness.successors
    new.set_state(State.UP)
    await harness.pass_time(START_S - 1)
    assert new.calls == ["start"]
    await harness.pass_time(1)
    assert new.calls == ["start", "stop"]
    await harness.ends(new)
    assert harness.failed.reason == "it has not passed its check within 30 s: status 503"
    assert harness.workers[0].calls == []


@pytest.mark.parametrize(("failed_of_old", "ends"), [(5, False), (0, True)])
async def test_a_successor_is_not_ended_for_what_fails_under_the_old_version_as_well(
    failed_of_old: int, *, ends: bool
) -> None:
    harness = Harness(watch_s=WATCH_S)
    harness.roll(WEB)
    await run_tasks()
    (new,) = harness.successors
    await harness.comes_up(new)
    old = harness.workers[0]
    harness.up.discard(new)
    harness.ejected[new] = [(old.number, failed_of_old, 10), (new.number, 5, 5)]
    await harness.pass_time(WATCH_S)
    assert new.calls == (["start", "stop"] if ends else ["start"])
    # Its proxies confirm nothing before it is back.
    assert old.calls == ([] if ends else ["stop"])


async def test_a_successor_that_falls_out_of_the_rotation_is_ended() -> None:
    harness = Harness(watch_s=WATCH_S)
    harness.roll(WEB)
    await run_tasks()
    (new,) = harness.successors
    await harness.comes_up(new)
    harness.fallen.add(new)
    await harness.pass_time(2)
    assert new.calls == ["start", "stop"]
    await harness.ends(new)
    assert harness.failed.reason == "it was in the rotation for 2.0 s: status 503"


async def test_a_successor_that_the_supervisor_could_not_start_yet_is_waited_for() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    await run_tasks()
    harness.successors[0].postponed = True
    harness.successors[0].set_state(State.BACKOFF)
    await run_tasks()
    assert harness.successors[0].calls == ["start for retire"]
    await harness.pass_time(START_S + 1)
    assert harness.successors[0].calls == ["start for retire", "stop"]
    assert harness.current(WEB) is harness.workers[0]


async def test_why_the_supervisor_could_not_start_one_in_time_is_told() -> None:
    harness = Harness()
    harness.roll(WEB)
    await run_tasks()
    (new,) = harness.successors
    new.postponed = True
    new.starts.why_ended = "no descriptors are left"
    new.set_state(State.BACKOFF)
    await harness.pass_time(START_S + 1)
    await harness.ends(new)
    assert "could not be started in time: no descriptors are left" in harness.failed.reason


async def test_a_successor_that_is_well_again_before_it_has_the_slot_keeps_it() -> None:
    harness = Harness(watch_s=WATCH_S)
    harness.roll(WEB)
    await run_tasks()
    (new,) = harness.successors
    await harness.comes_up(new)
    harness.request(new, "unhealthy")
    harness.replacements.withdraw(cast("Child", new), "unhealthy")
    await harness.pass_time(WATCH_S)
    await harness.ends(harness.workers[0])
    assert harness.successors == [new]


async def test_an_old_process_that_crashes_meanwhile_is_not_started_beside_its_successor() -> None:
    harness = Harness()
    harness.roll(WEB)
    await run_tasks()
    harness.workers[0].set_state(State.BACKOFF)
    await harness.comes_up(harness.successors[0])
    assert harness.workers[0].calls == ["stop"]
    assert harness.current(WEB) is harness.successors[0]


async def test_a_failed_replacement_is_tried_again_after_a_pause() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    await run_tasks()
    harness.successors[0].set_state(State.BACKOFF)
    await run_tasks()
    await harness.pass_time(FIRST_PAUSE_S - 1)
    assert harness.names() == ["web/0"]
    await harness.pass_time(1)
    assert harness.names() == ["web/0", "web/0"]


@pytest.mark.parametrize("good", [True, False])
async def test_a_canary_has_its_old_process_behind_it_until_it_has_passed(*, good: bool) -> None:
    harness = Harness()
    old = harness.workers[0]
    harness.replacements.request_slot(WEB, "a roll-out", canary=True)
    await run_tasks()
    (new,) = harness.successors
    await harness.comes_up(new)
    assert harness.replacements.comparing() == {WEB: new.number}
    assert (old.calls, old in harness.up, harness.current(WEB)) == ([], False, old)
    if good:
        harness.replacements.pass_canaries()
        await run_tasks()
        assert (old.calls, harness.current(WEB)) == (["stop"], new)
    else:
        harness.replacements.withdraw_rollout()
        assert (old in harness.up, new.calls) == (True, ["start", "stop"])


async def test_a_canary_does_not_block_who_hangs() -> None:
    harness = Harness()
    harness.replacements.request_slot(WEB, "a roll-out", canary=True)
    await run_tasks()
    await harness.comes_up(harness.successors[0])
    assert harness.replacements.comparing()
    harness.request(harness.workers[1])
    await run_tasks()
    assert harness.names() == ["web/0", "web/1"]
    await harness.comes_up(harness.successors[1])
    harness.replacements.pass_canaries()
    await run_tasks()
    assert harness.current(WEB) is harness.successors[0]


# -- several


async def test_of_a_service_one_is_replaced_at_a_time_however_many_ask() -> None:
    harness = Harness()
    for _ in range(3):
        for worker in harness.workers:
            harness.request(worker)
    await run_tasks()
    assert harness.names() == ["web/0", "api/0"]
    harness.successors[0].set_state(State.UP)
    await run_tasks()
    assert harness.names() == ["web/0", "api/0"]
    await harness.comes_up(harness.successors[0])
    assert harness.names() == ["web/0", "api/0", "web/1"], "the old one may still end"


async def test_the_next_one_of_a_roll_out_waits_until_the_old_process_has_ended() -> None:
    harness = Harness()
    harness.roll(WEB, MORE, API)
    await run_tasks()
    await harness.comes_up(harness.successors[0])
    assert harness.names() == ["web/0", "api/0"]
    await harness.ends(harness.workers[0])
    assert harness.names() == ["web/0", "api/0", "web/1"]


async def test_a_roll_out_may_replace_several_at_a_time() -> None:
    harness = Harness(surge=2)
    harness.roll(WEB, MORE)
    await run_tasks()
    assert harness.names() == ["web/0", "web/1"]


async def test_a_roll_out_and_a_retiring_worker_never_replace_two_of_a_service() -> None:
    harness = Harness(surge=2)
    harness.request(harness.workers[1])
    await run_tasks()
    harness.roll(WEB, MORE)
    await run_tasks()
    assert harness.names() == ["web/1"]
    await harness.comes_up(harness.successors[0])
    assert harness.names() == ["web/1", "web/0"]


async def test_one_that_hangs_comes_before_one_that_retires() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    harness.request(harness.workers[1], "liveness")
    await run_tasks()
    assert harness.successors[0].calls == ["start for liveness"]
    assert harness.names() == ["web/1"]


async def test_one_that_hangs_while_its_slot_still_has_another_process_is_killed() -> None:
    harness = Harness()
    harness.roll(WEB)
    await run_tasks()
    (new,) = harness.successors
    await harness.comes_up(new)
    harness.request(new, "liveness")
    assert new.calls == ["start", "signal 9"]


async def test_a_worker_that_ends_by_itself_while_it_waits_is_not_replaced() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    harness.request(harness.workers[1])
    await run_tasks()
    harness.workers[1].set_state(State.BACKOFF)
    harness.workers[1].set_state(State.UP)
    await harness.comes_up(harness.successors[0])
    assert harness.names() == ["web/0"]


async def test_a_worker_that_is_well_again_is_not_replaced() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    harness.request(harness.workers[1], "unhealthy")
    await run_tasks()
    harness.request(harness.workers[0], "unhealthy")
    harness.replacements.withdraw(cast("Child", harness.workers[0]), "unhealthy")
    await harness.comes_up(harness.successors[0])
    assert harness.names() == ["web/1", "web/0"], "the other reason stays"


async def test_what_a_roll_out_takes_back_leaves_all_old_processes() -> None:
    harness = Harness(surge=2)
    harness.roll(WEB, MORE, API)
    await run_tasks()
    await harness.comes_up(harness.successors[0])
    harness.replacements.withdraw_rollout()
    await run_tasks()
    assert harness.workers[0].calls == ["stop"], "it is replaced already"
    assert harness.workers[1].calls == harness.workers[2].calls == []
    assert [one.calls[-1] for one in harness.successors] == ["start", "stop", "stop"]
    for worker in (harness.workers[0], *harness.successors[1:]):
        await harness.ends(worker)
    assert not harness.rolls()


# -- slots that come and go


async def test_a_slot_is_added_when_its_worker_serves() -> None:
    harness = Harness()
    harness.wanted.add(ADDED)
    harness.roll(ADDED)
    await run_tasks()
    assert ADDED not in harness.slots.current
    await harness.comes_up(harness.successors[0])
    assert harness.current(ADDED) is harness.successors[0]
    assert not harness.rolls()


async def test_a_slot_whose_first_worker_fails_is_not_added() -> None:
    harness = Harness()
    harness.wanted.add(ADDED)
    harness.roll(ADDED)
    await run_tasks()
    harness.successors[0].set_state(State.BACKOFF)
    await run_tasks()
    assert ADDED not in harness.slots.current
    assert harness.told[-1] == ("web/2", "failed")


async def test_a_slot_that_is_not_wanted_any_more_is_drained_and_gone() -> None:
    harness = Harness()
    harness.wanted.discard(MORE)
    harness.roll(MORE)
    await run_tasks()
    assert harness.workers[1].calls == ["stop"]
    assert MORE not in harness.slots.current
    assert harness.rolls()
    await harness.ends(harness.workers[1])
    assert not harness.rolls()
    assert harness.workers[1] not in harness.members


async def test_a_worker_that_does_not_run_is_replaced_by_a_roll_out_as_any_other() -> None:
    harness = Harness()
    harness.workers[0].state = State.GIVEN_UP
    harness.up.discard(harness.workers[0])
    harness.roll(WEB)
    await run_tasks()
    await harness.comes_up(harness.successors[0])
    assert harness.current(WEB) is harness.successors[0]
    assert not harness.rolls()


# -- one port only


async def test_without_a_second_port_the_successor_starts_when_the_old_process_has_ended() -> None:
    harness = Harness(beside=False)
    harness.request(harness.workers[0])
    await run_tasks()
    assert (harness.workers[0].calls, harness.successors[0].calls) == (["stop"], [])
    await harness.pass_time(3600.0)
    assert harness.successors[0].calls == []
    await harness.ends(harness.workers[0])
    assert harness.successors[0].calls == ["start for retire"]
    await harness.comes_up(harness.successors[0])
    assert harness.current(WEB) is harness.successors[0]


async def test_without_a_second_port_an_old_worker_comes_back_when_the_new_one_fails() -> None:
    harness = Harness(beside=False)
    harness.roll(WEB)
    await run_tasks()
    await harness.ends(harness.workers[0])
    harness.successors[0].set_state(State.BACKOFF)
    await run_tasks()
    assert harness.workers[0].calls == ["stop", "start"]
    assert harness.current(WEB) is harness.workers[0]


async def test_without_a_second_port_the_last_one_that_serves_is_not_taken_away() -> None:
    harness = Harness(beside=False)
    harness.roll(API)
    await run_tasks()
    assert harness.workers[2].calls == []
    assert "nobody else serves" in harness.failed.reason


async def test_a_roll_out_that_failed_is_not_tried_again_by_a_worker_that_retires() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    harness.roll(WEB)
    await run_tasks()
    assert harness.successors[0].calls == ["start"]
    harness.successors[0].set_state(State.BACKOFF)
    await run_tasks()
    assert not harness.rolls()
    await harness.pass_time(FIRST_PAUSE_S)
    assert harness.successors[1].calls == ["start for retire"]


async def test_a_fault_of_ours_in_a_step_fails_the_step_and_blocks_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = Harness()
    plans, harness.successor_plan = harness.successor_plan, None  # type: ignore[assignment, method-assign]
    harness.roll(WEB)
    await run_tasks()
    assert harness.told[-1] == ("web/0", "failed")
    assert "a bug of penstock" in harness.failed.reason
    harness.successor_plan = plans  # type: ignore[method-assign]
    harness.roll(MORE)
    await run_tasks()
    assert harness.names() == ["web/1"]
    assert "Traceback" in caplog.text


async def test_a_removal_that_waits_for_an_earlier_process_keeps_no_roll_out_waiting() -> None:
    harness = Harness()
    old = harness.workers[0]
    harness.request(old)
    await run_tasks()
    (new,) = harness.successors
    await harness.comes_up(new)
    assert old.state is State.STOPPING
    harness.wanted -= {WEB}
    harness.roll(WEB, MORE)
    await run_tasks()
    harness.replacements.leave_removals()
    assert harness.replacements.waiting() == [], "web/1 is not removed, and has begun"
    await harness.comes_up(harness.successors[1])
    await harness.ends(harness.workers[1])
    assert not harness.rolls()
    # Asked for again, it is removed when the slot is free.
    harness.roll(WEB)
    await run_tasks()
    assert new.calls[-1:] != ["stop"]
    await harness.ends(old)
    assert new.calls[-1:] == ["stop"]
