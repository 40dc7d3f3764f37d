"""A slot has one current worker, at most one successor, and workers that drain until they end."""

from types import SimpleNamespace
from typing import cast

import pytest

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.slots import Slots

WEB = ("web", 0)


class Worker:
    def __init__(self, slot: int) -> None:
        self.plan = SimpleNamespace(service="web", slot=slot)


def child(slot: int = 0) -> Child:
    return cast("Child", Worker(slot))


def test_slots_come_one_by_one_and_each_has_its_worker() -> None:
    slots, workers = Slots(), [child(0), child(1)]
    slots.proxies.append(child())
    for worker in workers:
        slots.add(worker)
    assert list(slots.current) == [("web", 0), ("web", 1)]
    assert list(slots.workers()) == workers
    assert list(slots.one_per_slot()) == list(slots.children()) == [*slots.proxies, *workers]
    assert all(map(slots.is_current, workers))


def test_a_successor_takes_over_and_the_previous_worker_drains() -> None:
    slots, before, successor = Slots(), child(), child()
    slots.add(before)
    slots.add_successor(successor)
    assert (slots.is_being_replaced(before), slots.is_successor(successor)) == (True, True)
    assert slots.take_over(successor) is before
    assert (slots.is_current(successor), slots.is_successor(successor)) == (True, False)
    assert slots.is_draining(before)
    assert list(slots.workers()) == [successor, before]
    slots.forget(before)
    assert list(slots.workers()) == [successor]


def test_a_successor_that_is_dropped_leaves_everything_as_it_was() -> None:
    slots, before, successor = Slots(), child(), child()
    slots.add(before)
    slots.add_successor(successor)
    slots.drop_successor(successor)
    assert list(slots.workers()) == [before]
    assert not slots.is_being_replaced(before)


def test_the_workers_of_a_removed_slot_drain_until_they_end() -> None:
    slots, before, successor, other = Slots(), child(), child(), child(1)
    slots.add(before)
    slots.add(other)
    slots.add_successor(successor)
    assert slots.remove(WEB) == (before, successor)
    assert list(slots.current) == [("web", 1)]
    assert (slots.is_draining(before), slots.is_draining(successor)) == (True, True)
    for worker in (before, successor):
        slots.forget(worker)
    assert list(slots.workers()) == [other]
    with pytest.raises(KeyError):
        slots.remove(WEB)
    slots.add(child())
    assert len(slots.current) == 2


def test_the_part_of_a_worker_in_its_slot_is_current_successor_or_draining() -> None:
    slots, before, successor = Slots(), child(), child()
    slots.add(before)
    slots.add_successor(successor)
    assert [slots.part_of(one) for one in (before, successor)] == ["current", "successor"]
    slots.take_over(successor)
    assert [slots.part_of(one) for one in (before, successor)] == ["draining", "current"]
