"""The clients of a load: one connection each, one request at a time.

They use plain sockets and one epoll, without an event loop. The generator runs on the same
machine as the subject, so it should take little CPU time, and a client that sends one small
request and reads one response needs no buffers, watermarks and callbacks of a transport. A
response with the same bytes as an earlier one is not parsed again. A connection for one request
is registered once, with its edges, and closing it is all that ends it. An epoll is a descriptor
itself, so a program with an event loop can wait for it (`HeldConnections` in `driver`).

As any client over a network, they send their request when they have heard that the connection is
open. On one machine it is open at once, but a server that finds the request when it accepts has
less to do than it has for others.

Must not know which kind of load it is, or what is counted.
"""

import errno
import resource
import select
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from penstock_proxy.errors import RejectedError
from penstock_supervisor.compare.load.connector import Connector
from penstock_supervisor.compare.load.response import LoadResponse

if TYPE_CHECKING:
    from socket import SocketType

TIMEOUT_S: Final = 5.0
"""For a request, and to connect."""
_READ_SIZE: Final = 65536
_MAX_KNOWN: Final = 256
"""Responses that are recognised. They differ by the second and by the worker's name."""
_MAX_KNOWN_SIZE: Final = 16384
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_IN_OUT: Final = select.EPOLLIN | select.EPOLLOUT
_EDGES: Final = _IN_OUT | select.EPOLLET
"""For a connection with one request: it is registered once, and never told to stop writing."""


