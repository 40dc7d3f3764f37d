"""Delivery handoff: the connection itself goes to the worker, and is none of ours any more.

Owns the links of one service, and which of them can take one more: at most `handoff_window`
are on their way to a worker. What a worker has not taken in time, because it died, stopped
or is full, is read back and goes to another; the client, whose bytes wait in the kernel,
notices nothing. The client is never read here.

On its way a connection has no object: it is accepted, sent and closed in one call. Only one
that has to wait for a worker becomes a `Pending`.
"""

import asyncio
import socket
from time import monotonic
from typing import Any, Final

from penstock_proxy.balancing import probes
from penstock_proxy.balancing.pool import Member
from penstock_proxy.balancing.probes import OK, ProbeResult
from penstock_proxy.errors import CONNECT_TIMEOUT, WORKER_CLOSED, Fault
from penstock_proxy.handoff.link import Link
from penstock_proxy.handoff.pending import Dispatching, Pending
from penstock_proxy.net.peer import HeaderHandling, Peer, peer_from_header
from penstock_proxy.service.context import ServiceContext
from penstock_worker.net.proxy_protocol import MAX_HEADER, Header, HeaderError, parse
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import peer_address

_MOST_LINKS: Final = 4096
"""Processes of one service at a time, those that leave included."""


class Dispatcher(Dispatching):
    """All links of one service."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self._window = service.config.handoff_window
        self._is_hashing = service.pool.uses_client_address
        self._introduced = service.config.accept_proxy
        self._is_counting = service.pool.counts_open
        self._links: dict[int, Link] = {}
        self._current: dict[int, Link] = {}
        """By slot, those that connections are sent over."""
        self._filled: list[Link] = []
        """Connections were put there that are not sent yet."""
        self._since: dict[int, float] = {}
        """Of these, since when those have been here that have waited."""
        self._closed: set[Member] = set(service.pool.members)
        """Members that cannot take one more now: no link, full, or stuck."""

    # What the supervisor says.

    def linked(self, slot: int, number: int, end: str, sock: socket.socket) -> None:
        """One end of the link to a process in this slot."""
        link = self._links.get(number)
        if link is None:
            if len(self._links) >= _MOST_LINKS:
                sock.close()
                return
            service = self._service
            member = service.pool.member(slot)
            link = Link(
                service.loop, number, member, service.counters, service.fd_budget, self._heard
            )
            self._links[number] = link
        link.has(end, sock)
        self._service.fd_budget.other += 1

    def joined(self, slot: int, number: int) -> None:
        """From now on connections for this slot go over that link."""
        link = self._links.get(number)
        if link is not None and link.is_whole:
            self._current[slot] = link
            self._closed.discard(link.member)
            self._attend(link)

    def unlinked(self, number: int) -> None:
        """That process is gone: what it had not taken goes to others."""
        link = self._links.pop(number, None)
        if link is None:
            return
        member = link.member
        if self._current.get(member.slot) is link:
            del self._current[member.slot]
            self._closed.add(member)
        service = self._service
        found = link.take_back()
        service.fd_budget.other -= link.descriptors()
        link.close()
        service.release(member)
        self._redirect(found, member)

    # A connection's way.

    def accepted(self, stream: Stream, peer: Any) -> None:
        """Pass it on at once, or let it wait."""
        service = self._service
        service.counters.connections += 1
        # No other policy looks at it.
        address = peer_address(peer) if self._is_hashing else ""
        # Who waits comes first.
        member = None if service.queue else self._pick(address, self._closed)
        if member is None:
            self._pending(stream.fileno(), address).wait()
            return
        if self._since:
            # One that waited may have had this number, and be gone already.
            self._since.pop(stream.fileno(), None)
        self._put(stream.fileno(), member)

    def _put(self, fd: int, member: Member) -> None:
        """It is on its way; those that go there at the same time go together."""
        link = self._current[member.slot]
        if not link.has_unsent:
            self._filled.append(link)
        if not link.put(fd) or link.in_flight >= self._window:
            self._send(link)

    def flush(self) -> None:
        """Whoever was put in this turn is sent. Whoever dispatches has to call this."""
        # One that cannot be sent is put to another.
        while self._filled:
            link = self._filled.pop()
            if link.has_unsent:
                self._send(link)
        self._since.clear()

    def _send(self, link: Link) -> None:
        """Send what was put there. Its queue may be full, or it may be gone unheard."""
        for fd in link.flush(self._service.timers.now):
            self._closed.add(link.member)
            self._service.release(link.member)
            self._pending(fd, self._whose(fd), since=self._since.get(fd)).dispatch()
        if link.in_flight >= self._window:
            self._is_full(link)

    def _pending(
        self,
        fd: int,
        address: str,
        tried: tuple[Member, ...] = (),
        since: float | None = None,
    ) -> Pending:
        self._service.counters.active += 1
        self._service.fd_budget.pending += 1
        return Pending(self, self._service, fd, address, tried, since)

    @property
    def header_handling(self) -> HeaderHandling:
        """What is done here with a PROXY header: the worker reads it."""
        return "look" if self._is_hashing else "no"

    def arrived(self) -> None:
        """A connection stands in the entrance."""
        self._service.counters.connections += 1
        self._service.counters.active += 1
        self._service.fd_budget.pending += 1

    def entered(self, stream: Stream, peer: Peer) -> None:
        """It is known whose it is: on to a worker."""
        address = peer_address(peer.address) if self._is_hashing else ""
        Pending(self, self._service, stream.fileno(), address).dispatch()
        self.flush()

    def pending_closed(self) -> None:
        """A connection that waited for a worker has gone to it, or is closed."""
        self._service.counters.active -= 1
        self._service.fd_budget.pending -= 1
        self._service.capacity_changed()

    def turned_away(self, address: str, fault: Fault | None, reason: str) -> None:
        """It did not come in."""
        self.pending_closed()
        if fault is not None:
            self._service.error_log.connection_rejected(address, fault, reason)

    def pass_on(self, fd: int, address: str, tried: tuple[Member, ...], since: float) -> bool:
        """Pick a worker and put it on its way; False if nobody can take it now."""
        closed = self._closed
        member = self._pick(address, closed.union(tried) if tried else closed)
        if member is None:
            return False
        self._since[fd] = since
        self._put(fd, member)
        return True

    def _pick(self, address: str, avoid: set[Member]) -> Member | None:
        """The pool would rather name one to avoid than none."""
        pool = self._service.pool
        member = pool.pick(address, avoid)
        if member in avoid:
            assert member is not None
            # It gets nothing, so it is no fuller than it was.
            pool.released(member)
            return None
        return member

    def _is_full(self, link: Link) -> None:
        """Ask it; if it has not taken enough, nobody is sent to it until it does."""
        link.hear()
        if link.in_flight >= self._window:
            self._closed.add(link.member)
        self._attend(link)

    def _attend(self, link: Link) -> None:
        """Be woken by its words only while something waits for them."""
        link.watch(
            self._is_counting
            or link.is_probed
            or link.in_flight >= self._window
            or bool(self._service.queue)
        )

    def watch_links(self) -> None:
        """Somebody waits: the first word of any worker counts."""
        for link in self._links.values():
            self._attend(link)

    @property
    def has_room(self) -> bool:
        """Can anybody take one more?"""
        closed = self._closed
        for member in self._service.pool.eligible:
            if not (member.is_full or member in closed):
                return self._service.pool.available > 0
        return False

    def settle(self) -> None:
        """Read what workers have said so far: somebody wants to know."""
        for link in tuple(self._links.values()):
            if (link.in_flight or link.open) and link.hear():
                self._heard(link)

    def tick(self, now: float) -> None:
        """Take back what waited too long at a worker that does not take it."""
        patience = self._service.timeouts.connect
        self.settle()
        for link in tuple(self._links.values()):
            if link.oldest() + patience < now:
                self._stuck(link)
            elif self._can_send(link) and link.in_flight == 0:
                # Refused by the kernel before, and nothing on its way that would tell.
                self._closed.discard(link.member)

    def _stuck(self, link: Link) -> None:
        service, member = self._service, link.member
        self._closed.add(member)
        found = link.take_back()
        for _ in found:
            service.pool.failed(member, monotonic())
            service.counters.errors[CONNECT_TIMEOUT.kind] += 1
        service.error_log.worker_failed(
            member, CONNECT_TIMEOUT, f"{len(found)} connections not taken"
        )
        link.stuck = True
        service.release(member)
        self._redirect(found, member)

    def _heard(self, link: Link) -> None:
        """A worker took some, or some ended."""
        link.stuck = False
        if link.broken:
            self._closed.add(link.member)
            self._service.error_log.worker_failed(link.member, WORKER_CLOSED, "its link ended")
            self._redirect(link.take_back(), link.member)
        elif self._can_send(link):
            self._closed.discard(link.member)
        self._service.release(link.member)
        self._service.capacity_changed()
        if self._service.queue:
            self._service.serve_queue()
        self._attend(link)

    def _can_send(self, link: Link) -> bool:
        current = self._current.get(link.member.slot) is link
        return current and link.is_whole and not link.stuck and link.in_flight < self._window

    def _redirect(self, found: list[int], member: Member) -> None:
        service = self._service
        for fd in found:
            service.counters.retries += 1
            self._pending(fd, self._whose(fd), (member,)).dispatch()
        self.flush()

    def _whose(self, fd: int) -> str:
        """The address of one that came back, if anybody asks."""
        return _peer(fd, introduced=self._introduced) if self._is_hashing else ""

    # Health.

    async def check(self, member: Member) -> ProbeResult:
        """Pass one end of a socket pair like a client's, and ask on the other."""
        link = self._current.get(member.slot)
        if link is None or not link.is_whole:
            return ProbeResult("refused", "it has no link")
        path = self._service.config.health.path
        mine, theirs = socket.socketpair()
        with mine:
            mine.setblocking(False)
            with theirs:
                taken = link.probe(theirs)
            self._attend(link)
            if taken is None:
                return ProbeResult("timeout", "it has not taken the check before this one")
            if path is not None:
                return await probes.get(mine, path)
            try:
                await asyncio.shield(taken)
            except asyncio.CancelledError:
                if not taken.cancelled():
                    raise
                return ProbeResult("failed", "it did not take the check")
        return OK


def _peer(fd: int, *, introduced: bool) -> str:
    """Whose connection it is that came back; empty if it has gone."""
    sock = socket.socket(fileno=fd)
    try:
        peer = sock.getpeername()
        if introduced:
            # It was complete before, and nobody has taken it since.
            header = parse(sock.recv(MAX_HEADER, socket.MSG_PEEK))
            if isinstance(header, Header):
                peer = peer_from_header(header, peer).address
        return peer_address(peer)
    except (OSError, HeaderError):
        return ""
    finally:
        sock.detach()
