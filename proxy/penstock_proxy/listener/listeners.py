"""The listeners of one service in one proxy: its own, and those taken over from other proxies.

Owns: the acceptors, and the count of their descriptors. The kernel distributes clients over the
listeners of all proxies. While a proxy is away, the others take over its listeners and accept from
them too. All acceptors ask the same `AdmissionControl` before they accept, and deliver to the same
function.

A service that gets another address has both for a while: a listener is added, and later those
before it are closed. A connection that was accepted from one of these lives on.

See docs/decisions/0006-one-listener-for-each-proxy.md.
"""

import asyncio
import os
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
        self._started = False
        self._draining = False
        self._own = [self._acceptor(socket.socket(fileno=fd)) for fd in fds]
        """The oldest first."""
        self._taken_over: dict[int, list[Acceptor]] = {}
        """By the number of the proxy that is away; the oldest first."""

    def configure(self, deliver: Callable[[Stream, Any], None], max_wait_s: float) -> None:
        """Set where connections go from now on, and how long one may wait to be accepted."""
        self._deliver = deliver
        self._max_wait_s = max_wait_s
        for acceptor in self._all():
            acceptor.configure(deliver, max_wait_s)

    def start(self) -> None:
        """Begin to accept, also from listeners that are added later."""
        if not self._started:
            self._started = True
            for acceptor in self._all():
                acceptor.start()

    def add(self, listener: socket.socket) -> None:
        """Accept from this socket as well; it is our own from now on, and the newest, also if we
        had it before."""
        had = next((one for one in self._own if _are_the_same(one.listener, listener)), None)
        if had is not None:
            self._own.append(self._own.pop(self._own.index(had)))
        if had is not None or self._draining:
            listener.close()
            return
        acceptor = self._acceptor(listener)
        self._own.append(acceptor)
        if self._started:
            acceptor.start()

    def keep_newest(self, count: int) -> Iterator[None]:
        """Close all of its own but the newest. What waits in their queues is accepted first, one
        in each step of what is returned.

        And so those of proxies that are away, if they are bound to an address that none of its own
        has any more: one that is away for ever gets no newer ones.
        """
        stale = self._own[: max(0, len(self._own) - count)]
        del self._own[: len(stale)]
        kept = [one.listener.getsockname() for one in self._own]
        for proxy, acceptors in tuple(self._taken_over.items()):
            gone = [one for one in acceptors if one.listener.getsockname() not in kept]
            self._taken_over[proxy] = [one for one in acceptors if one not in gone]
            stale += gone
        return self._draining_of(stale)

    def resume(self) -> None:
        """There may be room again: accept."""
        for acceptor in self._all():
            acceptor.resume()

    @property
    def is_accepting(self) -> bool:
        """Do its own listeners accept, and did the last accept not fail?"""
        own = self._own
        return bool(own) and all(one.is_reading and not one.is_exhausted for one in own)

    @property
    def is_exhausted(self) -> bool:
        """The last accept of one of them failed for want of a descriptor or of memory."""
        return any(one.is_exhausted for one in self._all())

    @property
    def waiting(self) -> int:
        """How many clients wait to be accepted, and are not because there is no room."""
        return sum(one.waiting for one in self._all())

    def refusing_overdue(self, now: float, fault: Fault, max_refused: int) -> Iterator[None]:
        """Refuse those that have waited too long, one in each step."""
        left = max_refused
        for acceptor in self._all():
            for _ in range(min(acceptor.overdue(now), left)):
                if not self._overload.refuse(acceptor, fault):
                    break
                left -= 1
                yield

    def drain(self) -> None:
        """`draining`, all of it at once."""
        for _ in self.draining():
            pass

    def draining(self) -> Iterator[None]:
        """Accept what waits, one in each step, and nothing after it; refuse what cannot be
        accepted."""
        self._draining = True
        acceptors = [*self._all()]
        self._own.clear()
        self._taken_over.clear()
        return self._draining_of(acceptors)

    def take_over(self, proxy: int, listener: socket.socket) -> None:
        """That proxy is away: accept from this listener of it too, until it is given back."""
        taken = self._taken_over.get(proxy, [])
        if self._draining or any(_are_the_same(one.listener, listener) for one in taken):
            listener.close()
            return
        acceptor = self._acceptor(listener)
        self._taken_over[proxy] = [*taken, acceptor]
        if self._started:
            acceptor.start()

    def give_back(self, proxy: int) -> None:
        """That proxy is back, and accepts from its listeners itself, also what waits there."""
        for acceptor in self._taken_over.pop(proxy, ()):
            acceptor.close()
            self._fd_budget.listeners -= 1

    def _draining_of(self, acceptors: list[Acceptor]) -> Iterator[None]:
        for acceptor in acceptors:
            yield from acceptor.draining(partial(self._overload.refuse, acceptor, NO_DESCRIPTORS))
            self._fd_budget.listeners -= 1

    def _all(self) -> Iterator[Acceptor]:
        yield from tuple(self._own)
        for acceptors in tuple(self._taken_over.values()):
            yield from acceptors

    def _acceptor(self, listener: socket.socket) -> Acceptor:
        self._fd_budget.listeners += 1
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

    @property
    def port(self) -> int:
        """The port of its newest listener; 0 if that is a unix socket, or there is none."""
        name = self._own[-1].listener.getsockname() if self._own else ""
        return int(name[1]) if isinstance(name, tuple) else 0


def _are_the_same(one: socket.socket, other: socket.socket) -> bool:
    """Are these two descriptors of one socket?"""
    return os.path.sameopenfile(one.fileno(), other.fileno())
