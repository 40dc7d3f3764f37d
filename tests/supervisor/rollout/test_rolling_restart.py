"""A replacement loses nobody, and a slot that goes meanwhile holds up nobody."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.rolling_restart import RollingRestart

WEB, API = ("web", 0), ("api", 0)


class Worker:
    """A child that only notes what is asked of it; `stage` says when it is ready or gone."""

    def __init__(self, stage: "Stage", service: str, state: State) -> None:
        self.plan = SimpleNamespace(service=service, slot=0)
        self.name = f"{service}/0"
        self.state = state
        self.asked: list[str] = []
        self._stage = stage

    @property
    def at_rest(self) -> bool:
        return self.state in (State.DOWN, State.GIVEN_UP)

    def start(self) -> None:
        self.asked.append("start")
        self.state = State.STARTING

    def start_as_replacement(self, reason: str) -> None:
        self.asked.append(f"start for {reason}")
        self.state = State.STARTING

    def stop(self) -> None:
        self.asked.append("stop")
        self.becomes(State.DOWN if self.state is State.DOWN else State.STOPPING)

    def becomes(self, state: State) -> None:
        self.state = state
        self._stage.restart.state_changed(cast("Child", self))
        self._stage.condition.notify()


class Stage:
    def __init__(self, *, beside: bool = True) -> None:
        self.slots, self.condition = Slots(), Condition()
        self.made: list[Worker] = []
        self.up: set[Any] = {WEB, API}
        self.noted: list[str] = []
        self.beside = beside
        self.restart = RollingRestart(
            self.slots, cast("Any", self), self.condition, cast("Any", self._make)
        )
        self.workers = [Worker(self, name, State.UP) for name in ("web", "api")]
        for worker in self.workers:
            self.slots.add(cast("Child", worker))

    def _make(self, child: Child) -> tuple[Worker, bool]:
        self.made.append(Worker(self, child.plan.service, State.DOWN))
        return self.made[-1], self.beside

    # What the rotation is asked.

    def drain(self, child: Child, then: Callable[[], None]) -> None:
        self.noted.append(f"drain {child.name}")
        then()

    def join(self, child: Child) -> None:
        self.noted.append(f"join {child.name}")

    def leave(self, child: Child) -> None:
        self.noted.append(f"leave {child.name}")

    def is_up(self, slot: Any) -> bool:
        return slot in self.up


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_next_worker_waits_until_the_one_before_is_replaced() -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as tasks:
        stage.restart.roll(tasks, (WEB, API))
        await turns()
        assert [worker.asked for worker in stage.made] == [["start"]]
        assert stage.workers[0].asked == []
        stage.made[0].becomes(State.UP)
        stage.restart.successor_ready(cast("Child", stage.made[0]))
        await turns()
        assert stage.workers[0].asked == ["stop"]
        assert [worker.name for worker in stage.made] == ["web/0", "api/0"]
        stage.restart.cancel()


async def test_a_slot_that_goes_while_it_is_replaced_holds_up_nobody() -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as tasks:
        stage.restart.roll(tasks, (WEB, API))
        await turns()
        for child in stage.slots.remove(WEB):
            child.stop()
        await turns()
        assert [worker.name for worker in stage.made] == ["web/0", "api/0"]
        for worker in (stage.workers[0], stage.made[0]):
            worker.becomes(State.DOWN)
        stage.slots.remove(API)
        stage.condition.notify()
    assert WEB not in stage.slots.current
    assert not stage.slots.is_draining(cast("Child", stage.workers[0]))


async def test_a_slot_that_went_before_its_turn_needs_nobody() -> None:
    stage = Stage()
    stage.slots.remove(WEB)
    assert await stage.restart.replace(WEB)
    assert stage.made == []


async def test_who_waits_for_an_end_does_not_start_in_a_slot_that_is_gone() -> None:
    stage = Stage(beside=False)
    first = cast("Child", stage.workers[0])
    stage.restart.retire(first, "retire", "web/0 retires")
    assert stage.made[0].asked == []
    for child in stage.slots.remove(WEB):
        child.stop()
    stage.workers[0].becomes(State.DOWN)
    assert stage.made[0].asked == ["stop"]
    assert [child.name for child in stage.slots.workers()] == ["api/0"]


async def test_who_waits_for_an_end_starts_after_it() -> None:
    stage = Stage(beside=False)
    stage.restart.retire(cast("Child", stage.workers[0]), "retire", "web/0 retires")
    assert (stage.workers[0].asked, stage.made[0].asked) == (["stop"], [])
    stage.workers[0].becomes(State.DOWN)
    assert stage.made[0].asked == ["start for retire"]
