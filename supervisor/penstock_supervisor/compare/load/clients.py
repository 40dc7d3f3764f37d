"""The clients of a load: one connection each, one request at a time.

They use plain sockets and one epoll, without an event loop. The generator runs on the same
machine as the subject, so it should take little CPU time, and a client that sends one small
request and reads one response needs no buffers, watermarks and callbacks of a transport. A
response with the same bytes as an earlier one is not parsed again. An epoll is a descriptor
itself, so a program with an event loop can wait for it (`HeldConnections` in `driver`).

Must not know which kind of load it is, or what is counted.
"""

import errno
import resource
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from penstock_proxy.errors import RejectedError
from penstock_proxy.net.address import parse_address
from penstock_supervisor.compare.load.response import LoadResponse

TIMEOUT_S: Final = 5.0
"""For a request, and to connect."""
_READ_SIZE: Final = 65536
_MAX_KNOWN: Final = 256
"""Responses that are recognised. They differ by the second and by the worker's name."""
_MAX_KNOWN_SIZE: Final = 16384
_CONNECTIONS_PER_SOURCE: Final = 16384
"""Connections from one loopback address before the next one is used. The kernel has 28,000
ports for each address, and keeps those of closed connections for a while."""
_SOURCES: Final = 200


class Connector:
    """Opens connections to the subject. OSError: its host name is unknown."""

    def __init__(self, address: str) -> None:
        parsed = parse_address(address)
        self._opened = 0
        self._uses_many_sources = False
        self._address: object
        if parsed.path:
            self._family, self._address = socket.AF_UNIX, parsed.path
            return
        resolved = socket.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM)
        family, _, _, _, self._address = resolved[0]
        self._family = socket.AddressFamily(family)
        self._uses_many_sources = family == socket.AF_INET and str(resolved[0][4][0]).startswith(
            "127."
        )

    def connect(self) -> socket.socket:
        """Start a connection. OSError."""
        for _ in range(2):
            sock = socket.socket(self._family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                if self._family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._bind(sock)
                error = sock.connect_ex(self._address)  # type: ignore[arg-type]
            except BaseException:
                sock.close()
                raise
            if error in (0, errno.EINPROGRESS):
                return sock
            sock.close()
            if error != errno.EADDRNOTAVAIL or not self._uses_many_sources:
                break
            self._opened += _CONNECTIONS_PER_SOURCE
        raise OSError(error, "not connected")

    def _bind(self, sock: socket.socket) -> None:
        self._opened += 1
        source = self._opened // _CONNECTIONS_PER_SOURCE % _SOURCES
        if self._uses_many_sources and source:
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((f"127.0.0.{source + 1}", 0))


_IP_BIND_ADDRESS_NO_PORT: Final = 24
"""linux/in.h: the port is chosen at connect, so it has to be free for that remote end only."""


class Poller:
    """Waits for the sockets of many clients."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._by_fd: dict[int, Callable[[], None]] = {}
        self.known: set[bytes] = set()
        """Whole successful responses that leave the connection open."""

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, fd: int, on_ready: Callable[[], None], *, writing: bool = False) -> None:
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLOUT if writing else 0))
        self._by_fd[fd] = on_ready

    def start_writing(self, fd: int) -> None:
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def stop_writing(self, fd: int) -> None:
        self._epoll.modify(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        if self._by_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wait(self, timeout_s: float) -> None:
        by_fd = self._by_fd
        for fd, _ in self._epoll.poll(timeout_s, 512):
            # An earlier callback may have closed it.
            if on_ready := by_fd.get(fd):
                on_ready()

    def remember(self, data: bytes) -> None:
        if len(data) <= _MAX_KNOWN_SIZE:
            if len(self.known) >= _MAX_KNOWN:
                self.known.clear()
            self.known.add(data)

    def close(self) -> None:
        self._epoll.close()


class Client:
    """One connection, opened when it is needed.

    `on_done(client, error)` is called when the request that `send` began has ended; "" means
    success.
    """

    __slots__ = ("_connected", "_connector", "_keep", "_on_done", "_poller", "_request",
                 "_response", "_sock", "_unsent", "due", "sent_at")  # fmt: skip

    def __init__(self, poller: Poller, connector: Connector, request: bytes, *, keep: bool,
                 on_done: Callable[["Client", str], None]) -> None:  # fmt: skip
        self._poller, self._connector, self._request = poller, connector, request
        self._keep, self._on_done = keep, on_done
        self._sock: socket.socket | None = None
        self._connected = False
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
            self._sock = self._connector.connect()
        except OSError as error:
            return _connect_error(error)
        self._poller.add(self._sock.fileno(), self._ready, writing=True)
        return ""

    def send(self, due: float, now: float) -> str:
        """Send the request. If it fails at once, returns an error and does not call `on_done`."""
        self.due, self.sent_at = due, now
        if is_new := self._sock is None:
            try:
                self._sock = self._connector.connect()
            except OSError as error:
                self.sent_at = 0.0
                return _connect_error(error)
        return self._send(self._sock, is_new=is_new)

    def _send(self, sock: socket.socket, *, is_new: bool) -> str:
        request, connecting = self._request, not self._connected
        try:
            # Tried on a new connection as well: on the same machine it is connected by now.
            sent = sock.send(request)
            self._connected = True
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._close_broken()
        self._unsent = request[sent:]
        if is_new:
            self._poller.add(sock.fileno(), self._ready, writing=bool(self._unsent))
        elif connecting and not self._unsent:
            self._poller.stop_writing(sock.fileno())
        elif self._unsent and not connecting:
            self._poller.start_writing(sock.fileno())
        return ""

    def expire(self, now: float) -> bool:
        """Close the connection if its request takes too long. True if so, without `on_done`."""
        if not self.sent_at or now - self.sent_at < TIMEOUT_S:
            return False
        self.close()
        return True

    def close(self) -> None:
        self.sent_at, self._response, self._unsent, self._connected = 0.0, None, b"", False
        if (sock := self._sock) is not None:
            self._sock = None
            self._poller.remove(sock.fileno())
            sock.close()

    def _close_broken(self) -> str:
        """Close a broken connection, and return the error."""
        error = "reset" if self._connected else "connect"
        self.close()
        return error

    def _ready(self) -> None:
        if self._unsent or not self._connected:
            self._writable()
            return
        sock = self._sock
        assert sock is not None
        try:
            data = sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
            self._response = None  # a reset does not end a response without a length
        if not self.sent_at:
            # The server closed an idle connection, which it may do; or it sent bytes unasked.
            self.close()
        elif self._response is None and data in self._poller.known:
            self._finish(keep=True)
        else:
            self._read(data)

    def _writable(self) -> None:
        sock = self._sock
        assert sock is not None
        try:
            # Even an empty send shows whether it is connected.
            self._unsent = self._unsent[sock.send(self._unsent) :]
            self._connected = True
        except BlockingIOError:
            return
        except OSError:
            # If it was only being connected, there is no request that could end.
            sent_at, error = self.sent_at, self._close_broken()
            if sent_at:
                self._on_done(self, error)
            return
        if not self._unsent:
            self._poller.stop_writing(sock.fileno())

    def _read(self, data: bytes) -> None:
        response = self._response
        if not data:
            if response is not None and response.end():
                self._complete(response)
            else:
                self._on_done(self, self._close_broken())
            return
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
            return
        if response.done:
            if is_whole and response.keep and response.is_success:
                self._poller.remember(data)
            self._complete(response)

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
