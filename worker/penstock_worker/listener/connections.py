"""The connections of one worker: where they come from, which are open, how they are drained.

Owns the sources (listening sockets, or the links to the proxies) and the set of connections
that were adopted from them, whatever protocol serves them. Must not know HTTP, nor why the
worker stops.

Draining loses no request. A client whose connection waits in a queue is connected already, so
the queues are emptied before they are closed. An idle connection cannot simply be closed: its
next request may be under way, and the client could not know whether it was served. So `drain`
waits a moment. A request that comes now is answered, and told that the connection ends. A
connection that is silent all that time is idle.

A worker may have to serve before it accepts (`pause`, then `open`): it is checked first. And one
that is about to leave may have to stop accepting first (`pause`). The queues belong to others then.
"""

import asyncio
import resource
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from penstock_worker.handoff.receiver import LinkReceiver
from penstock_worker.listener import link_socket
from penstock_worker.listener.acceptor import Acceptor
from penstock_worker.listener.idle_clients import IdleClients
from penstock_worker.listener.link_socket import NamingProtocol
from penstock_worker.listener.sources import Source
from penstock_worker.net.abortive_close import reset_on_close
from penstock_worker.net.somaxconn import max_backlog
from penstock_worker.net.stream import Stream, adopt
from penstock_worker.telemetry.counters import RequestCounters

_NO_LINK: Final = -1
_LAST_REQUEST_S: Final = 1.0
"""For a connected client to send one more request when the worker stops."""

ProtocolFactory = Callable[[bool], asyncio.Protocol]


class Connection(Stream):
    """A connection that a protocol serves. `on_close` is called when its transport closes it."""

    __slots__ = ("_on_close", "link", "number", "opened", "probe", "protocol")

    protocol: asyncio.Protocol
    """What serves it first."""

    def __init__(
        self,
        fd: int,
        family: int,
        on_close: Callable[["Connection"], None],
        link: int,
        *,
        probe: bool,
        opened: float = 0.0,
    ) -> None:
        super().__init__(fd, family)
        self.opened = opened
        self._on_close: Callable[[Connection], None] | None = on_close
        self.link = link
        """The link that it came over, whose proxy is told of its end; or _NO_LINK."""
        self.probe = probe
        self.number = fd
        """Its descriptor, also when a transport has it."""

    @property
    def may_be_ended(self) -> bool:
        """Is it a client's? It is then ours to end it for others, wherever it was accepted."""
        return not self.probe

    def reset_on_close(self) -> None:
        """When it is closed, its client sees a reset and not an end. From any thread."""
        if self._on_close is not None:
            reset_on_close(self.number)

    def close(self) -> None:
        super().close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self)


