"""The clean end of a connection that nobody can serve.

Owns the last resort: one descriptor that is kept for the day when there is no other, and the
way in which a client is told no so that it can hear it. A plain close while the client's
bytes are unread makes the kernel reset the connection, and throws away what we said. Must
not know why somebody is turned away, nor what the words mean.
"""

import os
import socket
from contextlib import suppress
from typing import Final

_PIECE: Final = 64 << 10
_MOST_PIECES: Final = 16
"""Of what the client has sent; who sends without end is reset."""
_NOW: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_STREAM: Final = int(socket.SOCK_STREAM)
_UNACKED: Final = slice(24, 28)
"""`tcpi_unacked` of tcp(7)'s `tcp_info`; for a listening socket the length of its queue."""
_MANY: Final = 1 << 16


def waiting(listener: socket.socket) -> int:
    """How many wait to be accepted. A unix socket does not say it: perhaps many."""
    if listener.family == socket.AF_UNIX:
        return _MANY
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.stop)
    except OSError:
        return 0
    return int.from_bytes(info[_UNACKED], "little")


def tell(fd: int, family: int, words: bytes) -> socket.socket:
    """Say it, and that it is all. The connection is still to be closed, when it was heard."""
    sock = socket.socket(family, _STREAM, 0, fileno=fd)
    with suppress(OSError):
        if words:
            sock.send(words, _NOW)
        sock.shutdown(socket.SHUT_WR)
    return sock


def is_over(sock: socket.socket) -> bool:
    """Read what the client has sent so far. Has it ended, or does it send without end?"""
    try:
        for _ in range(_MOST_PIECES):
            if not sock.recv(_PIECE, _NOW):
                return True
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


class Spare:
    """A descriptor that is given up to accept one more, and taken back at once.

    Opened early, so that its number is below any limit that is set later.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._keep()

    def refuse(self, listener: socket.socket, words: bytes) -> bool:
        """Accept one, tell it, and close it. False: there was none, or not even this way."""
        self.close()
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return False
        else:
            with tell(fd, int(listener.family), words) as sock:
                is_over(sock)
            return True
        finally:
            self._keep()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _keep(self) -> None:
        with suppress(OSError):
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
