"""The protocol of a link: one connection = one byte and one descriptor = one credit; both ends.

Owns what is sent over a link and how it is read. The proxy sends the connections that it accepted
at the same time in one SOCK_SEQPACKET message, eight at most: a message costs as much as
five descriptors. The kernel keeps the bounds of messages, so none can merge with the next
and no descriptor is lost (on a stream both happen). The worker answers with two numbers: how
many connections it has taken, and how many of those have ended.

Reading a message is atomic. The proxy has a copy of the worker's end, so it can read back what
the worker has not taken: exactly one of the two gets each message.

No call here waits. No HTTP, no pool, no idea of what a connection is for; when a worker takes
one is `receiver`.

See docs/decisions/0008-seqpacket-for-handoff.md.
"""

import array
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

CLIENT: Final = b"c"
PROBE: Final = b"p"
"""A health check: served like a client, and counted nowhere."""

CREDIT: Final = struct.Struct("<HH")
"""How many were taken, and how many have ended, since the last message."""
MAX_PER_MESSAGE: Final = 8
"""Connections in one message, and about as many in one turn of the loop: it has to serve those
that it took before."""
_CREDIT_SIZE: Final = CREDIT.size
# Plain numbers: Python 3.11 needs longer to combine two enum members than the kernel to send.
_NO_BLOCK: Final = int(socket.MSG_DONTWAIT)
_SOCKET: Final = int(socket.SOL_SOCKET)
_RIGHTS: Final = int(socket.SCM_RIGHTS)
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC) | _NO_BLOCK
_FD: Final = struct.Struct("i")
_SPACE: Final = socket.CMSG_SPACE(_FD.size * MAX_PER_MESSAGE)


class Report(NamedTuple):
    """What a worker has done since its last report."""

    taken: int
    ended: int


def send(link: socket.socket, kind: bytes, fds: Sequence[int]) -> None:
    """Send up to MAX_PER_MESSAGE connections. `fds` stay the caller's.

    BlockingIOError: the link is full.
    """
    link.sendmsg((kind * len(fds),), ((_SOCKET, _RIGHTS, array.array("i", fds)),), _NO_BLOCK)


def receive(link: socket.socket) -> tuple[bytes, Sequence[int]] | None:
    """Take the connections of one message out of a link; None if there is none.

    Returns a byte for each connection (all CLIENT or all PROBE) and their descriptors. No byte
    means that the link has ended. There are fewer descriptors than bytes only if this process had
    no free number for them.
    """
    try:
        kinds, ancillary, _, _ = link.recvmsg(MAX_PER_MESSAGE, _SPACE, _CLOEXEC)
    except (BlockingIOError, InterruptedError):
        return None
    fds = array.array("i")
    for level, what, data in ancillary:
        if level == _SOCKET and what == _RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for extra in fds[len(kinds) :]:
        os.close(extra)
    return kinds, fds[: len(kinds)]


def read_reports(link: socket.socket) -> Report | None:
    """The sum of all reports that have arrived; None without one. OSError: the worker is gone."""
    taken = ended = 0
    received = False
    while True:
        try:
            # One byte more than a report has, so that a longer message is noticed.
            data = link.recv(_CREDIT_SIZE + 1, _NO_BLOCK)
        except (BlockingIOError, InterruptedError):
            return Report(taken, ended) if received else None
        if len(data) != _CREDIT_SIZE:
            # No byte is the end of the link; any other size is no report.
            raise ConnectionResetError
        received = True
        more = CREDIT.unpack(data)
        taken, ended = taken + more[0], ended + more[1]
