"""Every child is polled once, none delays the others, and a slot's counters never go down.

Covers `children/slot_history`.
"""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_proxy.messages import STATS
from penstock_proxy.net.address import Address
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.events import Event, Events
from penstock_supervisor.children.lifecycle import ProcessState, State, shown
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.slot_history import SlotHistory, StartRecord
from penstock_supervisor.config.model import Restart
from penstock_supervisor.observability.stats_poll import StatsPoll
from penstock_supervisor.snapshot import Part, ProcessView

WAIT_S = 30.0


def plan(slot: int) -> ChildPlan:
    return ChildPlan(
        role="worker", service="web", slot=slot, scheme="shared", argv=("x",), environment={},
        runs_our_code=True, address=Address("127.0.0.1", 9000 + slot), start_s=1, stop_s=1,
        restart=Restart(),
    )  # fmt: skip


class Worker:
    """As much of a child as is polled; `counted` is what its process answers, if it does."""

    def __init__(self, stats_poll: StatsPoll, slot: int = 0, after: "Worker | None" = None) -> None:
        self.plan = plan(slot)
        self.name, self.number = self.plan.name, slot + 5
        self.running = SimpleNamespace(ready_at=1.0)
        self.history: SlotHistory = after.history if after else SlotHistory()
        self.starts = StartRecord(self.plan)
        self.stats: dict[str, Any] = {}
        self.state = State.UP
        self.part: Part = "current"
        self.next_start_s: float | None = None
        self.age_s: float | None = 2.0
        self.pid: int | None = 1
        self.has_channel = self.speaks_protocol = True
        self.asked: list[int] = []
        self.counted: dict[str, Any] | None = None
        self._stats_poll = stats_poll

    @property
    def shown_state(self) -> ProcessState:
        return shown(self.state, replaced=self.part == "draining")

    def seconds_in_state(self) -> float:
        return 1.0

    def send(self, message: Any) -> bool:
        assert message["cmd"] == STATS
        self.asked.append(message["seq"])
        if self.counted is not None:
            asyncio.get_running_loop().call_soon(self.answer, message["seq"])
        return True

    def answer(self, number: object) -> None:
        answer = {"cmd": STATS, "seq": number, "metrics": {"series": self.counted}}
        self._stats_poll.answered(as_child(self), answer)


def as_child(worker: Worker) -> Child:
    return cast("Child", worker)


def series(connections: int, active: int = 1) -> dict[str, Any]:
    return {
        "penstock_connections_total": {"": connections},
        "penstock_connections_active": {"": active},
        "penstock_requests_total": {"0 GET 200": 10 * connections},
    }


async def take(
    stats_poll: StatsPoll, *workers: Worker, leaving: tuple[Worker, ...] = ()
) -> list[Any]:
    slots = [as_child(worker) for worker in workers]
    children = [*slots, *map(as_child, leaving)]
    async with asyncio.timeout(WAIT_S):
        return list(await stats_poll.take(lambda: slots, lambda: children, 0.2))


@pytest.fixture
def stats_poll() -> StatsPoll:
    return StatsPoll(Events())


async def test_answers_are_fresh_and_belong_to_their_slot(stats_poll: StatsPoll) -> None:
    workers = [Worker(stats_poll, slot) for slot in (0, 1)]
    for number, worker in enumerate(workers):
        worker.counted = series(number + 1)
    views = await take(stats_poll, *workers)
    assert [(view.slot, view.fresh) for view in views] == [(0, True), (1, True)]
    assert [view.stats["metrics"]["series"] for view in views] == [series(1), series(2)]


async def test_a_child_that_does_not_answer_costs_the_deadline_and_its_last_answer_is_shown(
    stats_poll: StatsPoll,
) -> None:
    worker, silent = Worker(stats_poll, 0), Worker(stats_poll, 1)
    worker.counted = silent.counted = series(1)
    await take(stats_poll, worker, silent)
    silent.counted = None
    views = await take(stats_poll, worker, silent)
    assert [view.fresh for view in views] == [True, False]
    assert views[1].stats["metrics"]["series"] == series(1)