class Poller:
    """Waits for the sockets of many clients, which all send the same request."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._by_fd: dict[int, Callable[[int], None]] = {}
        self.known: dict[bytes, bool] = {}
        """Whole successful responses, and whether they leave the connection open."""

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, fd: int, on_ready: Callable[[int], None], events: int = _IN) -> None:
        """`on_ready` gets the events that there are."""
        self._epoll.register(fd, events)
        self._by_fd[fd] = on_ready

    def start_writing(self, fd: int) -> None:
        self._epoll.modify(fd, _IN_OUT)

    def stop_writing(self, fd: int) -> None:
        self._epoll.modify(fd, _IN)

    def forget(self, fd: int) -> None:
        """It is about to be closed, by which the kernel forgets it."""
        self._by_fd.pop(fd, None)

    def wait(self, timeout_s: float) -> None:
        by_fd = self._by_fd
        for fd, events in self._epoll.poll(timeout_s, 512):
            # An earlier callback may have closed it.
            if on_ready := by_fd.get(fd):
                on_ready(events)

    def remember(self, data: bytes, *, keep: bool) -> None:
        if len(data) <= _MAX_KNOWN_SIZE:
            if len(self.known) >= _MAX_KNOWN:
                self.known.clear()
            self.known[data] = keep

    def close(self) -> None:
        self._epoll.close()


class Client:
    """One connection, opened when it is needed.

    `on_done(client, error)` is called when the request that `send` began has ended; "" means
    success.
    """

    __slots__ = (
        "_connected", "_connector", "_keep", "_known", "_on_done", "_on_ready", "_poller",
        "_request", "_response", "_sock", "_unsent", "_writing", "due", "sent_at",
    )  # fmt: skip

    def __init__(self, poller: Poller, connector: Connector, request: bytes, *, keep: bool,
                 on_done: Callable[["Client", str], None]) -> None:  # fmt: skip
        self._poller, self._connector, self._request = poller, connector, request
        self._keep, self._on_done = keep, on_done
        self._known = poller.known
        self._on_ready = self._ready  # bound once
        self._sock: SocketType | None = None
        self._connected = False
        self._writing = False
        """It waits until it can send."""
        self._unsent = b""
        self._response: LoadResponse | None = None
        self.sent_at = 0.0
        """When the request in progress was sent. 0: there is none."""
        self.due = 0.0
        """When it should have been sent."""

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def open(self) -> bool:
        return self._sock is not None

    def connect(self) -> str:
        """Open the connection before the first request. Returns an error if it fails at once."""
        try:
            self._sock = sock = self._connector.connect()
        except OSError as error:
            return _connect_error(error)
        self._writing = True
        self._poller.add(sock.fileno(), self._on_ready, _IN_OUT if self._keep else _EDGES)
        return ""

    def send(self, due: float, now: float) -> str:
        """Send the request. If it fails at once, returns an error and does not call `on_done`."""
        self.due, self.sent_at = due, now
        request, sock = self._request, self._sock
        if sock is None:
            if error := self.connect():
                self.sent_at = 0.0
                return error
            self._unsent = request
            return ""
        if self._writing:
            self._unsent = request  # it is being connected
            return ""
        try:
            sent = sock.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._close_broken()
        if sent != len(request):
            self._unsent, self._writing = request[sent:], True
            self._poller.start_writing(sock.fileno())
        return ""

    def expire(self, now: float) -> bool:
        """Close the connection if its request takes too long. True if so, without `on_done`."""
        if not self.sent_at or now - self.sent_at < TIMEOUT_S:
            return False
        self.close()
        return True

    def close(self) -> None:
        self.sent_at, self._response, self._connected = 0.0, None, False
        if self._writing:
            self._unsent, self._writing = b"", False
        if (sock := self._sock) is not None:
            self._sock = None
            self._poller.forget(sock.fileno())
            sock.close()

    def _close_broken(self) -> str:
        """Close a broken connection, and return the error."""
        error = "reset" if self._connected else "connect"
        self.close()
        return error

    def _ready(self, events: int) -> None:
        # What a server says or does before it was asked would not be told a second time.
        if self._writing and (not self._write() or self._keep or not events & ~_OUT):
            return
        while self._receive():
            pass

    def _receive(self) -> bool:
        """Read once. True if more may be there that would not be told a second time."""
        sock = self._sock
        assert sock is not None
        try:
            data = sock.recv(_READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
            self._response = None  # a reset does not end a response without a length
        if not self.sent_at:
            # The server closed an idle connection, which it may do; or it sent bytes unasked.
            self.close()
        elif self._response is None and (keep := self._known.get(data)) is not None:
            self._finish(keep=keep)
        else:
            return self._read(data)
        return False

    def _write(self) -> bool:
        """Send the rest of the request. True when all of it has been sent."""
        sock = self._sock
        assert sock is not None
        try:
            # Even an empty send shows whether it is connected.
            self._unsent = self._unsent[sock.send(self._unsent) :]
            self._connected = True
        except BlockingIOError:
            return False
        except OSError:
            # If it was only being connected, there is no request that could end.
            sent_at, error = self.sent_at, self._close_broken()
            if sent_at:
                self._on_done(self, error)
            return False
        if self._unsent:
            return False
        self._writing = False
        if self._keep:
            self._poller.stop_writing(sock.fileno())
        return True

    def _read(self, data: bytes) -> bool:
        """True as from `_receive`."""
        response = self._response
        if not data:
            if response is not None and response.end():
                self._complete(response)
            else:
                self._on_done(self, self._close_broken())
            return False
        if response is None:
            response = self._response = LoadResponse()
            is_whole = True
        else:
            is_whole = False
        try:
            response.feed(data)
        except RejectedError:
            self.close()
            self._on_done(self, "protocol")
            return False
        if not response.done:
            return not self._keep
        if is_whole and response.is_success:
            self._poller.remember(data, keep=response.keep)
        self._complete(response)
        return False

    def _complete(self, response: LoadResponse) -> None:
        if response.is_success:
            self._finish(keep=response.keep)
            return
        self._response = None
        self.sent_at = 0.0
        if not (response.keep and self._keep):
            self.close()
        self._on_done(self, "status")

    def _finish(self, *, keep: bool) -> None:
        if keep and self._keep:
            self._response = None
            self.sent_at = 0.0
        else:
            self.close()
        self._on_done(self, "")


def _connect_error(error: OSError) -> str:
    """ "no port": this machine had no free port, which is no fault of the subject."""
    return "no port" if error.errno == errno.EADDRNOTAVAIL else "connect"


def request(host: str, path: str, *, keep: bool) -> bytes:
    close = "" if keep else "Connection: close\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n".encode()


def raise_fd_limit() -> None:
    """Raise the soft limit of descriptors to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
