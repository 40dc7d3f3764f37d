"""The links of all workers, as proxies have them; those of a process that has ended, too.

Under handoff a connection that is on its way is in a link. When the process at its end is gone,
what it had not taken has to be taken back by a proxy, and no proxy may be there just then, or
it may end as well. So such a link stays open here until a proxy says that it is done: one is
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
"""proxy, slot, link: it has the link now, and was told of other things before."""


@dataclass(slots=True)
class _Reclaim:
    """A link to a process that has ended."""

    slot: Slot
    link: HandoffLink
    by: Child | None = None
    """The proxy that was told to take back what is in it, and has not said that it did."""


class HandoffLinks:
    def __init__(self, loop: AbstractEventLoop, slots: Slots, on_late: OnLate) -> None:
        self._loop = loop
        self._slots = slots
        self._on_late = on_late
        self._reclaims: dict[int, _Reclaim] = {}
        """By number of the link."""

    def worker_spawned(self, child: Child) -> None:
        """Each proxy is sent its link to the new process, if that has any."""
        if child.links:
            for proxy in self._slots.proxies:
                self.send(proxy, child)

    def worker_gone(self, child: Child) -> None:
        """Its links are ours until what the process left in them is taken back."""
        slot = slot_of(child)
        for proxy, link in zip(self._slots.proxies, child.take_links(), strict=False):
            reclaim = self._reclaims[link.number] = _Reclaim(slot, link)
            if proxy.send(_unlink(reclaim)):
                reclaim.by = proxy
            else:
                self._assign(reclaim)

    def proxy_spawned(self, proxy: Child) -> None:
        """A new proxy reclaims what none was there for; `send` it those that are in use."""
        for reclaim in self._reclaims.values():
            if reclaim.by is None:
                self._assign(reclaim)

    def proxy_gone(self, proxy: Child) -> None:
        """What it had not finished is another's."""
        for reclaim in self._reclaims.values():
            if reclaim.by is proxy:
                self._assign(reclaim, but=proxy)

    def send(self, proxy: Child, child: Child) -> None:
        """Send a proxy its link to this worker, which has links."""
        self._send(proxy, slot_of(child), child.links[proxy.plan.slot])

    def reclaimed(self, number: object, proxy: Child) -> None:
        """The proxy says that nothing is left in that link."""
        reclaim = self._reclaims.get(number) if isinstance(number, int) else None
        if reclaim is not None and reclaim.by is proxy:
            del self._reclaims[reclaim.link.number]
            reclaim.link.close()

    def close(self) -> None:
        for reclaim in self._reclaims.values():
            reclaim.link.close()

    def _assign(self, reclaim: _Reclaim, but: Child | None = None) -> None:
        """Any proxy can take back what is in it; with none there it waits for the next."""
        there = (one for one in self._slots.proxies if one.has_channel and one is not but)
        reclaim.by = next(there, None)
        if reclaim.by is not None:
            self._send(reclaim.by, reclaim.slot, reclaim.link)
            reclaim.by.send(_unlink(reclaim))

    def _send(self, proxy: Child, slot: Slot, link: HandoffLink) -> None:
        order = {"cmd": LINK, "service": slot[0], "slot": slot[1], "link": link.number}

        def on_late() -> None:
            self._on_late(proxy, slot, link)

        def is_used() -> bool:
            return link.number not in self._reclaims

        for end, sock in (("proxy", link.proxy), ("worker", link.worker)):
            deliver(self._loop, proxy, {**order, "end": end}, sock, is_used, on_late)


def _unlink(reclaim: _Reclaim) -> dict[str, Any]:
    return {"cmd": UNLINK, "service": reclaim.slot[0], "link": reclaim.link.number}
