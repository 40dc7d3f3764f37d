"""A roll-out has an owner, a state, a history and an end; a second one joins or supersedes it.

Covers `rollout/rollout`, `rollout/rollout_driver`, `rollout/rollout_parts`, `rollout/course`.
Covers `rollout/removals`.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio

from penstock_supervisor.children.events import Events
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.config.changes import EVERYTHING
from penstock_supervisor.errors import NotNowError, ReloadRefused
from penstock_supervisor.rollout.canary import Judgement, Verdict
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.falls import Falls
from penstock_supervisor.rollout.records import RolloutRecords
from penstock_supervisor.rollout.removals import Removals
from penstock_supervisor.rollout.replaced_workers import Failure, ReplacedWorkers
from penstock_supervisor.rollout.replacement_step import StepState
from penstock_supervisor.rollout.request_totals import RequestTotals, ServiceTotals
from penstock_supervisor.rollout.rollout_driver import RolloutDriver
from penstock_supervisor.rollout.rollout_parts import RolloutParts
from penstock_supervisor.rollout.rollouts import Rollouts

WEB, MORE, API = ("web", 0), ("web", 1), ("api", 0)


class Version(str):
    """A configuration, and the version that it brings into force."""

    services = (SimpleNamespace(name="web"), SimpleNamespace(name="api"))

    @property
    def config(self) -> "Version":
        return self


V1, V2, V3 = (cast("Any", Version(name)) for name in ("v1", "v2", "v3"))


class FakeStep:
    """A step as `replacements` has it; the test says how it ends."""

    goes_back = is_cancelled = is_outdated = False
    reason = detail = ""
    action = "replace"
    old_pid: int | None = 1
    new_pid: int | None = 2

    def __init__(self, slot: tuple[str, int], version: Any) -> None:
        self.slot, self.version = slot, version
        self.name = f"{slot[0]}/{slot[1]}"
        self.state = StepState.STARTING
        self.old = None
        self.new = SimpleNamespace(
            state=State.UP, pid=2, history=SimpleNamespace(last_exit_reason="exited with status 9")
        )

    @property
    def ok(self) -> bool:
        return self.state in (StepState.DRAINING, StepState.DONE)


class Replaced:
    """The workers that the roll-out has replaced."""

    serve = True
    failed: Failure | None = None
    to_do: Callable[[], Any] | None = None
    times_asked = 0
    is_asking = False

    def begin(self, to_do: Callable[[], Any]) -> None:
        self.to_do = to_do

    def end(self) -> None:
        self.to_do, self.failed = None, None

    def failure(self) -> Failure | None:
        return self.failed

    def ask(self) -> None:
        self.times_asked += 1
        self.is_asking = True

    def end_question(self) -> None:
        self.is_asking = False

    def forget(self, slot: tuple[str, int]) -> None:
        del slot

    def is_confirmed(self) -> bool:
        return self.serve


class Harness:
    """Also the replacements, the versions, the reconfiguration and the measurements."""

    ages: Mapping[tuple[str, int], float] = {}
    """Of processes that were started meanwhile."""
    not_ready: Sequence[str] = ()
    moved: Sequence[str] = ()
    """Services whose programs are started elsewhere than before."""
    refused = refused_late = ""
    never_refused: Any = None
    broken = broken_late = False
    canary = 0.0
    canary_is = ""
    counted = 0
    leaving_has = ""
    """What the removed services still have."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.condition = Condition()
        self.on_step: Callable[[Any], None] = lambda _: None
        self.in_force = V1
        self.replaced = Replaced()
        self.asked: list[tuple[str, int]] = []
        self.steps: list[FakeStep] = []
        self.running: list[FakeStep] = []
        self.slots = [WEB, MORE, API]
        self.reverting = asyncio.Event()
        self.reverting.set()
        self.removed: set[str] = set()
        self.canaries_asked: list[tuple[str, int]] = []
        self.done: list[str] = []
        self.differing = True
        """One version of a worker differs from another."""
        self.runs = dict.fromkeys(self.slots, V1)
        self.idle: set[tuple[str, int]] = set()
        """Nothing has to be done there."""
        loop = asyncio.get_running_loop()
        me = cast("Any", self)
        removals = Removals(me, me, me, self.condition)
        driver = RolloutDriver(RolloutParts(loop, me, me, me, me, self.condition, removals))
        self.events = Events()
        self.subscription = self.events.subscribe()
        self.records = RolloutRecords(self.events, loop.time, lambda: 1e9)
        self.rollouts = Rollouts(loop, cast("Any", self), driver, self.condition, self.records)
        self.rollouts.start(tasks)

    # The replacements.

    def request_slot(self, slot: tuple[str, int], why: str, *, canary: bool = False) -> None:
        del why
        self.asked.append(slot)
        if canary:
            self.canaries_asked.append(slot)
        self._begin_next()

    def comparing(self) -> dict[tuple[str, int], int]:
        return {step.slot: 7 for step in self.running if step.state is StepState.CANARY}

    def pass_canaries(self) -> None:
        for step in tuple(self.running):
            self.end(step)

    def withdraw_rollout(self, failed: Mapping[tuple[str, int], str] = {}) -> None:
        self.asked.clear()
        for step in tuple(self.running):
            step.is_cancelled = step.slot not in failed
            self.end(step, StepState.FAILED, failed.get(step.slot, "cancelled"))

    def waiting(self) -> list[tuple[str, int]]:
        return list(self.asked)

    @property
    def is_rolling(self) -> bool:
        return bool(self.asked or self.running)

    def _begin_next(self) -> None:
        if self.asked and not self.running and self.asked[0] in self.idle:
            self.asked.pop(0)
            self.condition.notify()
        if self.asked and not self.running:
            step = FakeStep(self.asked.pop(0), self.in_force)
            self.steps.append(step)
            self.running.append(step)
            self.on_step(cast("Any", step))

    def end(self, step: FakeStep, state: StepState = StepState.DONE, reason: str = "") -> None:
        step.state, step.reason = state, reason
        if step.ok:
            self.runs[step.slot] = step.version
        self.running.remove(step)
        self.on_step(cast("Any", step))
        self._begin_next()
        self.condition.notify()

    # The versions.

    def go_back_to(self, version: Any) -> None:
        self.in_force = version

    def describe(self, new: Any, names: Iterable[str]) -> tuple[str, ...]:
        return (f"to {new}", *names)

    def targets(self, before: Any, names: Iterable[str]) -> list[tuple[str, int]]:
        del before
        wanted = set(names)
        return [
            slot
            for slot in self.slots
            if EVERYTHING in wanted or slot[0] in wanted or self.differs(slot)
        ]

    def moved_since(self, before: Any) -> Sequence[str]:
        del before
        return self.moved

    def is_wanted(self, slot: tuple[str, int]) -> bool:
        return slot in self.slots

    def leftover(self) -> list[tuple[str, int]]:
        return []

    def differs(self, slot: tuple[str, int]) -> bool:
        return self.differing and self.runs[slot] != self.in_force

    def age_s(self, slot: tuple[str, int]) -> float | None:
        return self.ages.get(slot, 1e9)

    def down(self) -> list[str]:
        return list(self.not_ready)

    def canaries(self, targets: list[tuple[str, int]]) -> dict[tuple[str, int], float]:
        return {targets[0]: self.canary} if self.canary else {}

    # The reconfiguration.

    async def prepare(self, new: Any) -> Any:
        if self.refused and new != self.never_refused:
            raise ReloadRefused((self.refused,))
        self.done.append(f"prepare {new}")
        return new

    async def apply(self, prepared: Any, names: Collection[str] = ()) -> None:
        if self.broken:
            raise ZeroDivisionError
        if self.refused_late:
            raise ReloadRefused((self.refused_late,))
        self.in_force = prepared
        self.done.append(f"apply {prepared}")

    async def leave(self, prepared: Any) -> None:
        self.done.append(f"leave {prepared}")

    async def finish(self, prepared: Any) -> None:
        if self.broken_late:
            raise ZeroDivisionError
        self.done.append(f"finish {prepared}")
        self.removed |= {one.name for one in V1.services} - {one.name for one in prepared.services}

    async def revert(self, prepared: Any) -> None:
        await self.reverting.wait()
        if self.broken_late:
            raise ZeroDivisionError
        self.done.append(f"revert {prepared}")

    async def until_unused(self, is_awaited: Callable[[], bool]) -> bool:
        await self.condition.wait_until(lambda: not self.leaving_has or is_awaited())
        return not self.leaving_has

    def has_leaving(self) -> bool:
        return bool(self.leaving_has)

    def leave_removals(self) -> None:
        pass

    def forget(self) -> None:
        self.done.append("forget")
        self.removed.clear()

    # The measurements.

    async def requests(self) -> RequestTotals:
        self.counted += 1
        return RequestTotals({"web": ServiceTotals(100 * self.counted, self.counted)})

    async def sample(self) -> Any:
        return None

    def judge(self, *_: Any, early: bool) -> Judgement:
        del early
        worse = Judgement(Verdict.WORSE, self.canary_is)
        return worse if self.canary_is else Judgement(Verdict.GOOD, "as good as the others")

    # For the tests.

    def view(self, number: int) -> Any:
        return self.records.get(number)

    async def end_all(self) -> list[tuple[str, int]]:
        """End each step well, one after the other; returns the slots in this order."""
        order = []
        await run_tasks()
        while self.running:
            order.append(self.running[0].slot)
            self.end(self.running[0])
            await run_tasks()
        return order


