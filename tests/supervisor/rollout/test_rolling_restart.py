"""Workers are replaced one by one, the old one serves until its successor is ready, and a slot that
is removed does not block the others.

Covers `rollout/condition`.
"""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.replacement_queue import FIRST_PAUSE_S
from penstock_supervisor.rollout.rolling_restart import IN_ROTATION_S, RollingRestart

WEB, MORE, API = ("web", 0), ("web", 1), ("api", 0)
START_S = 30.0


class Worker:
    """A fake child that records its calls. The test decides when it is ready or has ended."""

    def __init__(self, harness: "Harness", slot: tuple[str, int], state: State) -> None:
        service, number = slot
        self.plan = SimpleNamespace(service=service, slot=number, start_s=START_S, stop_s=10.0)
        self.name = f"{service}/{number}"
        self.state = state
        self.postponed = False
        self.calls: list[str] = []
        self._harness = harness

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
        no_process = self.state in (State.DOWN, State.BACKOFF)
        self.set_state(State.DOWN if no_process else State.STOPPING)

    def set_state(self, state: State) -> None:
        self.state = state
        self._harness.restart.state_changed(cast("Child", self))
        self._harness.condition.notify()

    def becomes_ready(self) -> None:
        """As `child_events` says: first that it has joined, then its state."""
        self.state = State.UP
        self._harness.restart.successor_ready(cast("Child", self))
        self.set_state(State.UP)


