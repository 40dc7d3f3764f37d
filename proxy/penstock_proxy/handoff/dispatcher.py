"""Scheme handoff: client connections are passed to workers as descriptors.

Owns: the links of one service, and which workers can take one more connection; at most
`handoff_window` are in flight to one. What a worker does not take in time, because it has died,
is stopped or is full, is read back and goes to another worker. The client notices nothing: its
bytes wait in the kernel, and are never read here.

A connection in flight has no object: it is accepted, sent and closed in one call. Only one that
has to wait for a worker becomes a `Pending`.

See docs/decisions/0009-no-parsing-under-handoff.md.
"""

import asyncio
import socket
from time import monotonic
from typing import Any, Final

from penstock_proxy.balancing import probes
from penstock_proxy.balancing.pool import Member
from penstock_proxy.balancing.probes import HEALTHY, ProbeResult
from penstock_proxy.errors import CONNECT_TIMEOUT, WORKER_CLOSED, Fault
from penstock_proxy.handoff.link import Link
from penstock_proxy.handoff.pending import Pending, PendingOwner
from penstock_proxy.net.peer import HeaderHandling, Peer, peer_from_header
from penstock_proxy.service.context import ServiceContext
from penstock_worker.net.proxy_protocol import MAX_HEADER, Header, HeaderError, parse
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import peer_address

_MAX_LINKS: Final = 4096
"""Processes of one service at a time, those that are stopping included."""


