"""The connections of one worker: where they come from, which are open, how they end.

Owns the sources (listening sockets, or the links to the fronts) and the set of connections
that were adopted from them, whatever protocol serves them now. Must not know HTTP, nor why
the worker leaves.

The end is the delicate part. A client that was accepted was told yes, so what waits in a
queue is taken before the queue is closed; and a server that closes "idle" connections must
not close one whose next request is on its way, for nobody can tell that client whether it was
served. `finish` therefore leaves everybody time to ask once more, and be told that it was the
last time; who says nothing for so long is idle.
"""

import asyncio
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from penstock_worker.acceptor import Acceptor
from penstock_worker.counters import RequestCounters
from penstock_worker.listeners import Source
from penstock_worker.receiver import Taker
from penstock_worker.somaxconn import backlog
from penstock_worker.streams import Stream, adopt

_NO_LINK: Final = -1
_LAST_S: Final = 1.0
"""For a client that is here when the worker leaves, to ask once more."""

Serve = Callable[[bool], asyncio.Protocol]


class Served(Stream):
    """A connection that a protocol was given. Its transport closes it, and so we hear of it."""

    __slots__ = ("_ended", "link", "probe")

    def __init__(
        self,
        fd: int,
        family: int,
        ended: Callable[["Served"], None],
        link: int,
        *,
        probe: bool,
    ) -> None:
        super().__init__(fd, family)
        self._ended: Callable[[Served], None] | None = ended
        self.link = link
        """The one it came over, or _NO_LINK: that front wants to hear of its end."""
        self.probe = probe

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
        self._takers: tuple[Taker, ...] = ()
        self.most = 0
        """Clients that were accepted here and are open; 0: no limit."""
        self._over = False
        self._empty = asyncio.Event()

    def open(self, source: Source, serve: Serve) -> None:
        """Take connections from now on; `serve(probe)` makes a protocol for each.

        ListenError if another was quicker to listen on our port.
        """
        self._serve = serve
        if source.kind == "link":
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self._takers = tuple(
                Taker(self._loop, sock, partial(self._passed, link), limit)
                for link, sock in enumerate((source.sock, *source.more))
            )
            for taker in self._takers:
                taker.start()
        elif source.kind == "stream":
            source.listen()
            self._acceptors.append(self._acceptor(source.sock))
        for acceptor in self._acceptors:
            acceptor.start()

    def listen(self, sock: socket.socket) -> None:
        """Accept from this one too; it listens already."""
        if self._over or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.close()
            return
        # The one before was shut, or this would not be needed.
        self._acceptors = [one for one in self._acceptors if not one.closed]
        self._acceptors.append(self._acceptor(sock))
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
        return len(self._takers)

    async def finish(self) -> None:
        """Take what waits, close the sources, and let everybody ask once more."""
        self._over = True
        most = backlog()
        for acceptor in self._acceptors:
            acceptor.drain(most)
        for taker in self._takers:
            taker.drain()
        if self._served:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await self._empty.wait()

    def close(self) -> None:
        """Nobody is served any more."""
        self._over = True
        for acceptor in self._acceptors:
            acceptor.close()
        for taker in self._takers:
            taker.close()
        self._takers = ()

    def _acceptor(self, listener: socket.socket) -> Acceptor:
        return Acceptor(self._loop, listener, self._accepted, has_room=self._has_room)

    def _has_room(self) -> bool:
        return not 0 < self.most <= self._counters.active

    def _passed(self, link: int, stream: Stream, probe: bool) -> None:
        fd = stream.fileno()
        stream.given()
        self._take(fd, stream.family, link, probe=probe)

    def _accepted(self, fd: int, family: int) -> None:
        self._counters.connections += 1
        self._counters.active += 1
        self._take(fd, family, probe=False)

    def _take(self, fd: int, family: int, link: int = _NO_LINK, *, probe: bool) -> None:
        assert self._serve is not None
        one = Served(fd, family, self._gone, link, probe=probe)
        self._served.add(one)
        try:
            adopt(self._loop, self._serve(probe), one)
        except BaseException:
            one.close()
            raise

    def _gone(self, one: Served) -> None:
        self._served.discard(one)
        if self._over and not self._served:
            self._empty.set()
        if one.probe:
            return
        if one.link == _NO_LINK:
            self._counters.active -= 1
            if self.most:
                for acceptor in self._acceptors:
                    acceptor.resume()
        elif self._takers:
            self._takers[one.link].ended()
            for taker in self._takers:
                taker.fd_freed()


def raise_limit() -> None:
    """As many descriptors as we may have: a connection each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
