"""Of roll-outs the last ones are kept, and each change is an event."""

import asyncio

from tests.support.supervisor.fake_run import rollout, step

from penstock_supervisor.children.events import Event, Events
from penstock_supervisor.rollout.records import KEPT, RolloutRecords


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def made() -> tuple[RolloutRecords, Events, Clock]:
    events, clock = Events(), Clock()
    return RolloutRecords(events, clock, lambda: clock.now + 1e9), events, clock


async def told(events: Events, subscription: object) -> list[Event]:
    events.close()
    return [event async for event in subscription]  # type: ignore[attr-defined]


def test_the_duration_is_that_so_far_and_then_that_of_the_whole() -> None:
    records, _, clock = made()
    records.put(rollout(1))
    clock.now += 3.0
    assert [view.duration_s for view in records.views()] == [3.0]
    records.put(rollout(1, result="succeeded"))
    clock.now += 100.0
    assert [view.duration_s for view in records.views()] == [3.0]


def test_an_end_is_final_and_counted_once() -> None:
    records, _, _ = made()
    records.put(rollout(1, result="aborted"))
    records.put(rollout(1, result="succeeded"))
    records.put(rollout(1))
    assert [view.result for view in records.views()] == ["aborted"]
    assert records.results == {"aborted": 1}


def test_the_one_that_runs_and_the_last_ones_are_kept() -> None:
    records, _, _ = made()
    records.put(rollout(1))
    for number in range(2, KEPT + 5):
        records.put(rollout(number, result="succeeded"))
    numbers = [view.number for view in records.views()]
    assert numbers == [1, *range(5, KEPT + 5)]
    assert records.get(1) is not None
    assert records.get(2) is None


async def test_a_change_wakes_all_that_wait() -> None:
    records, _, _ = made()
    waiting = [asyncio.ensure_future(records.changed()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(one.done() for one in waiting)
    records.put(rollout(1))
    woken, asleep = await asyncio.wait(waiting, timeout=10)
    assert (len(woken), asleep) == (3, set())


async def test_the_begin_each_step_and_the_end_are_events() -> None:
    records, events, _ = made()
    subscription = events.subscribe()
    records.put(rollout(1, step(0), step(1)))
    records.put(rollout(1, step(0, "starting", new_pid=200), step(1)))
    records.put(rollout(1, step(0, "starting", new_pid=200), step(1)))
    failed = step(0, "failed", new_pid=200, reason="exited with status 1")
    records.put(rollout(1, failed, step(1), result="aborted", reason="web/0 failed"))
    found = await told(events, subscription)
    assert {event.name for event in found} == {"rollout"}
    assert [(event.who, event.message["phase"], event.text) for event in found] == [
        ("supervisor", "begin", "roll-out 1: begun"),
        ("web/0", "step", "roll-out 1: replace starting"),
        ("web/0", "step", "roll-out 1: replace failed"),
        ("supervisor", "end", "roll-out 1: aborted"),
    ]
    assert found[2].message == {
        "rollout": 1, "phase": "step", "action": "replace", "state": "failed", "old_pid": 100,
        "new_pid": 200, "reason": "exited with status 1",
    }  # fmt: skip
    assert found[2].pid == 200
    assert found[3].message["reason"] == "web/0 failed"
    assert events.counts_of("worker", "web", 0) == {"rollout": 2}


async def test_a_slot_that_is_rolled_back_has_events_of_both_its_steps() -> None:
    records, events, _ = made()
    subscription = events.subscribe()
    done, back = step(0, "done"), step(0, "starting", action="roll_back")
    records.put(rollout(1, done))
    records.put(rollout(1, done, back))
    texts = [event.text for event in await told(events, subscription)]
    assert texts[1:] == ["roll-out 1: replace done", "roll-out 1: roll_back starting"]


def test_a_configuration_that_could_not_be_applied_leaves_the_time_of_the_last_one() -> None:
    records, _, clock = made()
    assert (records.config_ok, records.config_applied_at) == (True, 1e9 + 100.0)
    clock.now += 5.0
    records.config_read(ok=False)
    assert (records.config_ok, records.config_applied_at) == (False, 1e9 + 100.0)
    records.config_read(ok=True)
    assert (records.config_ok, records.config_applied_at) == (True, 1e9 + 105.0)


async def test_a_slot_that_is_replaced_twice_has_events_of_each_time_once() -> None:
    records, events, _ = made()
    subscription = events.subscribe()
    first, second = step(0, "done", new_pid=200), step(0, "starting", old_pid=200)
    records.put(rollout(1, first, step(1, "starting")))
    for again in (step(0, old_pid=200), second, second._replace(state="done", new_pid=300)):
        records.put(rollout(1, first, step(1, "done", new_pid=201), again))
    texts = [(event.who, event.message.get("state")) for event in await told(events, subscription)]
    assert texts[1:] == [
        ("web/0", "done"), ("web/1", "starting"), ("web/1", "done"), ("web/0", "starting"),
        ("web/0", "done"),
    ]  # fmt: skip