class Connections:
    """`open` them when the program can serve; `drain` them when the worker stops."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: RequestCounters) -> None:
        self._loop = loop
        self._counters = counters
        self._make_protocol: ProtocolFactory | None = None
        self._open: dict[Connection, None] = {}
        """An ordered set."""
        self._idle_clients: IdleClients | None = None
        self._acceptors: list[Acceptor] = []
        self._link_names: Mapping[str, Any] | None = None
        self._source: Source | None = None
        """A socket that has to listen before it is accepted from."""
        self.accepting = True
        """False: nothing is accepted from listening sockets until `accept`."""
        self._receivers: tuple[LinkReceiver, ...] = ()
        self.max_clients = 0
        """How many accepted connections may be open; 0: no limit."""
        self._draining = False
        self._all_closed = asyncio.Event()

    def open(
        self,
        source: Source,
        make_protocol: ProtocolFactory,
        is_idle: Callable[[asyncio.Protocol], bool] = lambda _: False,
    ) -> None:
        """Take connections from now on; `make_protocol(probe)` makes a protocol for each. After
        `pause` only health checks come until `accept`.

        `is_idle`: has it no request, so that its connection may be ended for another client's?
        ListenError if another process listens on our port by now.
        """
        self._make_protocol = make_protocol
        self._idle_clients = IdleClients(is_idle)
        if source.kind == "link":
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            self._receivers = tuple(
                LinkReceiver(self._loop, sock, partial(self._received, link), limit)
                for link, sock in enumerate((source.sock, *source.other_links))
            )
            for receiver in self._receivers:
                receiver.start()
        elif source.kind == "stream":
            self._source = source
            self._acceptors.append(self._acceptor(source.sock, self._accepted))
            if source.link is not None:
                self._link_names = link_socket.names_beside(source.sock)
                self._acceptors.append(self._acceptor(source.link, self._accepted_from_proxy))
        if self.accepting:
            self._start_accepting()

    def accept(self) -> None:
        """Accept from the listening sockets, at last or again. ListenError: as in `open`."""
        self.accepting = True
        if self._make_protocol is not None and not self._draining:
            self._start_accepting()

    def pause(self) -> None:
        """Accept nothing until `accept`. What is open is served, and so are health checks."""
        self.accepting = False
        for acceptor in self._acceptors:
            acceptor.pause()

    def listen(self, sock: socket.socket) -> None:
        """Accept from this socket too; it listens already."""
        if self._draining or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.close()
            return
        # It replaces one that was shut down.
        self._acceptors = [acceptor for acceptor in self._acceptors if not acceptor.closed]
        self._acceptors.append(self._acceptor(sock, self._accepted))
        if self._make_protocol is not None and self.accepting:
            self._acceptors[-1].start()

    def probe(self, sock: socket.socket) -> None:
        """Serve this connection like a client's, but do not count it."""
        if self._draining or self._make_protocol is None or sock.type != socket.SOCK_STREAM:
            sock.close()
        else:
            family = int(sock.family)
            self._adopt(sock.detach(), family, probe=True)

    def make_room(self, wanted: object) -> None:
        """So many clients wait for a place, here or at a proxy: end idle connections for them."""
        if isinstance(wanted, int) and wanted > 0 and self._idle_clients is not None:
            self._idle_clients.end(self._open, wanted, self._loop.time())

    @property
    def clients(self) -> int:
        """Connections that are open now, health checks included."""
        return len(self._open)

    @property
    def listeners(self) -> int:
        """Listening sockets that are open."""
        return sum(not acceptor.closed for acceptor in self._acceptors)

    @property
    def links(self) -> int:
        return len(self._receivers)

    def descriptors(self) -> list[int]:
        """All that are open now: listening sockets, links and connections."""
        acceptors = [one.fileno() for one in self._acceptors]
        links = [receiver.fileno() for receiver in self._receivers]
        return [*acceptors, *links, *(connection.number for connection in self._open)]

    async def drain(self) -> None:
        """Take what waits, close the sources, and let every client send one more request."""
        self._draining = True
        # While it is paused, others have what waits.
        queued = max_backlog() if self.accepting else 0
        for acceptor in self._acceptors:
            acceptor.drain(queued)
        for receiver in self._receivers:
            receiver.drain()
        if self._open:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_REQUEST_S):
                    await self._all_closed.wait()

    def reset_on_close(self) -> None:
        """From now on, whoever closes the open connections resets them. From any thread."""
        for connection in tuple(self._open):
            connection.reset_on_close()

    def close(self) -> None:
        """Close the sources. Connections that are open stay their protocols'."""
        self._draining = True
        for acceptor in self._acceptors:
            acceptor.close()
        for receiver in self._receivers:
            receiver.close()
        self._receivers = ()

    def _start_accepting(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            # Once: a socket that was shut down later must not be revived.
            source.listen()
        for acceptor in self._acceptors:
            acceptor.start()

    def _acceptor(self, listener: socket.socket, deliver: Callable[[int, int], None]) -> Acceptor:
        return Acceptor(
            self._loop, listener, deliver, has_room=self._has_room, make_room=self.make_room
        )

    def _has_room(self) -> bool:
        return not 0 < self.max_clients <= self._counters.active

    def _received(self, link: int, stream: Stream, probe: bool) -> None:
        fd = stream.fileno()
        stream.detach()
        self._adopt(fd, stream.family, link, probe=probe)

    def _accepted(self, fd: int, family: int) -> None:
        self._counters.connections += 1
        self._counters.active += 1
        self._adopt(fd, family, probe=False)

    def _accepted_from_proxy(self, fd: int, family: int) -> None:
        self._counters.connections += 1
        self._counters.active += 1
        self._adopt(fd, family, probe=False, names=self._link_names)

    def _adopt(
        self,
        fd: int,
        family: int,
        link: int = _NO_LINK,
        *,
        probe: bool,
        names: Mapping[str, Any] | None = None,
    ) -> None:
        """`names`: what the program sees as its ends; None: what they are."""
        assert self._make_protocol is not None
        opened = self._loop.time()
        connection = Connection(fd, family, self._closed, link, probe=probe, opened=opened)
        self._open[connection] = None
        try:
            first = connection.protocol = self._make_protocol(probe)
            if names is not None:
                first = NamingProtocol(first, names)
            adopt(self._loop, first, connection)
        except BaseException:
            connection.close()
            raise

    def _closed(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        if self._draining and not self._open:
            self._all_closed.set()
        if connection.probe:
            return
        if connection.link == _NO_LINK:
            self._counters.active -= 1
            if self.max_clients:
                for acceptor in self._acceptors:
                    acceptor.resume()
        elif self._receivers:
            self._receivers[connection.link].ended()
            for receiver in self._receivers:
                receiver.fd_freed()


def raise_fd_limit() -> None:
    """Raise the soft limit of descriptors to the hard one: each connection needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
