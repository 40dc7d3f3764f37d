"""The children of a run by slot: the proxies, and the workers of each service.

A slot has one worker, or several while one replaces another. The *current* one is the worker
that the slot keeps alive. A *successor* is started to replace it, and becomes current when it is
in every rotation. A *draining* one was current; it finishes its connections and exits. This is the
only list of children. Slots can be added and removed while the run lasts.

A slot says where a worker belongs, and a member key which of the slot's workers it is.
"""

import socket
from collections.abc import Collection, Iterator
from typing import Any

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import MemberKey, Slot
from penstock_supervisor.snapshot import Part


class Slots:
    def __init__(self) -> None:
        self.proxies: list[Child] = []
        """By slot; empty if no service has a proxy."""
        self.covered: set[int] = set()
        """Slots of proxies that ended, start again or are stuck; the others accept for them."""
        self.current: dict[Slot, Child] = {}
        self._successors: dict[Slot, Child] = {}
        self._draining: set[Child] = set()
        self._by_key: dict[MemberKey, Child] = {}
        """All workers."""

    def children(self) -> Iterator[Child]:
        """Every child, the proxies first."""
        yield from self.proxies
        yield from self.workers()

    def workers(self) -> Iterator[Child]:
        """Every worker: the current ones, then successors, then those that drain."""
        yield from tuple(self.current.values())
        yield from tuple(self._successors.values())
        yield from tuple(self._draining)

    def of_slot(self, slot: Slot) -> Iterator[Child]:
        """Every worker of one slot."""
        return (child for child in self.workers() if slot_of(child) == slot)

    def child_of(self, key: MemberKey) -> Child | None:
        """The worker that is this member; None: there is none, or no more."""
        return self._by_key.get(key)

    def send_to(self, key: MemberKey, message: Any, handle: socket.socket | None = None) -> bool:
        """Send this worker a message. False: it is gone, or what it has not read is too much."""
        child = self.child_of(key)
        return child is not None and child.send(message, handle)

    def one_per_slot(self) -> Iterator[Child]:
        """Proxies and current workers: one child for each slot, as in the status."""
        yield from self.proxies
        yield from tuple(self.current.values())

    def add(self, child: Child) -> None:
        """Add a slot, with its worker."""
        assert slot_of(child) not in self.current
        self.current[slot_of(child)] = child
        self._by_key[member_key(child)] = child

    def remove(self, slot: Slot) -> tuple[Child, ...]:
        """Remove a slot, and return its workers, which drain until `forget`. The caller stops
        them. KeyError: there is no such slot."""
        removed = [self.current.pop(slot)]
        if (successor := self._successors.pop(slot, None)) is not None:
            removed.append(successor)
        self._draining.update(removed)
        return tuple(removed)

    def is_current(self, child: Child) -> bool:
        """Is it the current worker of its slot, the one in the rotation?"""
        return self.current.get(slot_of(child)) is child

    def is_draining(self, child: Child) -> bool:
        return child in self._draining

    def part_of(self, child: Child) -> Part:
        """What it is in its slot. A proxy, which is never replaced, is always current."""
        if child in self._draining:
            return "draining"
        return "successor" if self.is_successor(child) else "current"

    def is_being_replaced(self, child: Child) -> bool:
        """Has it a successor, or is it draining?"""
        return child in self._draining or slot_of(child) in self._successors

    def is_successor(self, child: Child) -> bool:
        return self._successors.get(slot_of(child)) is child

    def add_successor(self, child: Child) -> None:
        self._successors[slot_of(child)] = child
        self._by_key[member_key(child)] = child

    def drop_successor(self, child: Child) -> None:
        """Forget a successor that failed; the current worker stays."""
        del self._successors[slot_of(child)]
        del self._by_key[member_key(child)]

    def has_others(self, slot: Slot) -> bool:
        """Is there a process beside the current one: a successor, or one that drains?"""
        return slot in self._successors or any(slot_of(one) == slot for one in self._draining)

    def take_over(self, successor: Child) -> Child | None:
        """Make the successor current; return the previous worker, which drains now. None: the slot
        is new."""
        slot = slot_of(successor)
        if self.is_successor(successor):
            del self._successors[slot]
        before = self.current.get(slot)
        self.current[slot] = successor
        self._by_key[member_key(successor)] = successor
        if before is not None:
            self._draining.add(before)
        return before

    def forget(self, draining: Child) -> None:
        """Forget a draining worker that has ended."""
        self._draining.discard(draining)
        self._by_key.pop(member_key(draining), None)

    def ever_ready(self, service: str) -> bool:
        """Was any worker of the service ever ready? For "": any proxy."""
        children = (child for child in self.one_per_slot() if child.plan.service == service)
        return any(child.history.was_ready for child in children)

    def has_started(self) -> bool:
        """Every service has been ready, and every slot has been ready or is in a crash loop."""
        return all(
            (child.history.was_ready or child.starts.restart_policy.in_crash_loop)
            and self.ever_ready(child.plan.service)
            for child in self.one_per_slot()
        )

    def is_lost(self, service: str, *, has_proxy: bool) -> bool:
        """Nobody will serve the service again: each of its slots was given up for good, or so was
        each proxy, and no process is left."""
        workers = [child for child in self.workers() if child.plan.service == service]
        return (has_proxy and _all_given_up(self.proxies)) or _all_given_up(workers)


def _all_given_up(children: Collection[Child]) -> bool:
    return bool(children) and all(child.state is State.GIVEN_UP for child in children)


def slot_of(child: Child) -> Slot:
    return child.plan.service, child.plan.slot


def member_key(child: Child) -> MemberKey:
    return child.plan.service, child.number
