"""TCP_INFO: is a connection to a worker still open, and what has the worker's kernel received?

Owns: two questions to the kernel about one connection. Must not know: HTTP, or what follows from
the answers (`retry`).

A worker may close a kept-alive connection just when the next request is sent on it. The request
may be sent again, without being processed twice, if the worker's kernel has acknowledged none of
it. The reason: the FIN of a TCP connection acknowledges all that arrived before it. What it does
not acknowledge arrived too late, and no process will ever read it. A reset proves nothing: the
kernel ignores its acknowledgement, and a worker also resets a connection when it has read only
half of the data. On a unix socket, a write after the peer has closed fails at once and delivers
nothing.
"""

import socket
import struct
from socket import SocketType
from typing import Final

from penstock_proxy.net.transport import Transport

CLOSED: Final = -1
"""The peer has closed it."""
UNKNOWN: Final = -2
"""The kernel could not be asked."""

UNIX_OPEN: Final = 0
"""An open unix socket. It counts no bytes; a failed write tells that nothing was delivered."""

_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_ESTABLISHED: Final = 1
"""Of `tcpi_state`; every other state means that the peer has closed."""
_TCP_INFO: Final = struct.Struct("=B119xQ")
"""`tcpi_state` and `tcpi_bytes_acked` of struct tcp_info (linux/tcp.h, since Linux 4.1)."""

_TCP_INFO_SENT: Final = struct.Struct("=120xQ72xQQ")
"""`tcpi_bytes_acked`, `tcpi_bytes_sent` and `tcpi_bytes_retrans` (since Linux 4.19)."""


def acknowledged(transport: Transport) -> int:
    """Bytes that the peer's kernel has acknowledged so far; CLOSED, UNIX_OPEN or UNKNOWN."""
    sock = transport.borrow()
    if sock is None or sock.fileno() < 0:
        return UNKNOWN
    if sock.family == socket.AF_UNIX:
        return _unix_state(sock)
    info = _tcp_info(sock, _TCP_INFO)
    if info is None:
        return UNKNOWN
    state, acked = info
    return acked if state == _ESTABLISHED else CLOSED


def is_unread(transport: Transport, before: int, error: Exception | None) -> bool:
    """Is it certain that the peer has read nothing since `before`, a result of `acknowledged`?

    To be asked when the connection has ended. `error`: what it ended with; None for a clean end.
    """
    if before < 0 or not (error is None or isinstance(error, BrokenPipeError)):
        return False
    sock = transport.borrow()
    if sock is None or sock.fileno() < 0:
        return False
    if sock.family == socket.AF_UNIX:
        return error is not None
    info = _tcp_info(sock, _TCP_INFO)
    return info is not None and info[1] == before


def is_unacknowledged(transport: Transport, size: int, error: Exception | None) -> bool:
    """Is it certain that the peer has read none of the last `size` bytes that were sent?

    Like `is_unread`, but nothing has to be known from before. Always False for a unix socket.
    """
    if not (size and (error is None or isinstance(error, BrokenPipeError))):
        return False
    sock = transport.borrow()
    if sock is None or sock.fileno() < 0 or sock.family == socket.AF_UNIX:
        return False
    info = _tcp_info(sock, _TCP_INFO_SENT)
    if info is None:
        return False
    acked, sent, sent_again = info
    # The acknowledgement of the SYN counts as a byte, and is not one of those sent.
    return sent - sent_again - (acked - 1) >= size


def is_unix(transport: Transport) -> bool:
    """Is it a unix socket?"""
    sock = transport.borrow()
    return sock is not None and sock.fileno() >= 0 and sock.family == socket.AF_UNIX


def _tcp_info(sock: SocketType, layout: struct.Struct) -> tuple[int, ...] | None:
    """These fields of struct tcp_info; None: the kernel cannot be asked, or does not have them."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, layout.size)
    except OSError:
        return None
    return layout.unpack(info) if len(info) == layout.size else None


def _unix_state(sock: SocketType) -> int:
    """UNIX_OPEN, or CLOSED if the peer has closed."""
    try:
        return UNIX_OPEN if sock.recv(1, _PEEK) else CLOSED
    except BlockingIOError:
        return UNIX_OPEN
    except OSError:
        return CLOSED
