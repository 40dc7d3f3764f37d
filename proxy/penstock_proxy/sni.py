"""TLS that is not ours: whose connection it is, by the name that its client asks for.

Owns connections whose ClientHello is looked at, from the moment they are let in until it is
known to which service they go, and their descriptors. Nothing is taken: that service, or its
worker, gets the connection as if nobody had looked. Must not know: what becomes of one then
(`Door`), or how a hello is read (`client_hello`).

Bytes that are no TLS and a hello without a name that is known go to the service itself. A
hello that is not complete wakes nobody until there is more of it (SO_RCVLOWAT); where the
kernel wakes us for the same bytes again, because their sender has left, the next tick looks.
"""

import asyncio
import socket
from typing import Final, Protocol

from penstock_proxy.client_hello import MAX_HELLO, HelloError, server_name
from penstock_proxy.deadlines import NEVER, Deadlines
from penstock_proxy.entrance import Visitor
from penstock_proxy.errors import HELLO_TIMEOUT, Fault
from penstock_proxy.server_names import ByName
from penstock_worker.peers import peer_address
from penstock_worker.streams import Stream

_STOPPING_S: Final = 1.0
"""For one that is here when we stop."""
# Plain numbers: Python 3.11 takes longer to find a member of an enum than the kernel to look.
# The kernel accepts sockets that block, whatever the listener does.
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_SOCKET: Final = int(socket.SOL_SOCKET)
_LOWAT: Final = int(socket.SO_RCVLOWAT)
_STREAM: Final = int(socket.SOCK_STREAM)


class Door(Protocol):
    """Where a connection may go: a service."""

    def routed(self, stream: Stream, visitor: Visitor) -> None:
        """Owns the descriptor from now on, and counts it."""


class Home(Protocol):
    """The service whose listener it came from, which has counted it."""

    def routed_away(self) -> None:
        """It goes to another one, or is its own and counted anew."""

    def turned_away(self, address: str, fault: Fault | None, reason: str) -> None:
        """It is closed; no fault: it left without a word."""


class Routes:
    """All connections of one service that are looked at."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        hello_s: float,
        doors: ByName[Door],
        home: Home,
    ) -> None:
        self.loop = loop
        self.deadlines = deadlines
        self.doors = doors
        self.home = home
        self.inside: set[_Looked] = set()
        self._hello_s = hello_s

    def accepted(self, stream: Stream, visitor: Visitor) -> None:
        """Send it on as soon as its name is known."""
        looked = _Looked(self, stream, visitor)
        self.inside.add(looked)
        looked.begin(self._hello_s)

    def drain(self) -> None:
        """Who is inside gets a moment, and no more."""
        self._hello_s = min(self._hello_s, _STOPPING_S)
        for looked in self.inside:
            looked.hurry(self._hello_s)


class _Looked:
    """One connection that belongs to nobody yet."""

    __slots__ = (
        "_family", "_reading", "_routes", "_seen", "_sock", "_until", "_visitor", "bucket",
        "deadline",
    )  # fmt: skip

    def __init__(self, routes: Routes, stream: Stream, visitor: Visitor) -> None:
        self._routes = routes
        self._visitor = visitor
        self._family = stream.family
        # All three said, so that none is asked of the kernel.
        self._sock = socket.socket(stream.family, _STREAM, 0, fileno=stream.fileno())
        stream.given()
        self._seen = 0
        """Bytes of a hello that is not complete."""
        self._reading = False
        self._until = NEVER
        self.deadline = NEVER
        self.bucket = NEVER

    def begin(self, seconds: float) -> None:
        """Look at once: most often the hello has come with the connection."""
        self._routes.deadlines.arm_in(self, seconds)
        self._until = self.deadline
        self._look()

    def hurry(self, seconds: float) -> None:
        """No more time than this."""
        deadlines = self._routes.deadlines
        self._until = min(self._until, deadlines.now + seconds)
        deadlines.arm(self, self._until)

    def expired(self, now: float) -> None:
        """The time is over, or it is time for another look."""
        if now >= self._until:
            self._turn_away(HELLO_TIMEOUT, "its TLS hello took too long")
        else:
            self._look()

    def _look(self) -> None:
        try:
            seen = self._sock.recv(MAX_HELLO, _PEEK)
        except BlockingIOError:
            self._await()
            return
        except OSError:
            self._turn_away(None, "")
            return
        if not seen:
            self._turn_away(None, "")
            return
        try:
            name = server_name(seen)
        except HelloError:
            name = ""
        if name is None:
            self._await_beyond(len(seen))
        else:
            self._go(name)

    def _await(self) -> None:
        if not self._reading:
            self._reading = True
            self._routes.loop.add_reader(self._sock, self._look)

    def _await_beyond(self, seen: int) -> None:
        """Look again when there is more than has been seen."""
        deadlines = self._routes.deadlines
        if seen > self._seen:
            self._seen = seen
            self._sock.setsockopt(_SOCKET, _LOWAT, seen + 1)
            self._await()
            deadlines.arm(self, self._until)
        else:
            self._pause()
            deadlines.arm(self, min(deadlines.now, self._until))

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._routes.loop.remove_reader(self._sock)

    def _go(self, name: str) -> None:
        if self._seen:
            self._sock.setsockopt(_SOCKET, _LOWAT, 1)
        self._leave()
        stream = Stream(self._sock.detach(), self._family)
        door = self._routes.doors.of(name)
        self._routes.home.routed_away()
        door.routed(stream, self._visitor)

    def _turn_away(self, fault: Fault | None, reason: str) -> None:
        self._leave()
        self._sock.close()
        self._routes.home.turned_away(peer_address(self._visitor.peer), fault, reason)

    def _leave(self) -> None:
        self._pause()
        self._routes.deadlines.disarm(self)
        self._routes.inside.discard(self)
