"""The clients of a load: one connection each, one request at a time.

Plain sockets and one epoll, without an event loop in between: a generator shares the machine
with what it measures, and half of what a transport does (buffers, watermarks, call-backs of
its own) nobody needs who sends one small request and reads one answer. An answer with the
bytes of one that was read before is not read again. An epoll is a descriptor itself, so a
program with an event loop of its own waits for that (`Holder` in `load`).

Must not know: which load it is, what counts.
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
from penstock_supervisor.compare.load.response import Answer

TIMEOUT_S: Final = 5.0
"""For a request, and to connect."""
_READ: Final = 65536
_KNOWN: Final = 256
"""Answers that are recognised. They differ by the second and by the worker's name."""
_LARGEST: Final = 16384
_A_SOURCE: Final = 16384
"""Connections from one loopback address, before the next one is used: the kernel has 28,000
ports for each and keeps those of closed connections for a while."""
_SOURCES: Final = 200


class Route:
    """How the target is reached. OSError: its name is unknown."""

    def __init__(self, address: str) -> None:
        parsed = parse_address(address)
        self._opened = 0
        self._spread = False
        self._to: object
        if parsed.path:
            self._family, self._to = socket.AF_UNIX, parsed.path
            return
        found = socket.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM)
        family, _, _, _, self._to = found[0]
        self._family = socket.AddressFamily(family)
        self._spread = family == socket.AF_INET and str(found[0][4][0]).startswith("127.")

    def connect(self) -> socket.socket:
        """A connection that is being made. OSError."""
        for _ in range(2):
            sock = socket.socket(self._family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                if self._family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._bind(sock)
                found = sock.connect_ex(self._to)  # type: ignore[arg-type]
            except BaseException:
                sock.close()
                raise
            if found in (0, errno.EINPROGRESS):
                return sock
            sock.close()
            if found != errno.EADDRNOTAVAIL or not self._spread:
                break
            self._opened += _A_SOURCE
        raise OSError(found, "not connected")

    def _bind(self, sock: socket.socket) -> None:
        self._opened += 1
        source = self._opened // _A_SOURCE % _SOURCES
        if self._spread and source:
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((f"127.0.0.{source + 1}", 0))


_IP_BIND_ADDRESS_NO_PORT: Final = 24
"""linux/in.h: the port is chosen when the other end is known, so that it is free for that."""


class Poll:
    """Waits for the sockets of many clients."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._by_fd: dict[int, Callable[[], None]] = {}
        self.known: set[bytes] = set()
        """Whole good answers that leave the connection open."""

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, fd: int, ready: Callable[[], None], *, writing: bool = False) -> None:
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLOUT if writing else 0))
        self._by_fd[fd] = ready

    def writing(self, fd: int) -> None:
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def written(self, fd: int) -> None:
        self._epoll.modify(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        if self._by_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wait(self, most_s: float) -> None:
        by_fd = self._by_fd
        for fd, _ in self._epoll.poll(most_s, 512):
            # It may have been closed by what came before it.
            if ready := by_fd.get(fd):
                ready()

    def learn(self, data: bytes) -> None:
        if len(data) <= _LARGEST:
            if len(self.known) >= _KNOWN:
                self.known.clear()
            self.known.add(data)

    def close(self) -> None:
        self._epoll.close()


class Client:
    """One connection, opened when it is needed. `over(client, error)` ends what `ask` began."""

    __slots__ = ("_answer", "_connected", "_keep", "_over", "_poll", "_request", "_route",
                 "_sock", "_unsent", "asked", "due", "once")  # fmt: skip

    def __init__(self, poll: Poll, route: Route, request: bytes, *, keep: bool,
                 over: Callable[["Client", str], None]) -> None:  # fmt: skip
        self._poll, self._route, self._request = poll, route, request
        self._keep, self._over = keep, over
        self._sock: socket.socket | None = None
        self._connected = False
        self._unsent = b""
        self._answer: Answer | None = None
        self.asked = 0.0
        """When the request that is outstanding was sent; 0: there is none."""
        self.due = 0.0
        """When it should have been."""

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def open(self) -> bool:
        return self._sock is not None

    def connect(self) -> str:
        """Open the connection ahead of the first request. An error if that fails at once."""
        try:
            self._sock = self._route.connect()
        except OSError as error:
            return _refusal(error)
        self._poll.add(self._sock.fileno(), self._ready, writing=True)
        return ""

    def ask(self, due: float, now: float) -> str:
        """Send the request. An error is returned when it failed at once, without `over`."""
        self.due, self.asked = due, now
        if fresh := self._sock is None:
            try:
                self._sock = self._route.connect()
            except OSError as error:
                self.asked = 0.0
                return _refusal(error)
        return self._send(self._sock, fresh=fresh)

    def _send(self, sock: socket.socket, *, fresh: bool) -> str:
        request, connecting = self._request, not self._connected
        try:
            # To a new one as well: on this machine it is connected by now.
            sent = sock.send(request)
            self._connected = True
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._lost()
        self._unsent = request[sent:]
        if fresh:
            self._poll.add(sock.fileno(), self._ready, writing=bool(self._unsent))
        elif connecting and not self._unsent:
            self._poll.written(sock.fileno())
        elif self._unsent and not connecting:
            self._poll.writing(sock.fileno())
        return ""

    def expire(self, now: float) -> bool:
        """Was its time up? The one that asked is not told with `over`."""
        if not self.asked or now - self.asked < TIMEOUT_S:
            return False
        self.close()
        return True

    def close(self) -> None:
        self.asked, self._answer, self._unsent, self._connected = 0.0, None, b"", False
        if (sock := self._sock) is not None:
            self._sock = None
            self._poll.remove(sock.fileno())
            sock.close()

    def _lost(self) -> str:
        """Close a broken connection, and say what that was."""
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
            data = sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
            self._answer = None  # a reset is the end of no answer
        if not self.asked:
            # Closed while it was idle, which is a server's right; or it talks unasked.
            self.close()
        elif self._answer is None and data in self._poll.known:
            self._finish(keep=True)
        else:
            self._read(data)

    def _writable(self) -> None:
        sock = self._sock
        assert sock is not None
        try:
            # To send nothing says as well whether it is connected.
            self._unsent = self._unsent[sock.send(self._unsent) :]
            self._connected = True
        except BlockingIOError:
            return
        except OSError:
            # Nobody waits for one that was only being connected.
            asked, error = self.asked, self._lost()
            if asked:
                self._over(self, error)
            return
        if not self._unsent:
            self._poll.written(sock.fileno())

    def _read(self, data: bytes) -> None:
        answer = self._answer
        if not data:
            ended = answer is not None and answer.end()
            self._judge(answer) if ended and answer else self._over(self, self._lost())
            return
        if answer is None:
            answer = self._answer = Answer()
            whole = True
        else:
            whole = False
        try:
            answer.feed(data)
        except RejectedError:
            self.close()
            self._over(self, "protocol")
            return
        if answer.done:
            if whole and answer.keep and answer.good:
                self._poll.learn(data)
            self._judge(answer)

    def _judge(self, answer: Answer) -> None:
        if answer.good:
            self._finish(keep=answer.keep)
            return
        self._answer = None
        self.asked = 0.0
        if not (answer.keep and self._keep):
            self.close()
        self._over(self, "status")

    def _finish(self, *, keep: bool) -> None:
        if keep and self._keep:
            self._answer = None
            self.asked = 0.0
        else:
            self.close()
        self._over(self, "")


def _refusal(error: OSError) -> str:
    """Whether it was this machine that had no port left, which is no fault of the target."""
    return "no port" if error.errno == errno.EADDRNOTAVAIL else "connect"


def request(host: str, path: str, *, keep: bool) -> bytes:
    close = "" if keep else "Connection: close\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n".encode()


def raise_descriptors() -> None:
    """As many as may be had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
