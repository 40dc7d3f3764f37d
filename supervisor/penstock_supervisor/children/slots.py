"""Who is in which slot: the proxies, and for each slot of each service one worker, or two.

Two while one takes over from the other. The *current* one is the one that the slot's future
is about. A *successor* is started to take its place, and becomes the current one when it is
ready. One that is *draining* was the current one; it finishes what it has and goes. Nobody
else keeps a list of children. Slots come and go while a run lasts.
"""

from collections.abc import Iterator

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import Slot


class Slots:
    def __init__(self) -> None:
        self.proxies: list[Child] = []
        """By slot; none if no service has a proxy."""
        self.covered: set[int] = set()
        """Slots of proxies that others accept for: gone, not back yet, or stuck."""
        self.current: dict[Slot, Child] = {}
        self._successors: dict[Slot, Child] = {}
        self._draining: set[Child] = set()

    def children(self) -> Iterator[Child]:
        """Every child, the proxies first."""
        yield from self.proxies
        yield from self.workers()

    def workers(self) -> Iterator[Child]:
        """Every worker; the current ones before their successors, and who is draining last."""
        yield from tuple(self.current.values())
        yield from tuple(self._successors.values())
        yield from tuple(self._draining)

    def one_per_slot(self) -> Iterator[Child]:
        """Proxies and current workers: what people see of a run, one child a slot."""
        yield from self.proxies
        yield from tuple(self.current.values())

    def add(self, child: Child) -> None:
        """A new slot, and who is in it."""
        assert slot_of(child) not in self.current
        self.current[slot_of(child)] = child

    def remove(self, slot: Slot) -> tuple[Child, ...]:
        """The slot is no more. Returns who is in it; both drain until they are forgotten, and
        whoever calls this stops them. KeyError: there is no such slot."""
        left = [self.current.pop(slot)]
        if (successor := self._successors.pop(slot, None)) is not None:
            left.append(successor)
        self._draining.update(left)
        return tuple(left)

    def is_current(self, child: Child) -> bool:
        """Is it the one that the rotation knows in its slot?"""
        return self.current.get(slot_of(child)) is child

    def is_draining(self, child: Child) -> bool:
        return child in self._draining

    def is_being_replaced(self, child: Child) -> bool:
        """It has a successor already, or had one."""
        return child in self._draining or slot_of(child) in self._successors

    def is_successor(self, child: Child) -> bool:
        return self._successors.get(slot_of(child)) is child

    def add_successor(self, child: Child) -> None:
        self._successors[slot_of(child)] = child

    def drop_successor(self, child: Child) -> None:
        """It could not take over: who is there stays."""
        del self._successors[slot_of(child)]

    def take_over(self, successor: Child) -> Child:
        """The successor is the current one from now on; returns who was, and drains."""
        slot = slot_of(successor)
        if self.is_successor(successor):
            del self._successors[slot]
        before, self.current[slot] = self.current[slot], successor
        self._draining.add(before)
        return before

    def forget(self, draining: Child) -> None:
        """It is gone."""
        self._draining.discard(draining)

    def ever_ready(self, service: str) -> bool:
        """Did any worker of the service ever, or any proxy for ""?"""
        return any(one.history.was_up for one in self.one_per_slot() if one.plan.service == service)

    def has_started(self) -> bool:
        """Every service worked, and every slot had its chance."""
        return all(
            (one.history.was_up or one.state is State.GIVEN_UP)
            and self.ever_ready(one.plan.service)
            for one in self.one_per_slot()
        )


def slot_of(child: Child) -> Slot:
    return child.plan.service, child.plan.slot
