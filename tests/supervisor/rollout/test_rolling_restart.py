"""A replacement loses no request, and a slot that goes meanwhile does not block the others."""

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
    """A fake child that records its calls. The test says when it is ready or gone."""

    def __init__(self, stage: "Stage", service: str, state: State) -> None:
        self.plan = SimpleNamespace(service=service, slot=0)
        self.name = f"{service}/0"
        self.state = state
        self.calls: list[str] = []
        self._stage = stage

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
        self.set_state(State.DOWN if self.state is State.DOWN else State.STOPPING)

    def set_state(self, state: State) -> None:
        self.state = state
        self._stage.restart.state_changed(cast("Child", self))
        self._stage.condition.notify()


class Stage:
    def __init__(self, *, beside: bool = True) -> None:
        self.slots, self.condition = Slots(), Condition()
        self.successors: list[Worker] = []
        self.up: set[Any] = {WEB, API}
        self.rotation_calls: list[str] = []
        self.beside = beside
        self.restart = RollingRestart(
            self.slots, cast("Any", self), self.condition, cast("Any", self._make_successor)
        )
        self.workers = [Worker(self, name, State.UP) for name in ("web", "api")]
        for worker in self.workers:
            self.slots.add(cast("Child", worker))

    def _make_successor(self, child: Child) -> tuple[Worker, bool]:
        self.successors.append(Worker(self, child.plan.service, State.DOWN))
        return self.successors[-1], self.beside

    # The rotation.

    def drain(self, child: Child, on_drained: Callable[[], None]) -> None:
        self.rotation_calls.append(f"drain {child.name}")
        on_drained()

    def join(self, child: Child) -> None:
        self.rotation_calls.append(f"join {child.name}")

    def leave(self, child: Child) -> None:
        self.rotation_calls.append(f"leave {child.name}")

    def is_up(self, slot: Any) -> bool:
        return slot in self.up


async def run_tasks() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_next_worker_waits_until_the_one_before_is_replaced() -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as tasks:
        stage.restart.roll(tasks, (WEB, API))
        await run_tasks()
        assert [worker.calls for worker in stage.successors] == [["start"]]
        assert stage.workers[0].calls == []
        stage.successors[0].set_state(State.UP)
        stage.restart.successor_ready(cast("Child", stage.successors[0]))
        await run_tasks()
        assert stage.workers[0].calls == ["stop"]
        assert [worker.name for worker in stage.successors] == ["web/0", "api/0"]
        stage.restart.cancel()


async def test_a_slot_that_is_removed_while_it_is_replaced_does_not_block_the_others() -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as tasks:
        stage.restart.roll(tasks, (WEB, API))
        await run_tasks()
        for child in stage.slots.remove(WEB):
            child.stop()
        await run_tasks()
        assert [worker.name for worker in stage.successors] == ["web/0", "api/0"]
        for worker in (stage.workers[0], stage.successors[0]):
            worker.set_state(State.DOWN)
        stage.slots.remove(API)
        stage.condition.notify()
    assert WEB not in stage.slots.current
    assert not stage.slots.is_draining(cast("Child", stage.workers[0]))


async def test_a_slot_that_was_removed_before_its_turn_gets_no_successor() -> None:
    stage = Stage()
    stage.slots.remove(WEB)
    assert await stage.restart.replace(WEB)
    assert stage.successors == []


async def test_a_waiting_successor_does_not_start_in_a_removed_slot() -> None:
    stage = Stage(beside=False)
    first = cast("Child", stage.workers[0])
    stage.restart.retire(first, "retire", "web/0 retires")
    assert stage.successors[0].calls == []
    for child in stage.slots.remove(WEB):
        child.stop()
    stage.workers[0].set_state(State.DOWN)
    assert stage.successors[0].calls == ["stop"]
    assert [child.name for child in stage.slots.workers()] == ["api/0"]


async def test_a_waiting_successor_starts_when_the_old_process_has_ended() -> None:
    stage = Stage(beside=False)
    stage.restart.retire(cast("Child", stage.workers[0]), "retire", "web/0 retires")
    assert (stage.workers[0].calls, stage.successors[0].calls) == (["stop"], [])
    stage.workers[0].set_state(State.DOWN)
    assert stage.successors[0].calls == ["start for retire"]
