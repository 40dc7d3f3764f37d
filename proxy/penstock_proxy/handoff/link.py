"""The proxy's end of the link to one worker process, and the account of its connections.

Owns: the account. Every connection that is sent ends as exactly one of *accepted* (the worker
has reported it), *requeued* (reclaimed, to go to another worker) or *lost* (neither; the worker's
own code cannot cause that). Until then it is in flight. An accepted one is open until the worker
reports its end, or the process is gone.

Reports of a worker are read when their content is needed: to be woken for every credit costs
more than the credit. `set_watched` is for the time when there is nothing to do but wait for one.

Must not know: which worker is picked, or why something is reclaimed (`dispatcher`).

See docs/decisions/0008-seqpacket-for-handoff.md.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.handoff.protocol import (
    CLIENT,
    MAX_PER_MESSAGE,
    PROBE,
    read_reports,
    receive,
    send,
)

NEVER: Final = float("inf")


class Link:
    """The link to one process. `on_report(link)` is called after reports, while it is watched."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int,
        member: Member,
        counters: ServiceCounters,
        fd_budget: FdBudget,
        on_report: Callable[["Link"], None],
    ) -> None:
        self.number = number
        self.member = member
        self.in_flight = 0
        """Clients' connections that are sent, or about to be, and not taken."""
        self.open = 0
        """Clients' connections that are taken and have not ended."""
        self.stuck = False
        """The worker did not take what was sent in time, and has reported nothing since."""
        self.broken = False
        """The worker has closed its end or sent an invalid report; nothing is sent any more."""
        self._loop = loop
        self._counters = counters
        self._fd_budget = fd_budget
        self._on_report = on_report
        self._sent: deque[float | asyncio.Future[None]] = deque()
        """What is in flight, in order. For a client's connection: when it was sent. For a health
        check: the future that is done when it is taken; a check counts for nothing else."""
        self._unsent: list[int] = []
        """In flight too: part of the next message."""
        self._unused_credits = 0
        """Credits for connections that we have reclaimed. The worker takes as many of the next ones
        without another credit."""
        self._late_credits = 0
        """Credits that may still come for connections that we have reclaimed."""
        self._proxy_end: socket.socket | None = None
        self._worker_end: socket.socket | None = None
        self._probe: asyncio.Future[None] | None = None
        self._watched = False

    # -- its ends

    def adopt_end(self, end: str, sock: socket.socket) -> None:
        """Take one end: "proxy" is ours, "worker" a copy of the worker's."""
        if end == "proxy":
            self._close_end(self._proxy_end)
            self._proxy_end, self._watched = sock, False
        else:
            self._close_end(self._worker_end)
            self._worker_end = sock

    @property
    def is_usable(self) -> bool:
        """Both ends are there, and it is not broken."""
        return self._proxy_end is not None and self._worker_end is not None and not self.broken

    def close(self) -> None:
        """Close both ends. What is in flight has to be reclaimed before."""
        self._counters.opened -= self.open
        self.member.active -= self.open
        self.open = 0
        self._close_end(self._proxy_end)
        self._close_end(self._worker_end)
        self._proxy_end = self._worker_end = None

    def fd_count(self) -> int:
        """How many of its ends are open here."""
        return (self._proxy_end is not None) + (self._worker_end is not None)

    @property
    def has_unsent(self) -> bool:
        """Connections are enqueued that are not sent yet."""
        return bool(self._unsent)

    @property
    def has_probe(self) -> bool:
        """A health check is sent and not taken yet."""
        return self._probe is not None

    def set_watched(self, watched: bool) -> None:
        """Wake up for each report of the worker, or not."""
        if watched == self._watched or self._proxy_end is None or self.broken:
            return
        self._watched = watched
        if watched:
            self._loop.add_reader(self._proxy_end, self._readable)
        else:
            self._loop.remove_reader(self._proxy_end)

    # -- to the worker

    def enqueue(self, fd: int) -> bool:
        """Make a client's connection part of the next message; False if the message is full now.

        It is in flight from now on. The caller has to `flush`.
        """
        self._unsent.append(fd)
        self._add_in_flight(1)
        return len(self._unsent) < MAX_PER_MESSAGE

    def flush(self, now: float) -> list[int]:
        """Send what is enqueued and close our copies.

        Returns what could not be sent: it is not in flight any more, and the caller's again.
        """
        fds = self._unsent
        if not fds:
            return fds
        self._unsent = []
        assert self._proxy_end is not None
        try:
            send(self._proxy_end, CLIENT, fds)
        except OSError:
            self._add_in_flight(-len(fds))
            return fds
        for fd in fds:
            os.close(fd)
            self._sent.append(now)
        if self._unused_credits:
            self._apply_credits(0)
        return []

    def _add_in_flight(self, count: int) -> None:
        self.in_flight += count
        self.member.active += count
        self._counters.in_flight += count
        self._fd_budget.in_flight += count

    def send_probe(self, sock: socket.socket) -> "asyncio.Future[None] | None":
        """Send a health check; None if that fails, or the last one has not been taken yet."""
        if self._probe is not None or self._proxy_end is None:
            return None
        taken: asyncio.Future[None] = self._loop.create_future()
        try:
            send(self._proxy_end, PROBE, (sock.fileno(),))
        except OSError:
            return None
        self._sent.append(taken)
        self._probe = taken
        if self._unused_credits:
            self._apply_credits(0)
        return taken

    def oldest_sent_at(self) -> float:
        """When the oldest connection in flight was sent; NEVER if there is none."""
        return next((sent for sent in self._sent if isinstance(sent, float)), NEVER)

    # -- from the worker

    def reclaim(self) -> list[int]:
        """Read back what the worker has not taken, and settle the account; returns descriptors."""
        unread: list[int] = []
        read_back = 0
        while self._worker_end is not None and (received := self._receive_back()) is not None:
            read_back += len(received[0])
            kinds, fds = received
            if kinds.startswith(CLIENT):
                unread += fds
            else:
                for fd in fds:
                    os.close(fd)
        # Read reports only now. A worker sends a credit before it takes a connection, so what it
        # took before we could read it back is credited.
        self.poll_reports()
        unread += self._unsent
        self._unsent = []
        counters, in_flight = self._counters, self.in_flight
        requeued = min(len(unread), in_flight)
        counters.handoffs["requeued"] += requeued
        counters.handoffs["lost"] += in_flight - requeued
        counters.in_flight -= in_flight
        self._fd_budget.in_flight -= in_flight
        # The credit for one came, but we have read it first: the worker never had it.
        credited = min(len(unread) - requeued, self.open)
        self.open -= credited
        counters.opened -= credited
        self.member.active -= in_flight + credited
        late = min(read_back, len(self._sent))
        self._late_credits += late
        self._unused_credits += read_back - late
        self.in_flight = 0
        self._sent.clear()
        self._finish_probe(taken=False)
        return unread

    def _receive_back(self) -> tuple[bytes, Sequence[int]] | None:
        assert self._worker_end is not None
        try:
            received = receive(self._worker_end)
        except OSError:
            return None
        # A worker can shut down its end for us too; an end of file is no message.
        return received if received is not None and received[0] else None

    def _readable(self) -> None:
        self.poll_reports()
        self._on_report(self)

    def poll_reports(self) -> bool:
        """Read the reports that have come so far; False if there are none."""
        if self._proxy_end is None or self.broken:
            return False
        try:
            report = read_reports(self._proxy_end)
        except OSError:
            # It has closed its end or sent an invalid report. Its process ends, or has to.
            self.set_watched(False)
            self.broken = True
            return True
        if report is not None:
            self._apply_credits(report.taken)
            ended = min(report.ended, self.open)
            self.open -= ended
            self.member.active -= ended
            self._counters.opened -= ended
        return report is not None

    def _apply_credits(self, taken: int) -> None:
        credit = taken + self._unused_credits
        used = min(credit, len(self._sent))
        # Credits that nothing accounts for are ignored.
        unused = credit - used
        late = min(max(unused - self._unused_credits, 0), self._late_credits)
        self._late_credits -= late
        self._unused_credits = min(unused, self._unused_credits + late)
        counted = 0
        for _ in range(used):
            if isinstance(self._sent.popleft(), float):
                counted += 1
            else:
                self._finish_probe(taken=True)
        self.in_flight -= counted
        self.open += counted
        counters = self._counters
        counters.in_flight -= counted
        self._fd_budget.in_flight -= counted
        counters.opened += counted
        counters.handoffs["accepted"] += counted
        counters.worker_connections[self.member] += counted

    def _finish_probe(self, *, taken: bool) -> None:
        if self._probe is None:
            return
        future, self._probe = self._probe, None
        if not future.done():
            if taken:
                future.set_result(None)
            else:
                future.cancel()

    def _close_end(self, sock: socket.socket | None) -> None:
        if sock is not None:
            self._loop.remove_reader(sock)
            sock.close()
