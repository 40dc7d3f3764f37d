"""A peer that has ended its side of a connection: does it still read?

Owns the questions to the kernel: has it left, and what has it not taken yet. A peer that has only
ended its side, and one that has closed the whole connection and left, both send a FIN and nothing
else. On a unix socket the kernel knows the difference. On TCP a peer that has left answers our
next bytes with a reset. Where nothing is written for a while, keep-alive probes stand in for
them: the peer's kernel forgets a connection that its program has closed (Linux after
`tcp_fin_timeout`, a minute), and answers the next probe with a reset. A machine that is gone
answers none. Must not know: what is waited for.

See docs/decisions/0021-half-closed.md.
"""

import socket
from array import array
from contextlib import suppress
from fcntl import ioctl
from select import POLLHUP, poll
from socket import SocketType
from termios import TIOCOUTQ
from typing import Final

PROBE_S: Final = 5
"""Seconds between two probes, and before the first."""
_PROBES: Final = 6
"""So many without an answer: the machine is gone."""


def has_left(sock: SocketType | None) -> bool:
    """Has this peer, whose end of file has come, closed the whole connection?

    True: that is certain. False: nobody can know yet. From then on it is probed, and the
    connection fails when it turns out to be gone.
    """
    if sock is None or sock.fileno() < 0:
        return False
    if sock.family == socket.AF_UNIX:
        poller = poll()
        poller.register(sock, 0)
        return any(events & POLLHUP for _, events in poller.poll(0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return False


def unacknowledged(sock: SocketType | None) -> int:
    """Bytes in the kernel that the peer has not acknowledged; on a unix socket, not read."""
    size = array("i", [0])
    if sock is not None and sock.fileno() >= 0:
        with suppress(OSError):
            ioctl(sock.fileno(), TIOCOUTQ, size)
    return size[0]
