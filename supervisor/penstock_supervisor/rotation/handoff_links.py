"""The links between proxies and workers, including links to worker processes that have ended.

With handoff, a connection on its way to a worker lies in a link. When the worker process ends,
a proxy has to take back what the worker had not received. At that moment there may be no proxy,
or the proxy may end as well. So the supervisor keeps such a link open until a proxy says that
it is done. It tells one proxy to *reclaim* the link. If that proxy ends, it tells another one.
If there is none, it tells the next one that starts.

Owns the links to ended processes. Must not know which workers are in the rotation (`rotation`).
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock_proxy.messages import LINK, UNLINK
from penstock_supervisor.children.child import Child
from penstock_supervisor.children.plan import MemberKey
from penstock_supervisor.children.slots import Slots, member_key
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.rotation.fd_delivery import deliver

OnLateLink = Callable[[Child, MemberKey, HandoffLink], None]
"""proxy, member, link: the proxy has the link now, but got other messages before it."""


@dataclass(slots=True)
class _Reclaim:
    """A link to a process that has ended."""

    member: MemberKey
    link: HandoffLink
    proxy: Child | None = None
    """The proxy that was told to take back what is in the link, and has not answered yet."""


class HandoffLinks:
    def __init__(self, loop: AbstractEventLoop, slots: Slots, on_late_link: OnLateLink) -> None:
        self._loop = loop
        self._slots = slots
        self._on_late_link = on_late_link
        self._reclaims: dict[int, _Reclaim] = {}
        """By number of the link."""

    def worker_spawned(self, child: Child) -> None:
        """Send each proxy its link to the new process, if that has links."""
        if child.links:
            for proxy in self._slots.proxies:
                self.send(proxy, child)

    def worker_exited(self, child: Child) -> None:
        """Keep its links until a proxy has taken back what is left in them."""
        member = member_key(child)
        of_slot = {proxy.plan.slot: proxy for proxy in self._slots.proxies}
        for slot, link in enumerate(child.take_links()):
            reclaim = self._reclaims[link.number] = _Reclaim(member, link)
            proxy = of_slot.get(slot)
            if proxy is not None and proxy.send(_unlink(reclaim)):
                reclaim.proxy = proxy
            else:
                self._assign(reclaim)

    def proxy_spawned(self, proxy: Child) -> None:
        """Let a new proxy reclaim the links that no proxy reclaims yet.

        The links that are in use have to be sent with `send`.
        """
        for reclaim in self._reclaims.values():
            if reclaim.proxy is None:
                self._assign(reclaim)

    def proxy_exited(self, proxy: Child) -> None:
        """Let another proxy finish what this one was reclaiming."""
        for reclaim in self._reclaims.values():
            if reclaim.proxy is proxy:
                self._assign(reclaim, exclude=proxy)

    def send(self, proxy: Child, child: Child) -> None:
        """Send a proxy its link to this worker, which has links. It has none to a proxy that is
        new: then one of them has to be replaced before they know each other."""
        if (link := link_to(proxy, child)) is not None:
            self._send(proxy, member_key(child), link)

    def reclaimed(self, number: object, proxy: Child) -> None:
        """The proxy says that nothing is left in that link."""
        reclaim = self._reclaims.get(number) if isinstance(number, int) else None
        if reclaim is not None and reclaim.proxy is proxy:
            del self._reclaims[reclaim.link.number]
            reclaim.link.close()

    def is_reclaiming(self, member: MemberKey) -> bool:
        """Is a link to an ended process of this member still kept?"""
        return any(reclaim.member == member for reclaim in self._reclaims.values())

    def forget(self, service: str) -> None:
        """This service is removed: close what is kept of it."""
        gone = [one for one in self._reclaims.values() if one.member[0] == service]
        for reclaim in gone:
            del self._reclaims[reclaim.link.number]
            reclaim.link.close()

    def close(self) -> None:
        for reclaim in self._reclaims.values():
            reclaim.link.close()

    def _assign(self, reclaim: _Reclaim, exclude: Child | None = None) -> None:
        """Have any proxy reclaim this link. Without a proxy the link waits for the next one."""
        candidates = (
            proxy for proxy in self._slots.proxies if proxy.has_channel and proxy is not exclude
        )
        reclaim.proxy = next(candidates, None)
        if reclaim.proxy is not None:
            self._send(reclaim.proxy, reclaim.member, reclaim.link)
            reclaim.proxy.send(_unlink(reclaim))

    def _send(self, proxy: Child, member: MemberKey, link: HandoffLink) -> None:
        message = {"cmd": LINK, "service": member[0], "member": member[1], "link": link.number}

        def on_late() -> None:
            self._on_late_link(proxy, member, link)

        def is_in_use() -> bool:
            return link.number not in self._reclaims

        for end, sock in (("proxy", link.proxy), ("worker", link.worker)):
            deliver(self._loop, proxy, {**message, "end": end}, sock, is_in_use, on_late)


def link_to(proxy: Child, child: Child) -> HandoffLink | None:
    """The link between a proxy and a worker, if the worker was started with one."""
    slot = proxy.plan.slot
    return child.links[slot] if slot < len(child.links) else None


def _unlink(reclaim: _Reclaim) -> dict[str, Any]:
    return {"cmd": UNLINK, "service": reclaim.member[0], "link": reclaim.link.number}
