"""Who is in which slot: the fronts, and for each slot of each service one worker, or two.

Two while one takes over from the other. The *holder* of a slot is the one that the slot's
future is about; a *comer* is started to take its place and becomes the holder when it is
ready; a *leaver* was the holder, finishes what it has and goes. Nobody else keeps a list of
children.
"""

from collections.abc import Iterator

from penstock_supervisor.child import Child
from penstock_supervisor.lifecycle import State

Slot = tuple[str, int]
"""Name of the service, and number."""


class Roster:
    def __init__(self) -> None:
        self.fronts: list[Child] = []
        """By slot; none if no service has a front."""
        self.away: set[int] = set()
        """Slots of fronts that others accept for: gone, not back yet, or stuck."""
        self.holders: dict[Slot, Child] = {}
        self._comers: dict[Slot, Child] = {}
        self._leavers: set[Child] = set()

    def everybody(self) -> Iterator[Child]:
        """Every child, the fronts first."""
        yield from self.fronts
        yield from self.workers()

    def workers(self) -> Iterator[Child]:
        """Every worker; a slot's holder before who comes or leaves."""
        yield from tuple(self.holders.values())
        yield from tuple(self._comers.values())
        yield from tuple(self._leavers)

    def slots(self) -> Iterator[Child]:
        """Fronts and holders: what people see of a run, one child a slot."""
        yield from self.fronts
        yield from tuple(self.holders.values())

    def holds(self, child: Child) -> bool:
        """Is it the one that the rotation knows in its slot?"""
        return self.holders.get(slot_of(child)) is child

    def leaves(self, child: Child) -> bool:
        return child in self._leavers

    def is_followed(self, child: Child) -> bool:
        """Somebody comes for it already, or has."""
        return child in self._leavers or slot_of(child) in self._comers

    def comes(self, child: Child) -> bool:
        return self._comers.get(slot_of(child)) is child

    def add_comer(self, child: Child) -> None:
        self._comers[slot_of(child)] = child

    def drop_comer(self, child: Child) -> None:
        """It could not take over: who is there stays."""
        del self._comers[slot_of(child)]

    def take_over(self, successor: Child) -> Child:
        """The successor holds the slot from now on; returns who held it, and leaves."""
        slot = slot_of(successor)
        if self.comes(successor):
            del self._comers[slot]
        before, self.holders[slot] = self.holders[slot], successor
        self._leavers.add(before)
        return before

    def forget(self, leaver: Child) -> None:
        """It is gone."""
        self._leavers.discard(leaver)

    def ever_worked(self, service: str) -> bool:
        """Did any worker of the service ever, or any front for ""?"""
        return any(one.history.was_up for one in self.slots() if one.plan.service == service)

    def has_started(self) -> bool:
        """Every service worked, and every slot had its chance."""
        return all(
            (one.history.was_up or one.state is State.GIVEN_UP)
            and self.ever_worked(one.plan.service)
            for one in self.slots()
        )


def slot_of(child: Child) -> Slot:
    return child.plan.service, child.plan.slot
