"""Closing a connection that is refused, so that its client gets the response.

If a socket is closed while bytes of the client are unread, the kernel resets the connection, and
the client may lose a response that it has not read yet. So a lingering close sends the response,
shuts down its sending half, and reads what the client still sends before it closes.

Owns that, and a spare descriptor with which a connection can be refused while no other
descriptor is free. Must not know why a connection is refused, nor what the response means.
"""

import os
import socket
from contextlib import suppress
from typing import Final

_READ_SIZE: Final = 64 << 10
_MAX_READS: Final = 16
"""Reads at one time. A client that sends more is reset."""
_NOW: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_STREAM: Final = int(socket.SOCK_STREAM)
_UNACKED: Final = slice(24, 28)
"""`tcpi_unacked` of tcp(7)'s `tcp_info`; for a listening socket the length of its queue."""
_MANY: Final = 1 << 16


def accept_queue_length(listener: socket.socket) -> int:
    """How many connections wait to be accepted. The kernel does not tell it of a unix socket:
    the answer is then a large number."""
    if listener.family == socket.AF_UNIX:
        return _MANY
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.stop)
    except OSError:
        return 0
    return int.from_bytes(info[_UNACKED], "little")


def begin(fd: int, family: int, response: bytes) -> socket.socket:
    """Send the response and shut down the sending half. The caller closes the socket, when
    `is_complete` says that it can."""
    sock = socket.socket(family, _STREAM, 0, fileno=fd)
    with suppress(OSError):
        if response:
            sock.send(response, _NOW)
        sock.shutdown(socket.SHUT_WR)
    return sock


def is_complete(sock: socket.socket) -> bool:
    """Read and drop what the client has sent. True: close it, it has ended or sends too much."""
    try:
        for _ in range(_MAX_READS):
            if not sock.recv(_READ_SIZE, _NOW):
                return True
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


class SpareDescriptor:
    """A descriptor that is closed in order to accept one more connection, and then opened again.

    Make it early, so that its number is below any limit that is set later.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._open()

    def refuse(self, listener: socket.socket, response: bytes) -> bool:
        """Accept a connection, answer and close it. False: none waits, or no descriptor is free."""
        self.close()
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return False
        else:
            with begin(fd, int(listener.family), response) as sock:
                is_complete(sock)
            return True
        finally:
            self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        with suppress(OSError):
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
