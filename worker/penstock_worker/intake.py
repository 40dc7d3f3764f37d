"""The connections of one worker: where they come from, which are open, how they end.

Owns the sources (listening sockets, or the link to the front) and the set of connections
that were adopted from them, whatever protocol serves them now. Must not know HTTP, nor why
the worker leaves.

The end is the delicate part. A client that was accepted was told yes, so what waits in a
queue is taken before the queue is closed; and a server that closes "idle" connections must
not close one whose first request is still on its way. `finish` therefore waits for what has
arrived to be read, and for a client that is new to say something, but not for long.
"""

import asyncio
import fcntl
import os
import resource
import socket
import struct
import termios
from collections.abc import Callable
from typing import Final

from penstock_worker.acceptor import Acceptor
from penstock_worker.counters import RequestCounters
from penstock_worker.handoff import Taker
from penstock_worker.listeners import Source, backlog
from penstock_worker.streams import Stream, adopt

_NEW_S: Final = 1.0
"""How long a client may have been here and have said nothing when the worker leaves."""
_LOOK_S: Final = 0.002
_BYTES_RECEIVED: Final = 128
"""Offset of tcpi_bytes_received in struct tcp_info: eight bytes."""
_COUNT: Final = struct.Struct("i")
_LONG: Final = struct.Struct("Q")

Serve = Callable[[bool], asyncio.Protocol]


class Served(Stream):
    """A connection that a protocol was given. Its transport closes it, and so we hear of it."""

    __slots__ = ("_ended", "number", "probe", "since")

    def __init__(
        self, fd: int, family: int, ended: Callable[["Served"], None], *, probe: bool, since: float
    ) -> None:
        super().__init__(fd, family)
        self._ended: Callable[[Served], None] | None = ended
        self.number = fd
        """For questions to the kernel, while it is open."""
        self.probe = probe
        self.since = since

    def close(self) -> None:
        super().close()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)


class Intake:
    """`open` it when the program can serve; `finish` it when the worker leaves."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: RequestCounters) -> None:
        self._loop = loop
        self._counters = counters
        self._serve: Serve | None = None
        self._served: set[Served] = set()
        self._acceptors: list[Acceptor] = []
        self._taker: Taker | None = None
        self._over = False

    def open(self, source: Source, serve: Serve) -> None:
        """Take connections from now on; `serve(probe)` makes a protocol for each.

        ListenError if another was quicker to listen on our port.
        """
        self._serve = serve
        if source.kind == "link":
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self._taker = Taker(self._loop, source.sock, self._passed, limit)
            self._taker.start()
        elif source.kind == "stream":
            source.listen()
            self._acceptors.append(Acceptor(self._loop, source.sock, self._accepted))
        for acceptor in self._acceptors:
            acceptor.start()

    def listen(self, sock: socket.socket) -> None:
        """Accept from this one too; it listens already."""
        if self._over or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.close()
            return
        # The one before was shut, or this would not be needed.
        self._acceptors = [one for one in self._acceptors if not one.closed]
        self._acceptors.append(Acceptor(self._loop, sock, self._accepted))
        if self._serve is not None:
            self._acceptors[-1].start()

    def probe(self, sock: socket.socket) -> None:
        """Serve this connection like a client's, but do not count it."""
        if self._over or self._serve is None or sock.type != socket.SOCK_STREAM:
            sock.close()
        else:
            family = int(sock.family)
            self._take(sock.detach(), family, probe=True)

    @property
    def clients(self) -> int:
        """Connections that are open now, health checks included."""
        return len(self._served)

    @property
    def listeners(self) -> int:
        """Listening sockets that are open."""
        return sum(not one.closed for one in self._acceptors)

    @property
    def links(self) -> int:
        return int(self._taker is not None)

    async def finish(self) -> None:
        """Take what waits, close the sources, and let everybody say what he came for."""
        self._over = True
        most = backlog()
        for acceptor in self._acceptors:
            acceptor.drain(most)
        if self._taker is not None:
            self._taker.drain()
        until = self._loop.time() + _NEW_S
        waiting = [one for one in self._served if self._is_awaited(one)]
        while waiting and self._loop.time() < until:
            await asyncio.sleep(_LOOK_S)
            waiting = [one for one in waiting if self._is_awaited(one)]

    def close(self) -> None:
        """Nobody is served any more."""
        self._over = True
        for acceptor in self._acceptors:
            acceptor.close()
        if self._taker is not None:
            self._taker.close()
            self._taker = None

    def _passed(self, stream: Stream, probe: bool) -> None:
        fd = stream.fileno()
        stream.given()
        self._take(fd, stream.family, probe=probe)

    def _accepted(self, fd: int, family: int) -> None:
        self._counters.connections += 1
        self._counters.active += 1
        self._take(fd, family, probe=False)

    def _take(self, fd: int, family: int, *, probe: bool) -> None:
        assert self._serve is not None
        one = Served(fd, family, self._gone, probe=probe, since=self._loop.time())
        self._served.add(one)
        try:
            adopt(self._loop, self._serve(probe), one)
        except BaseException:
            one.close()
            raise

    def _gone(self, one: Served) -> None:
        self._served.discard(one)
        if one.probe:
            return
        if self._taker is not None:
            self._taker.ended()
        else:
            self._counters.active -= 1

    def _is_awaited(self, one: Served) -> bool:
        """Has it said something that nobody has read, or come just now and said nothing?"""
        if one not in self._served:
            return False
        try:
            if _COUNT.unpack(fcntl.ioctl(one.number, termios.FIONREAD, bytes(_COUNT.size)))[0]:
                return True
            return self._loop.time() - one.since < _NEW_S and not _has_spoken(one)
        except OSError:
            return False


def raise_limit() -> None:
    """As many descriptors as we may have: a connection each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _has_spoken(one: Served) -> bool:
    if one.family == socket.AF_UNIX:
        # The kernel does not keep count; who writes at once has been read by now.
        return True
    sock = socket.socket(fileno=os.dup(one.number))
    with sock:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + _LONG.size)
    return len(info) < _BYTES_RECEIVED + _LONG.size or bool(
        _LONG.unpack_from(info, _BYTES_RECEIVED)[0]
    )