async def test_a_late_answer_is_still_the_newest(stats_poll: StatsPoll) -> None:
    worker = Worker(stats_poll)
    await take(stats_poll, worker)
    worker.counted = series(5)
    worker.answer(worker.asked[0])
    assert worker.stats["metrics"]["series"] == series(5)


@pytest.mark.parametrize("number", [None, 10**9, "1", [1]])
async def test_an_answer_with_an_unknown_number_ends_no_poll(
    stats_poll: StatsPoll, number: object
) -> None:
    worker = Worker(stats_poll)
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(take(stats_poll, worker))
        await asyncio.sleep(0)
        worker.counted = series(1)
        worker.answer(number)
    assert not taking.result()[0].fresh


@pytest.mark.parametrize(
    "changes",
    [{"speaks_protocol": False}, {"has_channel": False}, {"state": State.STARTING}],
    ids=["never spoke", "no channel", "starting"],
)
async def test_a_child_that_cannot_answer_is_not_asked(
    stats_poll: StatsPoll, changes: dict[str, Any]
) -> None:
    worker = Worker(stats_poll)
    for name, value in changes.items():
        setattr(worker, name, value)
    (view,) = await take(stats_poll, worker)
    assert worker.asked == []
    assert view.speaks_protocol is worker.speaks_protocol


async def test_a_poll_does_not_wait_for_a_child_that_is_gone(stats_poll: StatsPoll) -> None:
    worker = Worker(stats_poll)
    async with asyncio.TaskGroup() as tasks:
        workers = [as_child(worker)]
        taking = tasks.create_task(stats_poll.take(lambda: workers, lambda: workers, 1e6))
        await asyncio.sleep(0)
        worker.has_channel = False
        stats_poll.state_changed(as_child(worker))
    assert not taking.result()[0].fresh


async def test_a_worker_that_is_replaced_during_a_poll_is_shown_as_it_is_afterwards(
    stats_poll: StatsPoll,
) -> None:
    hung = Worker(stats_poll)
    successor = Worker(stats_poll, after=hung)
    hung.pid, successor.pid = 7, 8
    current, children = [as_child(hung)], [as_child(hung)]
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(stats_poll.take(lambda: current, lambda: children, 0.2))
        await asyncio.sleep(0)
        hung.part = "draining"
        current, children = [as_child(successor)], [as_child(successor), as_child(hung)]
    (view,) = taking.result()
    assert (view.pid, view.state) == (8, "ready")
    assert [(one.pid, one.part) for one in view.processes] == [(8, "current"), (7, "draining")]


async def test_two_polls_may_be_in_progress_at_once(stats_poll: StatsPoll) -> None:
    worker = Worker(stats_poll)
    worker.counted = series(1)
    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(take(stats_poll, worker)) for _ in range(2)]
    assert [task.result()[0].fresh for task in both] == [True, True]
    assert len(set(worker.asked)) == 2


async def test_counters_of_ended_processes_are_carried_over_and_gauges_are_not(
    stats_poll: StatsPoll,
) -> None:
    worker = Worker(stats_poll)
    for connections in (3, 4):
        worker.counted = series(connections)
        await take(stats_poll, worker)
        stats_poll.carry_over(as_child(worker))
    assert worker.stats == {}
    (view,) = await take(stats_poll, worker)
    assert view.carryover == {
        "penstock_connections_total": {"": 7},
        "penstock_requests_total": {"0 GET 200": 70},
    }


async def test_a_process_is_carried_over_once(stats_poll: StatsPoll) -> None:
    worker = Worker(stats_poll)
    worker.counted = series(3)
    await take(stats_poll, worker)
    for _ in range(2):
        stats_poll.carry_over(as_child(worker))
    assert worker.history.carryover["penstock_connections_total"] == {"": 3}


