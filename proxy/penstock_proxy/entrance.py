"""What happens to an accepted connection before it is delivered: its PROXY header is read.

Owns: connections that have not said yet whose they are, from accepting until that is known
or they are turned away, and their descriptors. Must not know: what becomes of one that has
entered (`Gate`).

It works on the bare descriptor. What a transport has read nobody can put back, and what
follows the header is not ours to read: it may be the first byte of a TLS handshake, of a
relayed stream, or of a request that the worker reads itself. So bytes are looked at first,
and taken as far as they are the header's. A service without anything to find out here never
makes an entrance.

Nobody in here makes us spin, however slowly the bytes come. What has been looked at, and is
part of a header that is not complete, is taken, so the descriptor is readable again only
when there is more. Where nothing may be taken, the kernel is told to wake us for more than
that (SO_RCVLOWAT); unix sockets know no such mark, so there the next tick looks.
"""

import asyncio
import select
import socket
from typing import Any, Final, Literal, NamedTuple, Protocol

from penstock_proxy.deadlines import NEVER, Deadlines
from penstock_proxy.errors import CLIENT_GONE, PROXY_HEADER, PROXY_UNTRUSTED, Fault
from penstock_worker.peers import Trusted, peer_address
from penstock_worker.proxy_protocol import LARGEST, Header, HeaderError, Place, parse
from penstock_worker.streams import Stream

_LOOK: Final = 512
"""Bytes looked at at once. A header is smaller than the smallest segment (§2), so that is all
of nearly every one; a longer one takes another turn."""
_STOPPING_S: Final = 1.0
"""For one that is here when we stop."""
# Plain numbers: Python 3.11 takes longer to find a member of an enum than the kernel to look.
# The kernel accepts sockets that block, whatever the listener does.
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_SOCKET: Final = int(socket.SOL_SOCKET)
_LOWAT: Final = int(socket.SO_RCVLOWAT)
_STREAM: Final = int(socket.SOCK_STREAM)

Reading = Literal["take", "look", "no"]
"""What is done with a header: taken off the connection; looked at, because whoever gets the
connection reads it; or not even that, because nobody here needs to know the address."""


class Visitor(NamedTuple):
    """Whose connection has entered."""

    peer: Any
    """As `accept` says it: the true one, if a proxy has said who that is."""
    destination: Place = None
    """What the client connected to, if a proxy has said it."""
    believed: bool = True
    """May what it says of others be believed, if it is one of `trusted_proxies`? Not what a
    proxy passes on for somebody whom it cannot name."""


class Gate(Protocol):
    """Whose entrance it is. Each connection arrives, and then enters or is turned away."""

    def arrived(self) -> None:
        """There is one more descriptor."""

    def entered(self, stream: Stream, visitor: Visitor) -> None:
        """Owns the descriptor from now on."""

    def turned_away(self, address: str, fault: Fault | None, reason: str) -> None:
        """It is closed; no fault: it left without a word."""


