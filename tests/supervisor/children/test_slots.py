"""A slot has one current worker, at most one successor, and workers that drain until they end."""

from itertools import count
from types import SimpleNamespace
from typing import cast

import pytest

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.slots import Slots, member_key

WEB = ("web", 0)
NUMBERS = count(1)


class Worker:
    def __init__(self, slot: int) -> None:
        self.plan = SimpleNamespace(service="web", slot=slot)
        self.number = next(NUMBERS)


def child(slot: int = 0) -> Child:
    return cast("Child", Worker(slot))


def found(slots: Slots, *children: Child) -> list[bool]:
    """Is each found by its key as a member?"""
    return [slots.child_of(member_key(one)) is one for one in children]


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
    assert list(slots.of_slot(WEB)) == [before, successor]
    assert slots.take_over(successor) is before
    assert found(slots, before, successor) == [True, True]
    assert (slots.is_current(successor), slots.is_successor(successor)) == (True, False)
    assert slots.is_draining(before)
    assert list(slots.workers()) == [successor, before]
    slots.forget(before)
    assert list(slots.workers()) == [successor]
    assert found(slots, before, successor) == [False, True]


def test_a_successor_that_is_dropped_leaves_everything_as_it_was() -> None:
    slots, before, successor = Slots(), child(), child()
    slots.add(before)
    slots.add_successor(successor)
    slots.drop_successor(successor)
    assert found(slots, before, successor) == [True, False]
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
    assert found(slots, before, successor, other) == [False, False, True]
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