class Dispatcher(PendingOwner):
    """All links of one service. Members can be added and removed."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self._read_settings()
        self._links: dict[int, Link] = {}
        self._current: dict[int, Link] = {}
        """By number of the member: the link that new connections are sent over."""
        self._unflushed: list[Link] = []
        """Links with connections that are enqueued and not sent yet."""
        self._waiting_since: dict[int, float] = {}
        """Of these connections, by descriptor: when those came that have waited in the queue."""
        self._unavailable: set[Member] = set()
        """Members that cannot take one more now: no link, full, or stuck."""
        for member in service.pool.members:
            self.add(member)

    def _read_settings(self) -> None:
        service = self._service
        self._window = service.config.handoff_window
        self._uses_address = service.pool.uses_client_address
        self._accepts_proxy = service.config.accept_proxy
        self._counts_open = service.pool.counts_open

    def configure(self) -> None:
        """Act on the service's configuration and its pool's policy as they are now."""
        self._read_settings()
        for link in self._current.values():
            if link.in_flight >= self._window:
                self._unavailable.add(link.member)
            elif self._is_available(link):
                self._unavailable.discard(link.member)
        self.watch_links()

    # -- members and their links

    def add(self, member: Member) -> None:
        """A member was added to the pool. It gets nothing before it has a link."""
        self._unavailable.add(member)

    def remove(self, member: Member) -> None:
        """A member was removed from the pool: what is in flight to it goes to others."""
        for link in tuple(self._links.values()):
            if link.member is member:
                self.remove_link(link.number)
        self._unavailable.discard(member)

    def add_link_end(self, member: Member, number: int, end: str, sock: socket.socket) -> None:
        """Take one end of the link to a process of this member; both ends come one by one."""
        link = self._links.get(number)
        if link is None:
            if len(self._links) >= _MAX_LINKS:
                sock.close()
                return
            service = self._service
            link = Link(
                service.loop, number, member, service.counters, service.fd_budget, self._on_report
            )
            self._links[number] = link
        link.adopt_end(end, sock)
        self._service.fd_budget.other += 1

    def use_link(self, member: Member, number: int) -> None:
        """Send new connections for this member over that link, which is its own."""
        link = self._links.get(number)
        if link is not None and link.member is member and link.is_usable:
            self._current[member.number] = link
            self._unavailable.discard(member)
            self._update_watch(link)

    def remove_link(self, number: int) -> None:
        """The process is gone: what it had not taken goes to other workers."""
        link = self._links.pop(number, None)
        if link is None:
            return
        member = link.member
        if self._current.get(member.number) is link:
            del self._current[member.number]
            self._unavailable.add(member)
        service = self._service
        fds = link.reclaim()
        service.fd_budget.other -= link.fd_count()
        link.close()
        service.release(member)
        self._redispatch(fds, member)

    # -- connections

    def accepted(self, stream: Stream, peer: Any) -> None:
        """Send a new connection to a worker, or let it wait for one."""
        service = self._service
        service.counters.connections += 1
        # Policies that do not use the address get an empty one.
        address = peer_address(peer) if self._uses_address else ""
        # Connections that wait already come first.
        member = None if service.queue else self._pick(address, self._unavailable)
        if member is None:
            self._make_pending(stream.fileno(), address).wait()
            return
        if self._waiting_since:
            # An earlier connection with this descriptor may have waited.
            self._waiting_since.pop(stream.fileno(), None)
        self._enqueue(stream.fileno(), member)

    def _enqueue(self, fd: int, member: Member) -> None:
        """Put it on the link of a member; connections of one turn are sent in one message."""
        link = self._current[member.number]
        if not link.has_unsent:
            self._unflushed.append(link)
        if not link.enqueue(fd) or link.in_flight >= self._window:
            self._send(link)

    def flush(self) -> None:
        """Send all that is enqueued. To be called after dispatching."""
        # What cannot be sent is enqueued on another link.
        while self._unflushed:
            link = self._unflushed.pop()
            if link.has_unsent:
                self._send(link)
        self._waiting_since.clear()

    def _send(self, link: Link) -> None:
        """Send what is enqueued on a link. The kernel may refuse it: its queue is full, or the
        worker has closed its end."""
        for fd in link.flush(self._service.timers.now):
            self._unavailable.add(link.member)
            self._service.release(link.member)
            self._make_pending(
                fd, self._client_address(fd), waiting_since=self._waiting_since.get(fd)
            ).dispatch()
        if link.in_flight >= self._window:
            self._window_full(link)

    def _make_pending(
        self,
        fd: int,
        address: str,
        tried: tuple[Member, ...] = (),
        waiting_since: float | None = None,
    ) -> Pending:
        self._service.counters.active += 1
        self._service.fd_budget.pending += 1
        return Pending(self, self._service, fd, address, tried, waiting_since)

    @property
    def header_handling(self) -> HeaderHandling:
        """How a PROXY header is handled: it stays there, because the worker reads it."""
        return "peek" if self._uses_address else "ignore"

    def connection_opened(self) -> None:
        """A connection was accepted; its peer is not known yet."""
        self._service.counters.connections += 1
        self._service.counters.active += 1
        self._service.fd_budget.pending += 1

    def peer_known(self, stream: Stream, peer: Peer) -> None:
        """The peer of an accepted connection is known: dispatch it."""
        address = peer_address(peer.address) if self._uses_address else ""
        Pending(self, self._service, stream.fileno(), address).dispatch()
        self.flush()

    def pending_closed(self) -> None:
        """A connection that waited was sent to a worker, or is closed."""
        self._service.counters.active -= 1
        self._service.fd_budget.pending -= 1
        self._service.capacity_changed()

    def connection_rejected(self, address: str, fault: Fault | None, reason: str) -> None:
        """An accepted connection was closed before its peer was known."""
        self.pending_closed()
        if fault is not None:
            self._service.error_log.connection_rejected(address, fault, reason)

    def send_to_worker(
        self, fd: int, address: str, tried: tuple[Member, ...], waiting_since: float
    ) -> bool:
        """Pick a worker and enqueue the connection; False if no worker can take it now."""
        unavailable = self._unavailable
        member = self._pick(address, unavailable.union(tried) if tried else unavailable)
        if member is None:
            return False
        self._waiting_since[fd] = waiting_since
        self._enqueue(fd, member)
        return True

    def _pick(self, address: str, avoid: set[Member]) -> Member | None:
        """Pick a member; None if there is none but those to avoid, which the pool then returns."""
        pool = self._service.pool
        member = pool.pick(address, avoid)
        if member in avoid:
            assert member is not None
            # It gets no connection, so undo what the pool has counted.
            pool.released(member)
            return None
        return member

    def _window_full(self, link: Link) -> None:
        """Read a link's reports. If its window is still full, its member gets nothing for now."""
        link.poll_reports()
        self._service.release(link.member)
        if link.in_flight >= self._window:
            self._unavailable.add(link.member)
        self._update_watch(link)

    def _update_watch(self, link: Link) -> None:
        """Wake up for reports of a link only while something waits for them."""
        link.set_watched(
            self._counts_open
            or link.has_probe
            or link.in_flight >= self._window
            or bool(self._service.queue)
        )

    def watch_links(self) -> None:
        """A connection waits: wake up for the first report of any worker."""
        for link in self._links.values():
            self._update_watch(link)

    @property
    def has_room(self) -> bool:
        """Can any worker take one more?"""
        unavailable = self._unavailable
        for member in self._service.pool.eligible:
            if not (member.is_full or member in unavailable):
                return self._service.pool.available > 0
        return False

    def poll_reports(self) -> None:
        """Read the reports that have come so far."""
        for link in tuple(self._links.values()):
            if (link.in_flight or link.open) and link.poll_reports():
                self._on_report(link)

    def tick(self, now: float) -> None:
        """Reclaim what workers have not taken within the connect timeout."""
        timeout = self._service.timeouts.connect
        self.poll_reports()
        for link in tuple(self._links.values()):
            if link.oldest_sent_at() + timeout < now:
                self._reclaim_overdue(link)
            elif self._is_available(link) and link.in_flight == 0:
                # The kernel refused to send before. Nothing is in flight, so no report will come.
                self._unavailable.discard(link.member)

    def _reclaim_overdue(self, link: Link) -> None:
        service, member = self._service, link.member
        self._unavailable.add(member)
        fds = link.reclaim()
        for _ in fds:
            service.pool.failed(member, monotonic())
            service.counters.errors[CONNECT_TIMEOUT.kind] += 1
        service.error_log.worker_failed(
            member, CONNECT_TIMEOUT, f"{len(fds)} connections not taken"
        )
        link.stuck = True
        service.release(member)
        self._redispatch(fds, member)

    def take_back(self, member: Member) -> None:
        """The member may hang: what it has not taken goes to others, if there are any.

        Unlike what is overdue this is no failure: it may only be busy.
        """
        link = self._current.get(member.number)
        if link is None or not link.in_flight or not self._service.pool.in_rotation:
            return
        fds = link.reclaim()
        self._service.release(member)
        self._redispatch(fds, member)

    def _on_report(self, link: Link) -> None:
        """A worker has reported that it took connections, or that some ended."""
        link.stuck = False
        if link.broken:
            self._unavailable.add(link.member)
            self._service.error_log.worker_failed(link.member, WORKER_CLOSED, "its link ended")
            self._redispatch(link.reclaim(), link.member)
        elif self._is_available(link):
            self._unavailable.discard(link.member)
        self._service.release(link.member)
        self._service.capacity_changed()
        if self._service.queue:
            self._service.serve_queue()
        self._update_watch(link)

    def _is_available(self, link: Link) -> bool:
        current = self._current.get(link.member.number) is link
        return current and link.is_usable and not link.stuck and link.in_flight < self._window

    def _redispatch(self, fds: list[int], member: Member) -> None:
        service = self._service
        for fd in fds:
            service.counters.retries += 1
            self._make_pending(fd, self._client_address(fd), (member,)).dispatch()
        self.flush()

    def _client_address(self, fd: int) -> str:
        """The client address of a connection that was read back, if the policy uses it."""
        return _peer_address(fd, accepts_proxy=self._accepts_proxy) if self._uses_address else ""

    # -- health checks

    async def check(self, member: Member) -> ProbeResult:
        """Send one end of a socket pair like a client's connection, and probe over the other."""
        link = self._current.get(member.number)
        if link is None or not link.is_usable:
            return ProbeResult("refused", "it has no link")
        path = member.health.path
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                taken = link.send_probe(theirs)
            self._update_watch(link)
            if taken is None:
                return ProbeResult("timeout", "it has not taken the check before this one")
            if path is not None:
                return await probes.get(ours, path)
            # It may be cancelled in the same turn as this task, whose end must not be lost then.
            await asyncio.wait((taken,))
            if taken.cancelled():
                return ProbeResult("failed", "it did not take the check")
        return HEALTHY


def _peer_address(fd: int, *, accepts_proxy: bool) -> str:
    """The client address of a connection that was read back; empty if the client is gone."""
    sock = socket.socket(fileno=fd)
    try:
        peer = sock.getpeername()
        if accepts_proxy:
            # The header was complete when we peeked at it, and it has not been read since.
            header = parse(sock.recv(MAX_HEADER, socket.MSG_PEEK))
            if isinstance(header, Header):
                peer = peer_from_header(header, peer).address
        return peer_address(peer)
    except (OSError, HeaderError):
        return ""
    finally:
        sock.detach()