class Clock:
    """The loop, as far as it is used: the time is the test's."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)


class Harness:
    def __init__(self, *, beside: bool = True) -> None:
        self.slots, self.condition, self.clock = Slots(), Condition(), Clock()
        self.successors: list[Worker] = []
        self.up: set[Any] = {WEB, MORE, API}
        self.beside = beside
        self.restart = RollingRestart(
            cast("Any", self.clock),
            self.slots,
            cast("Any", self),
            self.condition,
            cast("Any", self._make_successor),
        )
        self.workers = [Worker(self, slot, State.UP) for slot in (WEB, MORE, API)]
        for worker in self.workers:
            self.slots.add(cast("Child", worker))

    def request(self, worker: Worker, reason: Any = "retire") -> None:
        why = f"{worker.name} has to go"
        self.restart.request(cast("Child", worker), reason, why)

    def names(self) -> list[str]:
        return [worker.name for worker in self.successors]

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.restart.advance()
        await run_tasks()

    def _make_successor(self, child: Child) -> tuple[Worker, bool]:
        slot = (child.plan.service, child.plan.slot)
        self.successors.append(Worker(self, slot, State.DOWN))
        return self.successors[-1], self.beside

    # The rotation.

    def drain(self, child: Child, on_drained: Callable[[], None]) -> None:
        on_drained()

    def join(self, child: Child) -> None:
        pass

    def leave(self, child: Child) -> None:
        pass

    def is_up(self, slot: Any) -> bool:
        return slot in self.up


async def run_tasks() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_a_worker_serves_until_its_successor_is_ready() -> None:
    harness = Harness()
    old = harness.workers[0]
    harness.request(old)
    await run_tasks()
    (new,) = harness.successors
    assert (old.calls, new.calls) == ([], ["start for retire"])
    new.becomes_ready()
    assert old.calls == ["stop"]
    assert harness.slots.current[WEB] is cast("Child", new)


async def test_of_a_service_one_is_replaced_at_a_time_however_many_ask() -> None:
    harness = Harness()
    for _ in range(3):
        for worker in harness.workers:
            harness.request(worker)
    await run_tasks()
    assert harness.names() == ["web/0", "api/0"]
    # The next one waits until the new one is picked, and not only ready.
    harness.up.discard(WEB)
    harness.successors[0].becomes_ready()
    await run_tasks()
    assert harness.names() == ["web/0", "api/0"]
    harness.up.add(WEB)
    harness.restart.wake()
    await run_tasks()
    assert harness.names() == ["web/0", "api/0", "web/1"]


async def test_one_that_hangs_comes_before_one_that_retires() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    harness.request(harness.workers[1], "liveness")
    await run_tasks()
    assert harness.names() == ["web/1"]
    assert harness.successors[0].calls == ["start for liveness"]


async def test_a_successor_that_ends_before_it_is_ready_leaves_the_old_worker_as_it_is() -> None:
    harness = Harness()
    old = harness.workers[0]
    harness.request(old)
    await run_tasks()
    harness.successors[0].set_state(State.BACKOFF)
    await run_tasks()
    assert harness.successors[0].calls == ["start for retire", "stop"]
    assert (old.calls, harness.slots.current[WEB]) == ([], cast("Child", old))
    # And the next try is not at once.
    await harness.pass_time(FIRST_PAUSE_S - 1)
    assert harness.names() == ["web/0"]
    await harness.pass_time(1)
    assert harness.names() == ["web/0", "web/0"]


async def test_a_successor_that_the_supervisor_could_not_start_yet_is_waited_for() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    await run_tasks()
    harness.successors[0].postponed = True
    harness.successors[0].set_state(State.BACKOFF)
    await run_tasks()
    assert harness.successors[0].calls == ["start for retire"]
    await harness.pass_time(START_S + IN_ROTATION_S)
    assert harness.successors[0].calls == ["start for retire", "stop"]
    assert harness.slots.current[WEB] is cast("Child", harness.workers[0])


async def test_a_replacement_that_is_never_picked_does_not_block_the_service_for_ever() -> None:
    harness = Harness()
    harness.up.discard(WEB)
    harness.request(harness.workers[0])
    harness.request(harness.workers[1])
    await run_tasks()
    harness.successors[0].becomes_ready()
    await harness.pass_time(IN_ROTATION_S)
    assert harness.names() == ["web/0"]
    await harness.pass_time(FIRST_PAUSE_S)
    assert harness.names() == ["web/0", "web/1"]


async def test_a_worker_that_ends_by_itself_while_it_waits_is_not_replaced() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    harness.request(harness.workers[1])
    await run_tasks()
    harness.workers[1].set_state(State.BACKOFF)
    harness.workers[1].set_state(State.UP)
    harness.successors[0].becomes_ready()
    await run_tasks()
    assert harness.names() == ["web/0"]


async def test_a_worker_that_is_well_again_is_not_replaced() -> None:
    harness = Harness()
    harness.request(harness.workers[0])
    harness.request(harness.workers[1], "unhealthy")
    await run_tasks()
    harness.request(harness.workers[0], "unhealthy")
    harness.restart.withdraw(cast("Child", harness.workers[0]), "unhealthy")
    harness.successors[0].becomes_ready()
    await run_tasks()
    assert harness.names() == ["web/1", "web/0"], "the other reason stays"


async def test_the_next_worker_waits_until_the_one_before_is_replaced() -> None:
    harness = Harness()
    async with asyncio.TaskGroup() as tasks:
        harness.restart.roll(tasks, (WEB, API))
        await run_tasks()
        assert [worker.calls for worker in harness.successors] == [["start"]]
        assert harness.workers[0].calls == []
        harness.successors[0].becomes_ready()
        await run_tasks()
        assert harness.workers[0].calls == ["stop"]
        assert harness.names() == ["web/0", "api/0"]
        harness.restart.cancel()


async def test_a_roll_out_and_a_retiring_worker_never_replace_two_of_a_service() -> None:
    harness = Harness()
    async with asyncio.TaskGroup() as tasks:
        harness.request(harness.workers[1])
        await run_tasks()
        harness.restart.roll(tasks, (WEB, MORE))
        await run_tasks()
        assert harness.names() == ["web/1"]
        harness.successors[0].becomes_ready()
        await run_tasks()
        assert harness.names() == ["web/1", "web/0"]
        harness.restart.cancel()


async def test_one_worker_that_is_replaced_is_not_all_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    harness = Harness()
    async with asyncio.TaskGroup() as tasks:
        harness.restart.roll(tasks, (WEB,))
        await run_tasks()
        harness.successors[0].becomes_ready()
    assert "web/0 is replaced" in caplog.messages
    assert not [text for text in caplog.messages if "workers" in text]


async def test_a_roll_out_ends_when_a_successor_fails(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    async with asyncio.TaskGroup() as tasks:
        harness.restart.roll(tasks, (WEB, MORE))
        await run_tasks()
        harness.successors[0].set_state(State.BACKOFF)
    assert harness.names() == ["web/0"]
    assert caplog.messages[-2:] == [
        "web/0 could not be replaced; the old process stays",
        "the other workers are left as they are",
    ]


async def test_a_slot_that_is_removed_while_it_is_replaced_does_not_block_the_others() -> None:
    harness = Harness()
    async with asyncio.TaskGroup() as tasks:
        harness.restart.roll(tasks, (WEB, API))
        await run_tasks()
        for child in harness.slots.remove(WEB):
            child.stop()
        await run_tasks()
        assert harness.names() == ["web/0", "api/0"]
        for worker in (harness.workers[0], harness.successors[0]):
            worker.set_state(State.DOWN)
        harness.slots.remove(API)
        harness.restart.wake()
        await run_tasks()
    assert WEB not in harness.slots.current
    assert not harness.slots.is_draining(cast("Child", harness.workers[0]))


async def test_a_slot_that_was_removed_before_its_turn_gets_no_successor() -> None:
    harness = Harness()
    harness.slots.remove(WEB)
    assert await harness.restart.replace(WEB)
    assert harness.successors == []


async def test_a_worker_that_does_not_run_is_started_by_a_roll_out() -> None:
    harness = Harness()
    harness.up.discard(WEB)
    harness.workers[0].state = State.GIVEN_UP
    async with asyncio.TaskGroup() as tasks:
        replacing = tasks.create_task(harness.restart.replace(WEB))
        await run_tasks()
        assert harness.workers[0].calls == ["start"]
        harness.up.add(WEB)
        harness.workers[0].set_state(State.UP)
    assert replacing.result()
    assert harness.successors == []


async def test_without_a_spare_port_the_successor_starts_when_the_old_process_has_ended() -> None:
    harness = Harness(beside=False)
    harness.request(harness.workers[0])
    await run_tasks()
    assert (harness.workers[0].calls, harness.successors[0].calls) == (["stop"], [])
    # However long it takes, and whoever asks for the slot meanwhile.
    async with asyncio.TaskGroup() as tasks:
        replacing = tasks.create_task(harness.restart.replace(WEB))
        await harness.pass_time(3600.0)
        assert harness.successors[0].calls == []
        harness.workers[0].set_state(State.DOWN)
        await run_tasks()
        assert harness.successors[0].calls == ["start for retire"]
        harness.successors[0].set_state(State.UP)
    assert replacing.result()
    assert harness.names() == ["web/0"]


async def test_a_waiting_successor_does_not_start_in_a_removed_slot() -> None:
    harness = Harness(beside=False)
    harness.request(harness.workers[0])
    await run_tasks()
    for child in harness.slots.remove(WEB):
        child.stop()
    harness.workers[0].set_state(State.DOWN)
    assert harness.successors[0].calls == ["stop"]
    assert [child.name for child in harness.slots.workers()] == ["web/1", "api/0"]
