"""Workers are replaced one by one, and a slot that is removed does not block the others.

Covers `rollout/condition`.
"""

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
    """A fake child that records its calls. The test decides when it is ready or has ended."""

    def __init__(self, harness: "Harness", service: str, state: State) -> None:
        self.plan = SimpleNamespace(service=service, slot=0)
        self.name = f"{service}/0"
        self.state = state
        self.calls: list[str] = []
        self._stage = harness

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


class Harness:
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
    harness = Harness()
    async with asyncio.TaskGroup() as tasks:
        harness.restart.roll(tasks, (WEB, API))
        await run_tasks()
        assert [worker.calls for worker in harness.successors] == [["start"]]
        assert harness.workers[0].calls == []
        harness.successors[0].set_state(State.UP)
        harness.restart.successor_ready(cast("Child", harness.successors[0]))
        await run_tasks()
        assert harness.workers[0].calls == ["stop"]
        assert [worker.name for worker in harness.successors] == ["web/0", "api/0"]
        harness.restart.cancel()


async def test_a_slot_that_is_removed_while_it_is_replaced_does_not_block_the_others() -> None:
    harness = Harness()
    async with asyncio.TaskGroup() as tasks:
        harness.restart.roll(tasks, (WEB, API))
        await run_tasks()
        for child in harness.slots.remove(WEB):
            child.stop()
        await run_tasks()
        assert [worker.name for worker in harness.successors] == ["web/0", "api/0"]
        for worker in (harness.workers[0], harness.successors[0]):
            worker.set_state(State.DOWN)
        harness.slots.remove(API)
        harness.condition.notify()
    assert WEB not in harness.slots.current
    assert not harness.slots.is_draining(cast("Child", harness.workers[0]))


async def test_a_slot_that_was_removed_before_its_turn_gets_no_successor() -> None:
    harness = Harness()
    harness.slots.remove(WEB)
    assert await harness.restart.replace(WEB)
    assert harness.successors == []


async def test_a_waiting_successor_does_not_start_in_a_removed_slot() -> None:
    harness = Harness(beside=False)
    first = cast("Child", harness.workers[0])
    harness.restart.retire(first, "retire", "web/0 retires")
    assert harness.successors[0].calls == []
    for child in harness.slots.remove(WEB):
        child.stop()
    harness.workers[0].set_state(State.DOWN)
    assert harness.successors[0].calls == ["stop"]
    assert [child.name for child in harness.slots.workers()] == ["api/0"]


async def test_a_waiting_successor_starts_when_the_old_process_has_ended() -> None:
    harness = Harness(beside=False)
    harness.restart.retire(cast("Child", harness.workers[0]), "retire", "web/0 retires")
    assert (harness.workers[0].calls, harness.successors[0].calls) == (["stop"], [])
    harness.workers[0].set_state(State.DOWN)
    assert harness.successors[0].calls == ["start for retire"]
