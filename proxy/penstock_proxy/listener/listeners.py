"""The listeners of one service in one proxy: its own, and those taken over from other proxies.

Owns: the acceptors. The kernel distributes clients over the listeners of all proxies. While a
proxy is away, the others take over its listeners and accept from them too. All acceptors ask
the same `AdmissionControl` before they accept, and deliver to the same function.

See docs/decisions/0006-one-listener-for-each-proxy.md.
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
    """Decides whether there is room, and what is done when there is none."""

    def room(self) -> int:
        """How many more connections may be accepted; below 1: none."""
        raise NotImplementedError

    def no_room(self) -> None:
        """A connection waits, and there is no room for it."""
        raise NotImplementedError

    def resources_exhausted(self) -> None:
        """An accept failed, because the system has no descriptor or no memory."""
        raise NotImplementedError

    def refuse(self, acceptor: Acceptor, fault: Fault) -> bool:
        """Accept one from the queue and refuse it. False: there is none, or that failed."""
        raise NotImplementedError


class Listeners:
    """`fds`: the descriptors of the service's own listeners, which this owns from now on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fds: tuple[int, ...],
        fd_budget: FdBudget,
        overload: AdmissionControl,
        max_wait_s: float,
        deliver: Callable[[Stream, Any], None],
        on_batch: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._on_batch = on_batch
        self._fd_budget = fd_budget
        self._overload = overload
        self._max_wait_s = max_wait_s
        self._deliver = deliver
        self._own = [self._acceptor(socket.socket(fileno=fd)) for fd in fds]
        self._taken_over: dict[int, Acceptor] = {}
        """By the number of the proxy that is away."""
        self._draining = False

    def start(self) -> None:
        """Begin to accept."""
        for acceptor in self._all():
            acceptor.start()

    def resume(self) -> None:
        """There may be room again: accept."""
        for acceptor in self._all():
            acceptor.resume()

    @property
    def is_accepting(self) -> bool:
        """Do its own listeners accept, and did the last accept not fail?"""
        return all(one.is_reading and not one.is_exhausted for one in self._own)

    @property
    def is_exhausted(self) -> bool:
        """The last accept of one of them failed for want of a descriptor or of memory."""
        return any(one.is_exhausted for one in self._all())

    @property
    def waiting(self) -> int:
        """How many clients wait to be accepted, and are not because there is no room."""
        return sum(one.waiting for one in self._all())

    def refuse_overdue(self, now: float, fault: Fault, max_refused: int) -> int:
        """Refuse those that have waited too long; returns how many."""
        refused = 0
        for acceptor in self._all():
            for _ in range(min(acceptor.overdue(now), max_refused - refused)):
                if not self._overload.refuse(acceptor, fault):
                    break
                refused += 1
        return refused

    def drain(self) -> None:
        """Accept what waits, and nothing after it; refuse what cannot be accepted."""
        self._draining = True
        for acceptor in self._all():
            acceptor.drain(partial(self._overload.refuse, acceptor, NO_DESCRIPTORS))

    def take_over(self, proxy: int, listener: socket.socket) -> None:
        """That proxy is away: accept from its listener too, until it is given back."""
        self.give_back(proxy)
        if self._draining:
            listener.close()
            return
        acceptor = self._taken_over[proxy] = self._acceptor(listener)
        self._fd_budget.listeners += 1
        acceptor.start()

    def give_back(self, proxy: int) -> None:
        """That proxy is back, and accepts from its listener itself, also what waits there."""
        if (acceptor := self._taken_over.pop(proxy, None)) is not None:
            acceptor.close()
            self._fd_budget.listeners -= 1

    def _all(self) -> Iterator[Acceptor]:
        yield from self._own
        yield from self._taken_over.values()

    def _acceptor(self, listener: socket.socket) -> Acceptor:
        return Acceptor(
            self._loop,
            listener,
            self._overload.room,
            self._deliver,
            self._overload.no_room,
            self._overload.resources_exhausted,
            self._max_wait_s,
            self._on_batch,
        )


def port_of(fds: tuple[int, ...]) -> int:
    """The port of the first listener; 0 if it is a unix socket, or there is none."""
    if not fds:
        return 0
    sock = socket.socket(fileno=fds[0])
    try:
        name = sock.getsockname()
    finally:
        sock.detach()
    return int(name[1]) if isinstance(name, tuple) else 0
