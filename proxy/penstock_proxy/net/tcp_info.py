"""What the kernel knows of a connection to a worker: does it stand, and was anything taken?

Owns: two questions to the kernel about one connection. Must not know: HTTP, whose request
it is, what follows from the answers (`retry`).

A worker may close a kept connection just when the next request is sent on it. Whether that
request can be sent again without being done twice is known if its worker's kernel has
acknowledged none of it: the end of a TCP connection (FIN) carries an acknowledgement of all
that came before it, so what it does not acknowledge came too late, and no process will ever
read it. A reset proves nothing: its acknowledgement is not looked at, and a worker resets a
connection too when it has read half of what came. On a unix socket, what is written behind
the end is an error at once, and goes nowhere.
"""

import socket
import struct
from typing import Final

from penstock_proxy.net.transport import Transport

ENDED: Final = -1
"""The other end has closed it."""
UNKNOWN: Final = -2
"""There is nothing to ask."""

ONE_WRITE: Final = 0
"""A unix socket that stands, and tells no more than whether the next write goes nowhere."""

_ESTABLISHED: Final = 1
"""Of `tcpi_state`; all else is an end."""
_ACKED: Final = struct.Struct("=B119xQ")
"""`tcpi_state` and `tcpi_bytes_acked` of struct tcp_info (linux/tcp.h, since Linux 4.1)."""


def acknowledged(transport: Transport) -> int:
    """Bytes that the other end has acknowledged so far; ENDED, ONE_WRITE or UNKNOWN."""
    sock = transport.borrow()
    if sock is None or sock.fileno() < 0:
        return UNKNOWN
    if sock.family == socket.AF_UNIX:
        return _peek(sock.fileno())
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.size)
    except OSError:
        return UNKNOWN
    if len(info) < _ACKED.size:
        return UNKNOWN
    state, acked = _ACKED.unpack(info)
    return int(acked) if state == _ESTABLISHED else ENDED


def untaken(transport: Transport, before: int, error: Exception | None) -> bool:
    """Is it sure that nothing was taken since `before`? Asked when the connection has ended.

    `error` is what it ended with; None is an end in good order.
    """
    if before < 0 or not (error is None or isinstance(error, BrokenPipeError)):
        return False
    sock = transport.borrow()
    if sock is None or sock.fileno() < 0:
        return False
    if sock.family == socket.AF_UNIX:
        return error is not None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.size)
    except OSError:
        return False
    return len(info) == _ACKED.size and _ACKED.unpack(info)[1] == before


def _peek(fd: int) -> int:
    """For a unix socket: ONE_WRITE as long as it stands."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
    try:
        return ONE_WRITE if sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) else ENDED
    except BlockingIOError:
        return ONE_WRITE
    except OSError:
        return ENDED
    finally:
        sock.detach()
