"""Connects to workers, without a task.

Owns: the way from an address to a connected socket. Must not know: HTTP, pools, what the
connection is used for, how a transport is made of it (`penstock_worker.net.stream`).

`loop.create_connection` costs a task, a future and a turn of the event loop for each
connection. On one host the kernel finishes the handshake inside `connect`. A second call
says at once that it is done, or refused, and the event loop is not needed.
Measured with a connection per request: 76 to 80 µs of CPU against 82 to 97 for the loop's own
`create_server` and `create_connection`.

A unix socket whose queue is full is another case: the kernel says EAGAIN, and tells nobody when
there is room. (Over TCP the client's kernel repeats its SYN.) So the connect is tried again, a few
times a second, for as long as its owner waits; no worker is to blame for a burst.

See docs/decisions/0002-connect-without-a-task.md and docs/decisions/0019-links.md.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from socket import SocketType
from typing import Any, Final

from penstock_proxy.errors import CONNECT_FAILED, NO_DESCRIPTORS, Fault
from penstock_proxy.net.address import Address
from penstock_worker.net.stream import Stream

_IN_PROGRESS: Final = frozenset({errno.EINPROGRESS, errno.EALREADY})
_NONBLOCKING_STREAM: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_AF_UNIX: Final = int(socket.AF_UNIX)
_TCP: Final = int(socket.IPPROTO_TCP)
_NODELAY: Final = int(socket.TCP_NODELAY)
_CONNECTED: Final = frozenset({0, errno.EISCONN})

_RESOURCE_ERRORS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)
"""We have run out of descriptors, memory or ephemeral ports."""

_FIRST_RETRY_S: Final = 0.002
_LAST_RETRY_S: Final = 0.256
"""Between two tries of a connect to a full queue; doubled each time."""

SocketAddress = tuple[int, Any]
"""Address family and what `connect` takes."""


def socket_address(address: Address) -> SocketAddress:
    """The socket address of a target. Numbers only: the supervisor has resolved the names."""
    if address.path:
        return socket.AF_UNIX, address.path
    family, _, _, _, sockaddr = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    return family, sockaddr


class Connecting:
    """A connect in progress."""

    __slots__ = ("_loop", "_on_done", "_path", "_proxy_header", "_retry", "_retry_s", "_sock")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: SocketType,
        on_done: Callable[[Stream | None, int], None],
        proxy_header: bytes,
        path: str = "",
    ) -> None:
        """`path`: of a unix socket whose queue is full."""
        self._loop = loop
        self._proxy_header = proxy_header
        self._sock = sock
        self._on_done = on_done
        self._path = path
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = _FIRST_RETRY_S
        if path:
            self._try_later()
        else:
            loop.add_writer(sock, self._on_writable)

    def cancel(self) -> None:
        """Stop it. `on_done` is not called any more."""
        if self._retry is not None:
            self._retry.cancel()
        else:
            self._loop.remove_writer(self._sock)
        self._sock.close()

    def _try_later(self) -> None:
        self._retry = self._loop.call_later(self._retry_s, self._try_again)
        self._retry_s = min(self._retry_s * 2, _LAST_RETRY_S)

    def _try_again(self) -> None:
        error = self._sock.connect_ex(self._path)
        if error == errno.EAGAIN:
            self._try_later()
        else:
            self._finish(error)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._finish(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _finish(self, error: int) -> None:
        error = error or _send_header(self._sock, self._proxy_header)
        if error:
            self._sock.close()
            self._on_done(None, error)
        else:
            family = int(self._sock.family)
            self._on_done(Stream(self._sock.detach(), family, blocks=False), 0)


def connect(
    loop: asyncio.AbstractEventLoop,
    address: SocketAddress,
    on_done: Callable[[Stream | None, int], None],
    proxy_header: bytes = b"",
) -> Connecting | None:
    """Connect and send `proxy_header`. Calls `on_done(stream, 0)` or `on_done(None, errno)` once.

    Returns None if the kernel knew the outcome at once: then `on_done` has been called already.
    Otherwise returns what can be cancelled.
    """
    family, sockaddr = address
    try:
        sock = SocketType(family, _NONBLOCKING_STREAM)
    except OSError as error:  # no descriptors
        on_done(None, error.errno or errno.EMFILE)
        return None
    if family != _AF_UNIX:
        # Without it a small write would wait for the delayed acknowledgement of the previous write.
        sock.setsockopt(_TCP, _NODELAY, 1)
    failure = sock.connect_ex(sockaddr)
    if failure == errno.EINPROGRESS:
        failure = sock.connect_ex(sockaddr)
    if failure in _CONNECTED:
        failure = _send_header(sock, proxy_header) if proxy_header else 0
    if not failure:
        on_done(Stream(sock.detach(), family, blocks=False), 0)
        return None
    if failure in _IN_PROGRESS:
        return Connecting(loop, sock, on_done, proxy_header)
    if failure == errno.EAGAIN and family == _AF_UNIX:
        return Connecting(loop, sock, on_done, proxy_header, sockaddr)
    sock.close()
    on_done(None, failure)
    return None


async def connect_unix(path: str) -> socket.socket:
    """A connected, non-blocking socket, for those that have a task; the caller closes it. While the
    queue is full it waits: cancel it to give up. OSError.

    `loop.sock_connect` does not: it takes the EAGAIN of a full queue for a connect in progress,
    and says that it is done at once.
    """
    pause_s = _FIRST_RETRY_S
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LAST_RETRY_S)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


def _send_header(sock: SocketType, proxy_header: bytes) -> int:
    """Send the PROXY header; returns the errno if that failed, else 0.

    It is the first thing sent, and far smaller than the smallest send buffer, so there is
    room for all of it.
    """
    if not proxy_header:
        return 0
    try:
        sent = sock.send(proxy_header)
    except OSError as error:
        return error.errno or errno.ECONNRESET
    return 0 if sent == len(proxy_header) else errno.ENOBUFS


def error_text(error: int) -> str:
    """The system's text for an errno."""
    return os.strerror(error)


def is_resource_error(error: int) -> bool:
    """Does this errno mean that we have run out of something? Then no worker is to blame."""
    return error in _RESOURCE_ERRORS


def fault_of(error: int) -> Fault:
    """Whose fault a failed connect is."""
    return NO_DESCRIPTORS if is_resource_error(error) else CONNECT_FAILED
