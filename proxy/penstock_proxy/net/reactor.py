"""Which connections are ready, for all connections of a proxy at once.

Owns: one epoll object, who is called when one of its descriptors is ready, and what is left
to do when all of those have been called: what they have written goes out then, and
connections that were lost are told so, never in the middle of another call.

The event loop of the process sees it as one descriptor. A connection of the loop's own
would cost five more system calls to make, two trips through the loop to be told of, and
four times the memory (measured; a connection per request: 104 µs of CPU against 75).
Everything else of a proxy, timers, channel and checks, stays with the loop.

It must not know: protocols, HTTP, what a connection is for (`socket_transport` does).
"""

import asyncio
import logging
import select
from collections.abc import Callable
from typing import Final, Protocol

IN: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI
"""Something to read, or the other side has said all that it will."""
URGENT: Final = select.EPOLLPRI
"""A mark in what is to be read: one read goes no further."""
ENDED: Final = select.EPOLLRDHUP
BROKEN: Final = select.EPOLLERR
OUT: Final = select.EPOLLOUT

_MOST: Final = 256
"""Events a look."""
_ROUNDS: Final = 8
"""Looks a turn of the loop: it has more to do than this."""
_BUSY: Final = 4
"""With so many events there are likely to be more by the time they are dealt with."""

_log = logging.getLogger("penstock.proxy")


class Ready(Protocol):
    """Whoever has a descriptor here."""

    def ready(self, events: int) -> None:
        """It is ready for `events`, or has failed (EPOLLERR, EPOLLHUP come unasked)."""

    def send_held(self) -> None:
        """All have been called. Only those in `holding` are asked."""

    def broken(self) -> None:
        """One of these raised what nobody expected. It is not called again."""


class Reactor:
    """Made for a loop; `close` is for tests: in a proxy it lives as long as the process."""

    __slots__ = ("_epoll", "_later", "_loop", "_owners", "_scheduled", "holding", "turning")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll: select.epoll | None = None
        self._owners: dict[int, Ready] = {}
        self._later: list[Callable[[], None]] = []
        self._scheduled = False
        self.turning = False
        """Those that are ready are being called; `holding` will be."""
        self.holding: list[Ready] = []
        """Those who have something to send when that is done."""

    def watch(self, fd: int, owner: Ready, events: int) -> None:
        """Call `owner.ready` whenever `fd` is ready for `events`, until `forget`."""
        epoll = self._epoll
        if epoll is None:
            epoll = self._epoll = select.epoll()
            self._loop.add_reader(epoll.fileno(), self._turn)
        epoll.register(fd, events)
        self._owners[fd] = owner

    def change(self, fd: int, events: int) -> None:
        """Look for other events from now on."""
        assert self._epoll is not None
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Before it is closed, or when nothing is waited for: a failure would be told for ever."""
        assert self._epoll is not None
        del self._owners[fd]
        self._epoll.unregister(fd)

    def closing(self, fd: int) -> None:
        """It is closed in this very moment, which makes the kernel forget it."""
        self._owners.pop(fd, None)

    def later(self, callback: Callable[[], None]) -> None:
        """Call it when all that are ready now have been called."""
        self._later.append(callback)
        if not (self.turning or self._scheduled):
            self._scheduled = True
            self._loop.call_soon(self._settle)

    def close(self) -> None:
        self._settle()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _turn(self) -> None:
        assert self._epoll is not None
        poll = self._epoll.poll
        self.turning = True
        try:
            for _ in range(_ROUNDS):
                found = poll(0, _MOST)
                self._call(found)
                while self.holding or self._later:
                    self._send()
                    self._settle()
                if len(found) < _BUSY:
                    break
        finally:
            self.turning = False

    def _call(self, found: list[tuple[int, int]]) -> None:
        owners = self._owners
        for fd, events in found:
            owner = owners.get(fd)
            if owner is None:
                # Another one's call has let go of it.
                continue
            try:
                owner.ready(events)
            except Exception:  # noqa: BLE001 — whatever it is, it is one connection's
                _log.exception("a connection could not be handled")
                owner.broken()

    def _send(self) -> None:
        holding, self.holding = self.holding, []
        for owner in holding:
            try:
                owner.send_held()
            except Exception:  # noqa: BLE001 — whatever it is, it is one connection's
                _log.exception("a connection could not be written to")
                owner.broken()

    def _settle(self) -> None:
        self._scheduled = False
        # What is called may add to it.
        for callback in self._later:
            try:
                callback()
            except Exception:  # noqa: BLE001 — whatever it is, it is one connection's
                _log.exception("the end of a connection could not be handled")
        self._later.clear()
