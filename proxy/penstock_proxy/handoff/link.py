"""The proxy's end of the link to one worker process: what is on its way, and what it has.

Owns the account. Every connection that is sent ends as exactly one of *accepted* (the worker
said so), *requeued* (read back, to go to another) or *lost* (gone without either, which no
worker of ours can bring about); until then it is in flight. Accepted ones are open until the
worker says that they ended, or its process does.

What a worker says is read when somebody needs to know it: being woken for every credit costs
more than the credit. `watch` is for when there is nothing else to do but wait for one.

It does not know who is picked, or why something is taken back: that is `dispatcher`.
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
    """One process's link. `on_heard(link)` is called after each word of its worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int,
        member: Member,
        counters: ServiceCounters,
        fd_budget: FdBudget,
        on_heard: Callable[["Link"], None],
    ) -> None:
        self.number = number
        self.member = member
        self.in_flight = 0
        """Clients' connections."""
        self.open = 0
        self.stuck = False
        """It did not take what was sent in time, and has not said a word since."""
        self.broken = False
        """It says what no worker of ours says; nothing is sent any more."""
        self._loop = loop
        self._counters = counters
        self._fd_budget = fd_budget
        self._on_heard = on_heard
        self._sent: deque[float | asyncio.Future[None]] = deque()
        """In flight, in order: when a client's connection was sent, or, for a health check,
        what is done when it is taken. Such a one counts for nothing else."""
        self._unsent: list[int] = []
        """In flight too, and part of the next message."""
        self._ahead = 0
        """Announced, and then taken back by us: the worker takes as many of the next ones
        without a word."""
        self._recalled = 0
        """Taken back and not announced, as far as was heard: that word may be on its way."""
        self._proxy: socket.socket | None = None
        self._worker: socket.socket | None = None
        self._probe: asyncio.Future[None] | None = None
        self._watched = False

    # What it is made of.

    def has(self, end: str, sock: socket.socket) -> None:
        """Adopt one end: "proxy" is ours, "worker" a copy of the worker's."""
        if end == "proxy":
            self._drop(self._proxy)
            self._proxy, self._watched = sock, False
        else:
            self._drop(self._worker)
            self._worker = sock

    @property
    def is_whole(self) -> bool:
        return self._proxy is not None and self._worker is not None and not self.broken

    def close(self) -> None:
        """Let go of both ends; what is still in flight has to be taken back before."""
        self._counters.opened -= self.open
        self.member.active -= self.open
        self.open = 0
        self._drop(self._proxy)
        self._drop(self._worker)
        self._proxy = self._worker = None

    def descriptors(self) -> int:
        return (self._proxy is not None) + (self._worker is not None)

    @property
    def has_unsent(self) -> bool:
        """Something was put that is not sent yet."""
        return bool(self._unsent)

    @property
    def is_probed(self) -> bool:
        """A health check has not been taken yet."""
        return self._probe is not None

    def watch(self, wanted: bool) -> None:
        """Whether each word of the worker wakes us."""
        if wanted == self._watched or self._proxy is None or self.broken:
            return
        self._watched = wanted
        if wanted:
            self._loop.add_reader(self._proxy, self._readable)
        else:
            self._loop.remove_reader(self._proxy)

    # Down.

    def put(self, fd: int) -> bool:
        """Let a client's connection be part of the next message; False if that is full now.

        It is in flight from now on. Whoever does this has to `flush`.
        """
        self._unsent.append(fd)
        self._counted(1)
        return len(self._unsent) < MAX_PER_MESSAGE

    def flush(self, now: float) -> list[int]:
        """Send what was put and close our copies; what it cannot take now is in flight no more."""
        fds = self._unsent
        if not fds:
            return fds
        self._unsent = []
        assert self._proxy is not None
        try:
            send(self._proxy, CLIENT, fds)
        except OSError:
            self._counted(-len(fds))
            return fds
        for fd in fds:
            os.close(fd)
            self._sent.append(now)
        if self._ahead:
            self._credit(0)
        return []

    def _counted(self, more: int) -> None:
        self.in_flight += more
        self.member.active += more
        self._counters.in_flight += more
        self._fd_budget.in_flight += more

    def probe(self, sock: socket.socket) -> "asyncio.Future[None] | None":
        """Send a health check; None if it cannot, or the last one has not been taken yet."""
        if self._probe is not None or self._proxy is None:
            return None
        taken: asyncio.Future[None] = self._loop.create_future()
        try:
            send(self._proxy, PROBE, (sock.fileno(),))
        except OSError:
            return None
        self._sent.append(taken)
        self._probe = taken
        if self._ahead:
            self._credit(0)
        return taken

    def oldest(self) -> float:
        """When the connection that waits longest was sent; NEVER if there is none."""
        return next((sent for sent in self._sent if isinstance(sent, float)), NEVER)

    # Up.

    def take_back(self) -> list[int]:
        """Read back what the worker has not taken, and settle the account; descriptors."""
        found: list[int] = []
        read_back = 0
        while self._worker is not None and (got := self._received()) is not None:
            read_back += len(got[0])
            kinds, fds = got
            if kinds.startswith(CLIENT):
                found += fds
            else:
                for fd in fds:
                    os.close(fd)
        # After it: whatever the worker has taken in the meantime, it has announced.
        self.hear()
        found += self._unsent
        self._unsent = []
        counters, waiting = self._counters, self.in_flight
        requeued = min(len(found), waiting)
        counters.handoffs["requeued"] += requeued
        counters.handoffs["lost"] += waiting - requeued
        counters.in_flight -= waiting
        self._fd_budget.in_flight -= waiting
        # It announced one that we were quicker to read: it never had it.
        announced = min(len(found) - requeued, self.open)
        self.open -= announced
        counters.opened -= announced
        self.member.active -= waiting + announced
        unheard = min(read_back, len(self._sent))
        self._recalled += unheard
        self._ahead += read_back - unheard
        self.in_flight = 0
        self._sent.clear()
        self._settle_probe(taken=False)
        return found

    def _received(self) -> tuple[bytes, Sequence[int]] | None:
        assert self._worker is not None
        try:
            got = receive(self._worker)
        except OSError:
            return None
        # A worker can shut its end down for us too; the end is no message.
        return got if got is not None and got[0] else None

    def _readable(self) -> None:
        self.hear()
        self._on_heard(self)

    def hear(self) -> bool:
        """Read what the worker has said so far; False if that is nothing."""
        if self._proxy is None or self.broken:
            return False
        try:
            report = read_reports(self._proxy)
        except OSError:
            # It closed its end, or says something else: its process ends, or has to.
            self.watch(False)
            self.broken = True
            return True
        if report is not None:
            self._credit(report.taken)
            ended = min(report.ended, self.open)
            self.open -= ended
            self.member.active -= ended
            self._counters.opened -= ended
        return report is not None

    def _credit(self, taken: int) -> None:
        credit = taken + self._ahead
        used = min(credit, len(self._sent))
        # No more than we have given it reason to say, whatever it says.
        unused = credit - used
        late = min(max(unused - self._ahead, 0), self._recalled)
        self._recalled -= late
        self._ahead = min(unused, self._ahead + late)
        counted = 0
        for _ in range(used):
            if isinstance(self._sent.popleft(), float):
                counted += 1
            else:
                self._settle_probe(taken=True)
        self.in_flight -= counted
        self.open += counted
        counters = self._counters
        counters.in_flight -= counted
        self._fd_budget.in_flight -= counted
        counters.opened += counted
        counters.handoffs["accepted"] += counted
        counters.worker_connections[self.member.slot] += counted

    def _settle_probe(self, *, taken: bool) -> None:
        if self._probe is None:
            return
        future, self._probe = self._probe, None
        if not future.done():
            if taken:
                future.set_result(None)
            else:
                future.cancel()

    def _drop(self, sock: socket.socket | None) -> None:
        if sock is not None:
            self._loop.remove_reader(sock)
            sock.close()
