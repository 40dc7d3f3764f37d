"""Has a peer sent something that was not read yet?

Owns the question to the kernel. A connection that looks idle here may have its next request in
the kernel already, and must not be closed then; or it may have bytes that nobody asked for, and
must not be used then. Must not know: what would be read.
"""

import socket
from socket import SocketType
from typing import Final

_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


def has_unread(sock: SocketType | None) -> bool:
    """Does the kernel have unread bytes of the peer? False for an end, an error, or no socket."""
    if sock is None:
        return False
    try:
        return bool(sock.recv(1, _PEEK))
    except OSError:
        return False


def is_silent(sock: SocketType) -> bool:
    """Has the kernel nothing of the peer: neither bytes, nor its end, nor an error?"""
    try:
        sock.recv(1, _PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
