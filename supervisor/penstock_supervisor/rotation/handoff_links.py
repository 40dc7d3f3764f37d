"""The links of all workers, as fronts have them; those of a process that has ended, too.

Under handoff a connection that is on its way is in a link. When the process at its end is gone,
what it had not taken has to be taken back by a front, and no front may be there just then, or
it may end as well. So such a link stays open here until a front says that it is done: one is
told to *reclaim* it, another when that one ends, and the next that comes when there is none.
Owns those links. Who is in the rotation is not known here (`rotation`).
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock_proxy.messages import LINK, UNLINK
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.plan import Slot
from penstock_supervisor.children.slots import Slots, slot_of
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.rotation.fd_delivery import deliver

OnLate = Callable[[Child, Slot, HandoffLink], None]
"""front, slot, link: it has the link now, and was told of other things before."""


@dataclass(slots=True)
class _Reclaim:
    """A link to a process that has ended."""

    slot: Slot
    link: HandoffLink
    by: Child | None = None
    """The front that was told to take back what is in it, and has not said that it did."""


class HandoffLinks:
    def __init__(self, loop: AbstractEventLoop, slots: Slots, on_late: OnLate) -> None:
        self._loop = loop
        self._slots = slots
        self._on_late = on_late
        self._reclaims: dict[int, _Reclaim] = {}
        """By number of the link."""

    def worker_spawned(self, child: Child) -> None:
        """Each front is sent its link to the new process, if that has any."""
        if child.links:
            for front in self._slots.fronts:
                self.send(front, child)

    def worker_gone(self, child: Child) -> None:
        """Its links are ours until what the process left in them is taken back."""
        slot = slot_of(child)
        for front, link in zip(self._slots.fronts, child.take_links(), strict=False):
            reclaim = self._reclaims[link.number] = _Reclaim(slot, link)
            if front.send(_unlink(reclaim)):
                reclaim.by = front
            else:
                self._assign(reclaim)

    def front_spawned(self, front: Child) -> None:
        """A new front reclaims what none was there for; `send` it those that are in use."""
        for reclaim in self._reclaims.values():
            if reclaim.by is None:
                self._assign(reclaim)

    def front_gone(self, front: Child) -> None:
        """What it had not finished is another's."""
        for reclaim in self._reclaims.values():
            if reclaim.by is front:
                self._assign(reclaim, but=front)

    def send(self, front: Child, child: Child) -> None:
        """Send a front its link to this worker, which has links."""
        self._send(front, slot_of(child), child.links[front.plan.slot])

    def reclaimed(self, number: object, front: Child) -> None:
        """The front says that nothing is left in that link."""
        reclaim = self._reclaims.get(number) if isinstance(number, int) else None
        if reclaim is not None and reclaim.by is front:
            del self._reclaims[reclaim.link.number]
            reclaim.link.close()

    def close(self) -> None:
        for reclaim in self._reclaims.values():
            reclaim.link.close()

    def _assign(self, reclaim: _Reclaim, but: Child | None = None) -> None:
        """Any front can take back what is in it; with none there it waits for the next."""
        there = (one for one in self._slots.fronts if one.has_channel and one is not but)
        reclaim.by = next(there, None)
        if reclaim.by is not None:
            self._send(reclaim.by, reclaim.slot, reclaim.link)
            reclaim.by.send(_unlink(reclaim))

    def _send(self, front: Child, slot: Slot, link: HandoffLink) -> None:
        order = {"cmd": LINK, "service": slot[0], "slot": slot[1], "link": link.number}

        def on_late() -> None:
            self._on_late(front, slot, link)

        def is_used() -> bool:
            return link.number not in self._reclaims

        for end, sock in (("front", link.front), ("worker", link.worker)):
            deliver(self._loop, front, {**order, "end": end}, sock, is_used, on_late)


def _unlink(reclaim: _Reclaim) -> dict[str, Any]:
    return {"cmd": UNLINK, "service": reclaim.slot[0], "link": reclaim.link.number}
