"""Where the clients of one service come in: its own listeners, and those it covers for.

Owns the acceptors of one service in one proxy. Another proxy that is away has a share of the
clients too, which the kernel deals to its listener; as long as it is away this one accepts
from there as well. All of them ask the same question before they accept, and deliver to the
same place.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from penstock_proxy.errors import NO_DESCRIPTORS, Fault
from penstock_proxy.listener.acceptor import Acceptor
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.net.stream import Stream


class AdmissionControl:
    """Who knows whether there is room, and what to do when there is none."""

    def room(self) -> int:
        """How many more may be accepted? Below 1: nobody."""
        raise NotImplementedError

    def crowded(self) -> None:
        """Somebody waits for whom there is no room."""
        raise NotImplementedError

    def exhausted(self) -> None:
        """An accept failed for want of a descriptor, or of memory."""
        raise NotImplementedError

    def refuse(self, acceptor: Acceptor, fault: Fault) -> bool:
        """Take one off the queue and tell it no. False: there is none, or no way to."""
        raise NotImplementedError


class Listeners:
    """`fds` are the numbers of the service's own listeners, which are adopted."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fds: tuple[int, ...],
        fd_budget: FdBudget,
        overload: AdmissionControl,
        patience_s: float,
        deliver: Callable[[Stream, Any], None],
        on_batch: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._on_batch = on_batch
        self._fd_budget = fd_budget
        self._overload = overload
        self._patience_s = patience_s
        self._deliver = deliver
        self._own = [self._acceptor(socket.socket(fileno=fd)) for fd in fds]
        self._covered: dict[int, Acceptor] = {}
        """By number of the proxy that is away."""
        self._draining = False

    def start(self) -> None:
        """The listeners listen: take what comes."""
        for acceptor in self._all():
            acceptor.start()

    def resume(self) -> None:
        """There may be room again."""
        for acceptor in self._all():
            acceptor.resume()

    @property
    def is_accepting(self) -> bool:
        """Are its own listeners read from, and does that bring anybody in?"""
        return all(one.is_reading and not one.is_exhausted for one in self._own)

    def look(self, now: float, fault: Fault, most: int) -> int:
        """Tell those who have waited too long; returns how many that were."""
        told = 0
        for acceptor in self._all():
            for _ in range(min(acceptor.overdue(now), most - told)):
                if not self._overload.refuse(acceptor, fault):
                    break
                told += 1
        return told

    def drain(self) -> None:
        """Take what waits, and nothing after it; who cannot be taken is told so."""
        self._draining = True
        for acceptor in self._all():
            acceptor.drain(partial(self._overload.refuse, acceptor, NO_DESCRIPTORS))

    def cover(self, proxy: int, listener: socket.socket) -> None:
        """That proxy is away: accept from its listener too."""
        self.uncover(proxy)
        if self._draining:
            listener.close()
            return
        acceptor = self._covered[proxy] = self._acceptor(listener)
        self._fd_budget.listeners += 1
        acceptor.start()

    def uncover(self, proxy: int) -> None:
        """That proxy is back, and takes what waits at its listener."""
        if (acceptor := self._covered.pop(proxy, None)) is not None:
            acceptor.close()
            self._fd_budget.listeners -= 1

    def _all(self) -> Iterator[Acceptor]:
        yield from self._own
        yield from self._covered.values()

    def _acceptor(self, listener: socket.socket) -> Acceptor:
        return Acceptor(
            self._loop,
            listener,
            self._overload.room,
            self._deliver,
            self._overload.crowded,
            self._overload.exhausted,
            self._patience_s,
            self._on_batch,
        )


def port_of(fds: tuple[int, ...]) -> int:
    """Where clients connect, by one of these listeners; 0 for a unix socket, and for none."""
    if not fds:
        return 0
    sock = socket.socket(fileno=fds[0])
    try:
        name = sock.getsockname()
    finally:
        sock.detach()
    return int(name[1]) if isinstance(name, tuple) else 0