async def run_tasks() -> None:
    for _ in range(40):
        await asyncio.sleep(0)
        # What a roll-out changes is found out in one.
        for thread in threading.enumerate():
            if thread.name == "directories":
                thread.join()


@pytest_asyncio.fixture
async def harness() -> AsyncIterator[Harness]:
    async with asyncio.TaskGroup() as tasks:
        made = Harness(tasks)
        yield made
        made.rollouts.cancel()


async def test_a_good_roll_out_replaces_every_worker_and_says_what_it_has_seen(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    harness.rollouts.request(V2)
    assert await harness.end_all() == [WEB, MORE, API]
    view = harness.view(1)
    assert (view.state, view.result, view.reason) == ("ended", "succeeded", "")
    assert view.outcome == "the new version serves"
    assert (view.requests, view.failed) == (100, 1)
    assert [step.state for step in view.steps] == ["done"] * 3
    assert harness.done == ["prepare v2", "apply v2", "finish v2"]
    assert "roll-out 1 has succeeded; requests 100, failed 1" in caplog.messages
    assert harness.records.results == {"succeeded": 1}
    assert harness.records.config_ok


async def test_a_step_that_fails_aborts_all_and_what_was_replaced_goes_back(
    harness: Harness,
) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    await run_tasks()
    harness.end(harness.running[0], StepState.FAILED, "exited with status 1")
    await run_tasks()
    assert [(step.slot, step.version) for step in harness.steps] == [
        (WEB, V2), (MORE, V2), (WEB, V1),
    ]  # fmt: skip
    await harness.end_all()
    view = harness.view(1)
    assert (view.result, view.reason) == ("aborted", "web/1: exited with status 1")
    assert view.steps[-1].action == "roll_back"
    assert view.outcome == "the configuration before is in force again"
    assert harness.done == ["prepare v2", "apply v2", "revert v2"]
    assert harness.in_force == V1
    assert not harness.records.config_ok


async def test_what_has_no_version_before_does_not_go_back_and_is_named(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.differing = False
    harness.rollouts.request(V1)
    await run_tasks()
    harness.end(harness.running[0])
    await run_tasks()
    harness.end(harness.running[0], StepState.FAILED, "exited with status 1")
    await harness.end_all()
    assert [step.slot for step in harness.steps] == [WEB, MORE]
    view = harness.view(1)
    assert view.result == "aborted"
    assert (
        view.leftover
        == view.outcome
        == (
            "web/1, api/0 still run the version before; "
            "web/0 already runs the new one and cannot be put back: its files are the new ones"
        )
    )
    told = f"roll-out 1 is aborted: web/1: exited with status 1; {view.leftover}; requests 100, "
    assert any(message.startswith(told) for message in caplog.messages)


async def test_who_ended_meanwhile_has_the_new_files_of_a_deploy(harness: Harness) -> None:
    harness.differing = False
    harness.ages, harness.not_ready = {MORE: -1.0}, ["api"]
    harness.rollouts.request(V1)
    await run_tasks()
    harness.end(harness.running[0], StepState.FAILED, "exited with status 1")
    await harness.end_all()
    assert harness.view(1).leftover == (
        "web/0, api/0 still run the version before; "
        "web/1 has ended meanwhile, and was started again with the new files; "
        "no worker of api is ready"
    )


async def test_a_configuration_that_cannot_be_applied_changes_no_worker(harness: Harness) -> None:
    harness.refused = "service.web.listen: the address is taken"
    harness.rollouts.request(V2)
    await run_tasks()
    view = harness.view(1)
    assert (view.result, view.reason) == ("refused", harness.refused)
    assert view.outcome == "nothing is changed"
    assert harness.steps == []
    assert harness.in_force == V1
    assert harness.done == []
    assert not harness.records.config_ok


async def test_what_could_not_be_applied_is_taken_back(harness: Harness) -> None:
    harness.refused_late = "proxy/0 cannot do that"
    harness.rollouts.request(V2)
    await run_tasks()
    view = harness.view(1)
    assert (view.result, view.reason) == ("aborted", harness.refused_late)
    assert harness.done == ["prepare v2", "revert v2"]


async def test_a_bug_in_a_change_takes_it_back_and_ends_nothing_else(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.broken = True
    harness.rollouts.request(V2)
    await run_tasks()
    view = harness.view(1)
    assert (view.state, view.result) == ("ended", "aborted")
    assert "a bug of penstock" in view.reason
    assert harness.done == ["prepare v2", "revert v2"]
    assert not harness.records.config_ok
    assert [one.exc_info is not None for one in caplog.records].count(True) == 1
    harness.broken = False
    harness.rollouts.request(V3)
    await harness.end_all()
    assert harness.view(2).result == "succeeded"


async def test_a_bug_when_the_new_version_serves_already_is_told(harness: Harness) -> None:
    harness.broken_late = True
    harness.rollouts.request(V2)
    await harness.end_all()
    view = harness.view(1)
    assert (view.state, view.result) == ("ended", "aborted")
    assert "the new version serves" in view.leftover
    assert not harness.records.config_ok


async def test_a_bug_on_the_way_back_ends_it_all_the_same(harness: Harness) -> None:
    harness.refused_late, harness.broken_late = "proxy/0 cannot do that", True
    harness.rollouts.request(V2)
    await run_tasks()
    view = harness.view(1)
    assert (view.state, view.result, view.reason) == ("ended", "aborted", "proxy/0 cannot do that")
    assert "not all settings" in view.leftover


async def test_a_fault_in_what_is_told_at_the_end_ends_no_run(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(harness.records, "config_read", None)
        harness.rollouts.request(V2)
        await harness.end_all()
    harness.rollouts.request(V3)
    await harness.end_all()
    assert harness.view(2).result == "succeeded"


async def test_the_same_request_joins_and_all_begins_anew(harness: Harness) -> None:
    first, _ = harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    (begun,) = harness.running
    same, joined = harness.rollouts.request(V2)
    assert joined
    assert same is first
    assert await harness.end_all() == [WEB, MORE, API]
    assert begun.is_cancelled, "it had not taken over its slot"
    view = harness.view(1)
    assert view.result == "succeeded"
    assert [(step.slot, step.state) for step in view.steps] == [
        (0, "done"), (0, "done"), (1, "done"), (0, "done"),
    ]  # fmt: skip
    assert len(harness.records.views()) == 1


@pytest.mark.parametrize("state", [StepState.STARTING, StepState.FAILING])
async def test_what_began_before_somebody_joined_fails_nothing(
    harness: Harness, state: StepState
) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    (begun,) = harness.running
    begun.state = state
    harness.rollouts.request(V2)
    # Before anybody has looked at the roll-out.
    harness.end(begun, StepState.FAILED, "it was not ready in time")
    assert await harness.end_all() == [WEB, MORE, API]
    view = harness.view(1)
    assert (view.result, view.reason) == ("succeeded", "")
    assert [step.state for step in view.steps] == ["done"] * 3


async def test_who_asks_for_what_has_failed_already_has_a_roll_out_of_its_own(
    harness: Harness,
) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0], StepState.FAILED, "it was not ready in time")
    _, joined = harness.rollouts.request(V2)
    assert not joined
    await harness.end_all()
    first, second = harness.view(1), harness.view(2)
    assert (first.result, first.superseded_by) == ("aborted", None)
    assert second.result == "succeeded"


async def test_requests_without_end_keep_nobody_waiting_for_ever(harness: Harness) -> None:
    harness.slots = [WEB, MORE]
    first, _ = harness.rollouts.request(V2)
    asked = [first.number]
    for _ in range(30):
        await run_tasks()
        asked.append(harness.rollouts.request(V2)[0].number)
        await run_tasks()
        if harness.running:
            harness.end(harness.running[0])
        assert len([view for view in harness.records.views() if not view.result]) <= 2
    await harness.end_all()
    views = harness.records.views()
    assert {view.result for view in views} == {"succeeded"}
    assert len(set(asked)) > 3, "the first ones ended while others asked"
    assert max(len(view.steps) for view in views) <= 2 * len(harness.slots)


async def test_who_joins_before_anything_has_begun_is_the_same_request_twice(
    harness: Harness,
) -> None:
    rollout, _ = harness.rollouts.request(V2)
    for _ in range(5):
        assert harness.rollouts.request(V2) == (rollout, True)
    await run_tasks()
    assert rollout.names == {EVERYTHING}
    assert await harness.end_all() == [WEB, MORE, API]


async def test_what_runs_in_all_workers_was_read_before_somebody_joined(harness: Harness) -> None:
    rollout, _ = harness.rollouts.request(V2, names=["web"])
    await run_tasks()
    harness.rollouts.request(V2)
    assert rollout.names == {EVERYTHING, "web", "api"}


async def test_who_comes_by_another_link_supersedes(harness: Harness) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    _, joined = harness.rollouts.request(V2, is_moved=True)
    assert not joined
    await harness.end_all()
    assert [view.result for view in harness.records.views()] == ["superseded", "succeeded"]


async def test_a_reload_that_is_asked_for_last_is_the_last_one_although_it_ends_first(
    harness: Harness,
) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    # One that is refused at once.
    harness.records.config_read(ok=False)
    await harness.end_all()
    assert harness.view(1).result == "succeeded"
    assert not harness.records.config_ok
    harness.rollouts.request(V3)
    await harness.end_all()
    assert harness.records.config_ok


async def test_a_reload_that_is_ended_by_a_bug_was_not_applied(harness: Harness) -> None:
    harness.broken = True
    harness.rollouts.request(V2)
    await run_tasks()
    assert harness.view(1).result == "aborted"
    assert not harness.records.config_ok


async def test_another_configuration_supersedes_and_goes_on_from_there(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    second, _ = harness.rollouts.request(V3)
    assert second.why_it_waits == "roll-out 1 has to end first"
    await harness.end_all()
    assert second.why_it_waits == ""
    (said,) = [one for one in caplog.records if "superseded" in one.getMessage()]
    assert said.levelno == logging.INFO
    assert said.getMessage().split(";")[0] == "roll-out 1 is superseded by roll-out 2"
    first = harness.view(1)
    assert (first.result, first.superseded_by) == ("superseded", 2)
    assert first.reason == "superseded by roll-out 2"
    assert [step.state for step in first.steps] == ["done", "withdrawn"], "nothing was wrong"
    assert harness.view(2).result == "succeeded"
    assert {step.slot for step in harness.steps if step.version == V3} == {WEB, MORE, API}


async def test_of_ten_requests_one_runs_and_one_waits(harness: Harness) -> None:
    requests = [harness.rollouts.request(cast("Any", Version(f"v{n}"))) for n in range(10)]
    assert not any(joined for _, joined in requests)
    await harness.end_all()
    results = {view.number: view.result for view in harness.records.views()}
    assert results == {**dict.fromkeys(range(1, 10), "superseded"), 10: "succeeded"}
    assert harness.in_force == "v9"


async def test_a_stop_of_the_run_cancels_what_runs_and_what_waits(harness: Harness) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    harness.rollouts.request(V3)
    harness.rollouts.cancel()
    assert [view.result for view in harness.records.views()] == ["cancelled", "cancelled"]
    with pytest.raises(NotNowError):
        harness.rollouts.request(V3)


async def test_a_good_canary_goes_first_and_the_others_follow(harness: Harness) -> None:
    harness.canary = 0.05
    harness.rollouts.request(V2)
    await run_tasks()
    (canary,) = harness.running
    assert (canary.slot, harness.asked) == (WEB, [])
    canary.state = StepState.CANARY
    harness.condition.notify()
    await run_tasks()
    assert harness.view(1).state == "canary"
    async with asyncio.timeout(30):
        await harness.condition.wait_until(lambda: canary not in harness.running)
    assert await harness.end_all() == [MORE, API]
    assert harness.view(1).result == "succeeded"


async def compared(harness: Harness) -> FakeStep:
    """The canary, which is compared with the others from now on."""
    await run_tasks()
    (canary,) = harness.running
    canary.state = StepState.CANARY
    harness.condition.notify()
    await run_tasks()
    assert harness.view(1).state == "canary"
    return canary


async def test_who_joins_has_a_canary_of_its_own(harness: Harness) -> None:
    harness.canary = 600.0
    harness.rollouts.request(V2)
    before = await compared(harness)
    harness.rollouts.request(V2)
    await run_tasks()
    assert before.is_cancelled
    assert harness.view(1).state == "rolling"
    harness.canary = 0.05
    assert (await compared(harness)).slot == WEB
    assert harness.canaries_asked == [WEB, WEB]
    assert [step.slot for step in harness.steps] == [WEB, WEB], "nobody else was touched"


async def test_who_joins_after_the_canary_has_passed_has_one_as_well(harness: Harness) -> None:
    harness.canary = 0.05
    harness.rollouts.request(V2)
    canary = await compared(harness)
    async with asyncio.timeout(30):
        await harness.condition.wait_until(lambda: canary not in harness.running)
    await run_tasks()
    (rest,) = harness.running
    assert rest.slot == MORE
    harness.rollouts.request(V2)
    await run_tasks()
    assert rest.is_cancelled
    harness.canary_is = "3 of 100 failed"
    await compared(harness)
    async with asyncio.timeout(30):
        while harness.view(1).state != "ended":
            await harness.records.changed()
            await harness.end_all()
    assert harness.view(1).result == "rolled_back"
    assert set(harness.runs.values()) == {V1}


async def test_a_canary_that_was_joined_meanwhile_is_not_held_against_who_joined(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.canary = 0.05
    harness.canary_is = "3 of 100 failed"
    harness.rollouts.request(V2)

    samples = count()

    async def sample() -> None:
        # The first one is that of the begin.
        if next(samples) == 1:
            harness.canary = 0.0
            harness.rollouts.request(V2)

    monkeypatch.setattr(harness, "sample", sample)
    canary = await compared(harness)
    async with asyncio.timeout(30):
        await harness.condition.wait_until(lambda: canary not in harness.running)
    assert await harness.end_all() == [WEB, MORE, API]
    assert harness.view(1).result == "succeeded"


@pytest.mark.parametrize(("how", "result"), [("counts", "rolled_back"), ("ends", "aborted")])
async def test_a_canary_that_is_worse_is_taken_back(
    harness: Harness, how: str, result: str
) -> None:
    harness.canary = 600.0 if how == "ends" else 0.05
    harness.rollouts.request(V2)
    await run_tasks()
    (canary,) = harness.running
    canary.state = StepState.CANARY
    harness.condition.notify()
    await run_tasks()
    if how == "ends":
        harness.end(canary, StepState.FAILED, "exited with status 9")
    else:
        harness.canary_is = "3 of 100 failed"
    async with asyncio.timeout(30):
        while harness.view(1).state != "ended":
            await harness.records.changed()
    why = "exited with status 9" if how == "ends" else "the canary: 3 of 100 failed"
    view = harness.view(1)
    step_why = why if how == "ends" else "worse than the others: 3 of 100 failed"
    assert (view.steps[0].state, view.steps[0].reason) == ("failed", step_why)
    assert view.outcome == "the old version serves"
    assert view.result == result
    assert why in view.reason
    assert [step.slot for step in harness.steps] == [WEB], "the others were never touched"


async def test_what_changes_only_settings_says_no_more(harness: Harness) -> None:
    harness.slots = []
    harness.rollouts.request(V2)
    await harness.end_all()
    harness.rollouts.request(V2)
    await harness.end_all()
    assert [view.outcome for view in harness.records.views()] == [
        "the configuration is in force", "nothing was to do",
    ]  # fmt: skip


async def test_a_roll_out_that_fails_is_one_error_and_repeats_no_words_of_the_program(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    harness.running[0].detail = "Traceback\n  12:00:00 INFO roll-out 1 has succeeded\x1b[31m"
    harness.end(harness.running[0], StepState.FAILED, "exited with status 1")
    await harness.end_all()
    (said,) = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert said.startswith("roll-out 1 is aborted: ")
    assert "Traceback" not in caplog.text, "it stands there as the program wrote it"


async def test_only_the_services_that_are_named_are_replaced(harness: Harness) -> None:
    harness.rollouts.request(V1, names=["api"])
    assert await harness.end_all() == [API]


async def test_one_worker_is_replaced_as_a_roll_out_of_its_own(harness: Harness) -> None:
    harness.canary = 600.0
    harness.rollouts.request(V1, slots=[MORE])
    assert await harness.end_all() == [MORE]
    assert harness.view(1).result == "succeeded"
    assert harness.done == [], "nothing is read or applied, and nobody is compared"


async def test_a_reload_does_not_join_what_replaces_a_single_worker(harness: Harness) -> None:
    harness.rollouts.request(V1, slots=[MORE])
    await run_tasks()
    _, joined = harness.rollouts.request(V1)
    assert not joined
    assert await harness.end_all() == [WEB, MORE, API]
    assert [harness.view(number).result for number in (1, 2)] == ["superseded", "succeeded"]
    assert harness.done == ["prepare v1", "apply v1", "finish v1"]


async def test_a_slot_that_a_reload_takes_away_is_not_replaced_any_more(harness: Harness) -> None:
    harness.rollouts.request(V1, slots=[MORE])
    await run_tasks()
    harness.slots = [WEB]
    harness.rollouts.request(V2)
    assert await harness.end_all() == [WEB]
    assert [harness.view(number).result for number in (1, 2)] == ["superseded", "succeeded"]


async def test_it_is_told_when_it_begins_at_each_step_and_when_it_ends(harness: Harness) -> None:
    harness.slots = [WEB]
    harness.rollouts.request(V2)
    await harness.end_all()
    harness.events.close()
    assert [event.text async for event in harness.subscription] == [
        "roll-out 1: begun",
        "roll-out 1: replace starting",
        "roll-out 1: replace done",
        "roll-out 1: succeeded",
    ]


async def test_who_joins_for_a_single_worker_has_no_other_replaced_again(harness: Harness) -> None:
    harness.rollouts.request(V1)
    await run_tasks()
    harness.end(harness.running[0])
    await run_tasks()
    harness.end(harness.running[0])
    _, joined = harness.rollouts.request(V1, slots=[MORE])
    assert joined
    assert await harness.end_all() == [MORE, API]
    assert harness.view(1).result == "succeeded"


async def test_a_roll_out_that_is_joined_ends_although_a_slot_is_removed(harness: Harness) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    harness.running[0].action = "remove"
    harness.end(harness.running[0])
    harness.rollouts.request(V2)
    assert await harness.end_all() == [MORE, API]
    assert harness.view(1).result == "succeeded"


async def test_a_slot_in_which_there_is_nothing_to_do_is_asked_for_once(harness: Harness) -> None:
    harness.idle = {MORE}
    harness.rollouts.request(V2)
    assert await harness.end_all() == [WEB, API]
    assert harness.view(1).result == "succeeded"


async def test_after_a_join_an_abort_brings_back_who_was_replaced_twice(harness: Harness) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    await run_tasks()
    assert harness.running[0].slot == MORE
    harness.end(harness.running[0], StepState.FAILED, "exited with status 1")
    await harness.end_all()
    assert harness.view(1).result == "aborted"
    assert set(harness.runs.values()) == {V1}


async def test_who_cannot_go_back_is_named(harness: Harness) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    await run_tasks()
    harness.end(harness.running[0], StepState.FAILED, "exited with status 1")
    await run_tasks()
    harness.end(harness.running[0], StepState.FAILED, "no room")
    await run_tasks()
    assert harness.view(1).leftover == "web/0 stayed on the new version"


async def test_what_is_on_its_way_back_is_no_goal_and_is_not_superseded(harness: Harness) -> None:
    harness.reverting.clear()
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    await run_tasks()
    harness.end(harness.running[0], StepState.FAILED, "exited with status 1")
    await run_tasks()
    assert harness.rollouts.goal == V1
    await harness.end_all()
    assert harness.rollouts.goal == V1
    harness.rollouts.request(V3)
    assert harness.rollouts.goal == V3
    harness.reverting.set()
    await harness.end_all()
    first, second = harness.view(1), harness.view(2)
    assert (first.result, first.superseded_by) == ("aborted", None)
    assert second.result == "succeeded"


async def superseded_half_way(harness: Harness) -> None:
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    harness.rollouts.request(V3)


async def test_who_supersedes_and_fails_goes_back_to_what_was_before_both(
    harness: Harness,
) -> None:
    await superseded_half_way(harness)
    harness.refused = "the address is taken"
    await harness.end_all()
    assert [view.result for view in harness.records.views()] == ["superseded", "aborted"]
    assert set(harness.runs.values()) == {V1}
    assert harness.done == ["prepare v2", "apply v2", "leave v2", "revert v2"]
    assert harness.view(2).reason == "the address is taken"
    assert not harness.records.config_ok, "the last reload was not applied"


async def test_a_step_that_fails_after_a_superseded_one_brings_back_the_workers_of_both(
    harness: Harness,
) -> None:
    await superseded_half_way(harness)
    await run_tasks()
    harness.end(harness.running[0])
    await run_tasks()
    harness.end(harness.running[0], StepState.FAILED, "exited with status 1")
    await harness.end_all()
    assert [view.result for view in harness.records.views()] == ["superseded", "aborted"]
    assert set(harness.runs.values()) == {V1}
    assert harness.done[-1] == "revert v3"


async def test_what_is_superseded_takes_nothing_away(harness: Harness) -> None:
    await superseded_half_way(harness)
    await harness.end_all()
    assert harness.done == [
        "prepare v2", "apply v2", "leave v2", "prepare v3", "apply v3", "finish v3",
    ]  # fmt: skip


async def test_a_deploy_of_code_that_is_left_half_way_is_done_again_once(
    harness: Harness,
) -> None:
    """The configuration goes back, and files do not: workers of the same plan may differ."""
    await deployed_half_way(harness)
    for _ in range(10):
        await run_tasks()
        if harness.running:
            harness.end(harness.running[0], StepState.FAILED)
    assert [view.result for view in harness.records.views()] == [
        "superseded", "aborted", "aborted",
    ]  # fmt: skip
    text = "roll-out 3 brings all workers to the configuration in force"
    assert harness.view(2).leftover.endswith(text)
    assert "ended half-way" in harness.view(3).changes[0]
    assert harness.done.count("prepare v1") == 1, "what leads elsewhere now was rejected"


async def deployed_half_way(harness: Harness) -> None:
    """Another configuration supersedes a deploy, which has replaced one worker. It will fail."""
    harness.rollouts.request(V1)
    await run_tasks()
    harness.end(harness.running[0])
    harness.ages = {WEB: 0.0}
    harness.rollouts.request(V3)


async def fail_all(harness: Harness) -> None:
    await run_tasks()
    harness.end(harness.running[0], StepState.FAILED)
    await run_tasks()


async def test_a_release_that_was_left_again_is_not_begun_again(harness: Harness) -> None:
    """It lies in another directory, so going back to the one before is the whole way."""
    harness.moved = ["web"]
    await deployed_half_way(harness)
    await fail_all(harness)
    assert [view.result for view in harness.records.views()] == ["superseded", "aborted"]
    assert "brings all workers" not in harness.view(2).leftover


async def test_a_deploy_that_had_replaced_nobody_is_not_begun_again(harness: Harness) -> None:
    await deployed_half_way(harness)
    harness.ages = {}
    await fail_all(harness)
    assert [view.result for view in harness.records.views()] == ["superseded", "aborted"]


async def test_what_begins_by_itself_leaves_to_who_supersedes_it_what_it_has_not_done(
    harness: Harness,
) -> None:
    await deployed_half_way(harness)
    await fail_all(harness)
    await run_tasks()
    harness.rollouts.request(V3)
    await fail_all(harness)
    results = [view.result for view in harness.records.views()]
    assert results[:4] == ["superseded", "aborted", "superseded", "aborted"]
    assert "roll-out 5 brings all workers" in harness.view(4).leftover
    assert await harness.end_all() == [WEB, MORE]
    assert harness.view(5).result == "succeeded"


async def test_who_aborts_and_has_superseded_nobody_is_followed_by_nobody(harness: Harness) -> None:
    harness.refused = "the address is taken"
    harness.rollouts.request(V2)
    await run_tasks()
    assert [view.result for view in harness.records.views()] == ["refused"]


async def test_it_has_not_succeeded_before_all_that_it_replaced_have_answered(
    harness: Harness,
) -> None:
    harness.replaced.serve = False
    harness.rollouts.request(V2)
    await harness.end_all()
    assert harness.view(1).state == "rolling"
    harness.replaced.serve = True
    harness.condition.notify()
    await run_tasks()
    assert harness.view(1).result == "succeeded"
    assert harness.replaced.times_asked == 1
    assert harness.replaced.to_do is None


@pytest.mark.parametrize("when", ["while others roll", "at the end"])
async def test_one_that_was_replaced_and_falls_for_good_aborts_it(
    harness: Harness, when: str
) -> None:
    harness.replaced.serve = False
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    await run_tasks()
    if when == "at the end":
        while harness.running:
            harness.end(harness.running[0])
            await run_tasks()
    harness.replaced.failed = Failure("web/0 does not serve: exited", "its last words")
    harness.condition.notify()
    await harness.end_all()
    view = harness.view(1)
    assert (view.result, view.reason) == ("aborted", "web/0 does not serve: exited")
    assert view.detail == "its last words"
    assert set(harness.runs.values()) == {V1}


def without_api(name: str) -> Any:
    version = cast("Any", Version(name))
    version.services = V1.services[:1]
    return version


async def removing(harness: Harness) -> None:
    """A roll-out has removed a service, which has a client for a long time."""
    harness.slots = [WEB]
    harness.leaving_has = "a WebSocket"
    harness.rollouts.request(without_api("v2"))
    await harness.end_all()
    assert harness.view(1).state == "finishing"


async def test_a_removed_service_ends_before_its_roll_out_if_nobody_waits(
    harness: Harness,
) -> None:
    await removing(harness)
    harness.leaving_has = ""
    harness.condition.notify()
    await run_tasks()
    assert harness.view(1).result == "succeeded"
    assert harness.done[-1] == "forget"


async def test_a_removed_service_that_has_not_ended_keeps_no_later_reload_waiting(
    harness: Harness,
) -> None:
    await removing(harness)
    harness.rollouts.request(without_api("v3"))
    await harness.end_all()
    assert [view.result for view in harness.records.views()] == ["succeeded"] * 2
    assert "forget" not in harness.done
    harness.leaving_has = ""
    harness.condition.notify()
    await run_tasks()
    assert harness.done[-1] == "forget"
    harness.rollouts.request(without_api("v4"))
    await harness.end_all()
    assert harness.view(3).result == "succeeded"


async def test_a_service_that_comes_back_waits_for_its_end_and_is_told_why(
    harness: Harness,
) -> None:
    await removing(harness)
    harness.rollouts.request(V3)
    await harness.end_all()
    view = harness.view(2)
    assert harness.view(1).result == "succeeded"
    assert view.state == "waiting"
    assert view.reason == "api was removed, and has to finish what it has first"
    # Who does not have it need not wait, also for the one that does.
    harness.rollouts.request(without_api("v4"))
    await harness.end_all()
    assert (harness.view(2).result, harness.view(3).result) == ("superseded", "succeeded")
    harness.rollouts.request(V3)
    await run_tasks()
    assert harness.view(4).state == "waiting"
    harness.leaving_has = ""
    harness.condition.notify()
    await harness.end_all()
    assert harness.view(4).result == "succeeded"
    assert harness.view(4).reason == ""


async def test_who_joins_while_all_are_asked_has_more_replaced(harness: Harness) -> None:
    harness.replaced.serve = False
    harness.rollouts.request(V1, names=["api"])
    assert await harness.end_all() == [API]
    assert harness.view(1).state == "rolling"
    await asyncio.sleep(0.001)
    _, joined = harness.rollouts.request(V1, slots=[MORE])
    assert joined
    harness.replaced.serve = True
    harness.condition.notify()
    assert await harness.end_all() == [MORE]
    assert harness.view(1).result == "succeeded"


async def test_who_joins_while_all_are_asked_ends_the_question(harness: Harness) -> None:
    harness.replaced.serve = False
    harness.rollouts.request(V2)
    await harness.end_all()
    assert harness.replaced.is_asking
    harness.rollouts.request(V2)
    await run_tasks()
    assert harness.running
    assert not harness.replaced.is_asking


async def replaced_by_a_bad_version(harness: Harness) -> tuple[ReplacedWorkers, Any]:
    """Another version has replaced web/0, and does not stay healthy; then somebody joins."""
    child = cast("Any", SimpleNamespace())
    child.plan = SimpleNamespace(service="web", slot=0, start_s=30.0)
    child.name, child.state = "web/0", State.UP
    child.starts = SimpleNamespace(
        why_ended="exited with status 3", last_output=SimpleNamespace(text=lambda: "")
    )
    world = SimpleNamespace(
        is_up=lambda _: False, has_fallen=lambda _: True, why_not_up=lambda _: "status 503",
        ejection=lambda _: None,
        current={WEB: child}, is_current=lambda _: True,
    )  # fmt: skip
    replaced = ReplacedWorkers(
        asyncio.get_running_loop(), cast("Any", world), cast("Any", world),
        Falls(cast("Any", world), lambda _: ()), harness.condition, lambda: None, lambda *_: True,
    )  # fmt: skip
    harness.replaced = cast("Any", replaced)
    harness.rollouts.request(V2)
    await run_tasks()
    harness.end(harness.running[0])
    replaced.add(child, asyncio.get_running_loop().time())
    assert not replaced.all_serve()
    harness.rollouts.request(V2)
    assert replaced.all_serve()
    # What had begun is taken back, and web/0 is asked for once more.
    await run_tasks()
    (step,) = harness.running
    assert step.slot == WEB
    return replaced, child


async def test_what_was_wrong_before_somebody_joined_holds_nobody_back(harness: Harness) -> None:
    replaced, child = await replaced_by_a_bad_version(harness)
    assert replaced.all_serve()
    # Also while its successor is looked at.
    child.state = State.CRASH_LOOP
    replaced.changed(child)
    assert replaced.failure() is None
    assert await harness.end_all() == [WEB, MORE, API]
    assert harness.view(1).result == "succeeded"
    assert harness.view(1).reason == ""