class Entrance:
    """All who stand in the entrance of one service."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        head_s: float,
        trusted: Trusted,
        gate: Gate,
        *,
        reading: Reading,
    ) -> None:
        self.loop = loop
        self.deadlines = deadlines
        self.gate = gate
        self.head_s = head_s
        self.takes = reading == "take"
        self.inside: set[_Arrival] = set()
        self._reads = reading != "no"
        self._trusted = trusted

    def accepted(self, stream: Stream, peer: Any) -> None:
        """Let a connection enter as soon as its header is there."""
        self.gate.arrived()
        address = peer_address(peer)
        if address not in self._trusted:
            stream.close()
            self.gate.turned_away(address, PROXY_UNTRUSTED, "it is none of trusted_proxies")
        elif self._reads:
            _Arrival(self, stream, peer).begin()
        else:
            self.gate.entered(stream, Visitor(peer))

    def drain(self) -> None:
        """Who is inside gets a moment, and no more."""
        self.head_s = min(self.head_s, _STOPPING_S)
        for arrival in self.inside:
            arrival.hurry(self.head_s)


class _Arrival:
    """One connection that has not entered."""

    __slots__ = (
        "_entrance", "_family", "_got", "_peer", "_reading", "_seen", "_sock", "_until",
        "bucket", "deadline",
    )  # fmt: skip

    def __init__(self, entrance: Entrance, stream: Stream, peer: Any) -> None:
        self._entrance = entrance
        self._peer = peer
        self._family = stream.family
        # All three said, so that none is asked of the kernel.
        self._sock = socket.socket(stream.family, _STREAM, 0, fileno=stream.fileno())
        stream.given()
        self._got = b""
        """Taken, and part of a header that has not all come."""
        self._seen = 0
        """Looked at, and left where it is."""
        self._reading = False
        self._until = NEVER
        self.deadline = NEVER
        self.bucket = NEVER

    def begin(self) -> None:
        """Look at once: most often the header has come with the connection."""
        entrance = self._entrance
        entrance.inside.add(self)
        entrance.deadlines.arm_in(self, entrance.head_s)
        self._until = self.deadline
        self._look()

    def hurry(self, seconds: float) -> None:
        """No more time than this."""
        deadlines = self._entrance.deadlines
        self._until = min(self._until, deadlines.now + seconds)
        deadlines.arm(self, self._until)

    def expired(self, now: float) -> None:
        """The time is over, or it is time for another look."""
        if now >= self._until:
            self._turn_away(PROXY_HEADER, "its PROXY header took too long")
        else:
            self._look()

    def _look(self) -> None:
        try:
            header = self._header()
        except BlockingIOError:
            self._await()
        except HeaderError as error:
            self._turn_away(PROXY_HEADER, str(error))
        except OSError as error:
            self._turn_away(CLIENT_GONE if self._got else None, error.strerror or "")
        else:
            if header is not None:
                self._enter(header)

    def _header(self) -> Header | None:
        """All of it, taken if it is to be; None if more has to come."""
        takes = self._entrance.takes
        seen = self._sock.recv(_LOOK if takes else LARGEST, _PEEK)
        if not seen:
            if self._got:
                raise HeaderError("its PROXY header broke off")
            raise ConnectionAbortedError
        found = parse(self._got + seen)
        # What was seen is there to be taken.
        if isinstance(found, Header):
            if takes:
                self._sock.recv(found.size - len(self._got))
            return found
        if takes:
            self._got += self._sock.recv(len(seen))
            self._await()
        else:
            self._await_beyond(len(seen), found)
        return None

    def _await(self) -> None:
        if not self._reading:
            self._reading = True
            self._entrance.loop.add_reader(self._sock, self._look)

    def _await_beyond(self, seen: int, lacking: int) -> None:
        """Look again when there is more than has been seen."""
        deadlines = self._entrance.deadlines
        if seen > self._seen:
            self._seen = seen
            self._sock.setsockopt(_SOCKET, _LOWAT, seen + lacking)
            self._await()
            deadlines.arm(self, self._until)
        elif _has_ended(self._sock):
            raise HeaderError("its PROXY header broke off")
        else:
            self._pause()
            deadlines.arm(self, min(deadlines.now, self._until))

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._entrance.loop.remove_reader(self._sock)

    def _enter(self, header: Header) -> None:
        if self._seen:
            self._sock.setsockopt(_SOCKET, _LOWAT, 1)
        self._leave()
        stream = Stream(self._sock.detach(), self._family)
        self._entrance.gate.entered(stream, visitor(header, self._peer))

    def _turn_away(self, fault: Fault | None, reason: str) -> None:
        self._leave()
        self._sock.close()
        self._entrance.gate.turned_away(peer_address(self._peer), fault, reason)

    def _leave(self) -> None:
        self._pause()
        self._entrance.deadlines.disarm(self)
        self._entrance.inside.discard(self)


def _has_ended(sock: socket.socket) -> bool:
    """Will nothing come any more? What is only looked at hides the end behind it."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def visitor(header: Header, peer: Any) -> Visitor:
    """Whose connection it is that came from `peer` with this header."""
    if isinstance(header.source, tuple):
        return Visitor(header.source, header.destination)
    # A unix socket at the far end, like nothing at all, is no address to say.
    return Visitor(peer, None, header.local)
