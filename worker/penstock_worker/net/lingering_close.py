"""Closing a connection whose client still sends, so that the client gets its response.

If a socket is closed while bytes of the client are unread, the kernel resets the connection, and
the client may lose a response that it has not read yet. So a lingering close sends the response,
shuts down its sending half, and reads what the client still sends before it closes: as long as
something comes, and for a limited time. How much comes has no limit, because nothing is kept.

Owns that, for connections that are refused and for those that a server closes; and a spare
descriptor with which a connection can be refused while no other descriptor is free. Must not know
why a connection is closed, nor what the response means.
"""

import asyncio
import os
import socket
import struct
from contextlib import suppress
from typing import Any, Final

_READ_SIZE: Final = 64 << 10
_MAX_READS: Final = 16
"""Reads at one time. The rest is for the next turn of the loop."""
IDLE_S: Final = 5.0
"""A client that sends nothing for so long has nothing more to send. nginx: lingering_timeout."""
TOTAL_S: Final = 30.0
"""A client that sends for longer has had its answer for so long. nginx: lingering_time."""
MAX_LINGERING: Final = 64
"""Connections of one worker that linger, at most: beyond, the oldest is closed."""
_NOW: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_LINGER: Final = struct.Struct("ii")
_STREAM: Final = int(socket.SOCK_STREAM)
_UNACKED: Final = slice(24, 28)
"""`tcpi_unacked` of tcp(7)'s `tcp_info`; for a listening socket the length of its queue."""
_MANY: Final = 1 << 16


def accept_queue_length(listener: socket.socket) -> int:
    """How many connections wait to be accepted. The kernel does not tell it of a unix socket:
    the answer is then a large number."""
    if listener.family == socket.AF_UNIX:
        return _MANY
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.stop)
    except OSError:
        return 0
    return int.from_bytes(info[_UNACKED], "little")


def begin(fd: int, family: int, response: bytes) -> socket.socket:
    """Send the response and shut down the sending half. The caller closes the socket, when
    `is_complete` says that it can."""
    sock = socket.socket(family, _STREAM, 0, fileno=fd)
    with suppress(OSError):
        if response:
            sock.send(response, _NOW)
        sock.shutdown(socket.SHUT_WR)
    return sock


def is_complete(sock: socket.socket) -> bool:
    """Read and drop what the client has sent. True: close it, the client has ended."""
    try:
        for _ in range(_MAX_READS):
            if not sock.recv(_READ_SIZE, _NOW):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


class LingeringClients:
    """The clients of one worker that still send when their connection is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_open: int = MAX_LINGERING) -> None:
        self._loop = loop
        self._max_open = max_open
        self._open: dict[_Lingering, None] = {}
        """As an ordered set: the oldest is the first."""

    def take_over(self, transport: Any, *, expected: bool = False) -> None:
        """This transport is about to close its connection, all is written. Let it linger if the
        client still sends; `expected`: the rest of a body is on its way, if the client is there.

        To be called in `connection_lost`: the transport has not closed its descriptor yet.
        """
        try:
            sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except (AttributeError, OSError):
            return
        if not (_still_sends(sock, expected=expected) and _shut_down(sock)) or is_complete(sock):
            sock.close()
            return
        if len(self._open) >= self._max_open:
            next(iter(self._open)).end()
        self._open[_Lingering(self._loop, sock, self._open)] = None

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Close all of them now."""
        for lingering in tuple(self._open):
            lingering.end()


class _Lingering:
    """One of them, until it has ended."""

    __slots__ = ("_ends_at", "_has_sent", "_loop", "_open", "_sock", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        registry: "dict[_Lingering, None]",
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._open = registry
        self._has_sent = True
        self._ends_at = loop.time() + TOTAL_S
        loop.add_reader(sock, self._readable)
        self._timer = loop.call_later(IDLE_S, self._look)

    def _readable(self) -> None:
        self._has_sent = True
        if is_complete(self._sock):
            self.end()

    def _look(self) -> None:
        if not self._has_sent or self._loop.time() >= self._ends_at:
            self.end()
        else:
            self._has_sent = False
            self._timer = self._loop.call_later(IDLE_S, self._look)

    def end(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._open.pop(self, None)
        self._sock.close()


def _still_sends(sock: socket.socket, *, expected: bool) -> bool:
    """Has the client sent what nobody has read, or is that expected? Not if it has closed, or is
    to be reset."""
    try:
        if not sock.recv(1, _PEEK):
            return False
    except BlockingIOError:
        if not expected:
            return False
    except OSError:
        return False
    option = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size)
    return not _LINGER.unpack(option)[0]


def _shut_down(sock: socket.socket) -> bool:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


class SpareDescriptor:
    """A descriptor that is closed in order to accept one more connection, and then opened again.

    Make it early, so that its number is below any limit that is set later.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._open()

    def refuse(self, listener: socket.socket, response: bytes) -> bool:
        """Accept a connection, answer and close it. False: none waits, or no descriptor is free."""
        self.close()
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return False
        else:
            with begin(fd, int(listener.family), response) as sock:
                is_complete(sock)
            return True
        finally:
            self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        with suppress(OSError):
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