async def test_the_open_connections_of_a_draining_process_count_for_its_slot(
    stats_poll: StatsPoll,
) -> None:
    draining = Worker(stats_poll)
    successor, other = Worker(stats_poll, after=draining), Worker(stats_poll, 1)
    draining.counted, successor.counted = series(3, active=2), series(1)
    views = await take(stats_poll, successor, other, leaving=(draining,))
    assert views[0].carryover["penstock_connections_total"] == {"": 3}
    assert views[0].carryover["penstock_connections_active"] == {"": 2}
    assert views[1].carryover == {}
    stats_poll.carry_over(as_child(draining))
    (view,) = await take(stats_poll, successor)
    assert view.carryover["penstock_connections_total"] == {"": 3}
    assert "penstock_connections_active" not in view.carryover


async def test_invalid_metrics_are_not_carried_over(stats_poll: StatsPoll) -> None:
    worker = Worker(stats_poll)
    worker.counted = {
        "penstock_connections_total": {"": -1},
        "penstock_bytes_total": {"sent": 5},
        "penstock_requests_total": {"7 GET 200": 2, "what": 3},
    }
    await take(stats_poll, worker)
    stats_poll.carry_over(as_child(worker))
    # Always of its own slot, whatever it reports.
    assert worker.history.carryover["penstock_requests_total"] == {"0 GET 200": 2}
    assert "penstock_bytes_total" not in worker.history.carryover
    assert not worker.history.carryover.get("penstock_connections_total")


async def test_an_answer_without_metrics_is_not_carried_over(stats_poll: StatsPoll) -> None:
    worker = Worker(stats_poll)
    answers: list[dict[str, Any]] = [
        {}, {"metrics": None}, {"metrics": []}, {"metrics": {"series": 5}},
    ]  # fmt: skip
    for worker.stats in answers:
        stats_poll.carry_over(as_child(worker))
    assert worker.history.carryover == {}


async def test_the_events_of_a_slot_are_part_of_its_view() -> None:
    events = Events()
    stats_poll = StatsPoll(events)
    events.publish(Event(name="fork", role="worker", service="web", slot=0))
    (view,) = await take(stats_poll, Worker(stats_poll))
    assert view.events == {"fork": 1}


async def test_a_view_has_every_process_of_its_slot(stats_poll: StatsPoll) -> None:
    stats_poll = StatsPoll(Events(), lambda child: f"{child.part}!")
    draining = Worker(stats_poll)
    current, gone = Worker(stats_poll, after=draining), Worker(stats_poll, 1)
    draining.part, draining.pid = "draining", 7
    series = {"penstock_worker_uncaught_exceptions_total": {"0": 4}}
    draining.stats = {"metrics": {"fds": {"client": 3}, "series": series}}
    gone.pid = gone.age_s = None
    one, other = await take(stats_poll, current, gone, leaving=(draining,))
    assert one.processes == (
        ProcessView("current", "ready", 1, "127.0.0.1:9000", 2.0, None, "current!", 5, {}, True),
        ProcessView(
            "draining", "draining", 7, "127.0.0.1:9000", 2.0, 3, "draining!", 5, series, True
        ),
    )
    assert other.processes == ()


async def test_who_counts_and_does_not_answer_is_silent(stats_poll: StatsPoll) -> None:
    answers, silent, other = (Worker(stats_poll, slot) for slot in (0, 1, 2))
    answers.counted = series(1)
    other.plan = replace(other.plan, scheme="ports")
    views = await take(stats_poll, answers, silent, other)
    assert [view.processes[0].is_silent for view in views] == [False, True, False]


async def test_an_end_without_a_last_word_is_kept(stats_poll: StatsPoll) -> None:
    killed, ended = Worker(stats_poll, 0), Worker(stats_poll, 1)
    killed.counted = ended.counted = series(1)
    await take(stats_poll, killed, ended)
    ended.answer(None)
    for worker, how in ((killed, "SIGKILL"), (ended, "status 0")):
        worker.starts.last_exit = how
        stats_poll.carry_over(as_child(worker))
    assert [end.text for end in stats_poll.unseen_ends.all()] == ["web/0 was killed by SIGKILL"]
