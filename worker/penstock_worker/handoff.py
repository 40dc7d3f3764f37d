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
"""Taken, ended: how many since the last message."""
MOST: Final = 8
"""Connections a message, and about as many a wake-up: the loop has those to serve that it took
before."""
_CREDIT_SIZE: Final = CREDIT.size
# Plain numbers: Python 3.11 needs longer to combine two enum members than the kernel to send.
_NO_BLOCK: Final = int(socket.MSG_DONTWAIT)
_SOCKET: Final = int(socket.SOL_SOCKET)
_RIGHTS: Final = int(socket.SCM_RIGHTS)
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC) | _NO_BLOCK
_FD: Final = struct.Struct("i")
_SPACE: Final = socket.CMSG_SPACE(_FD.size * MOST)


class Report(NamedTuple):
    """What a worker has done since its last word."""

    taken: int
    ended: int


def send(link: socket.socket, kind: bytes, fds: Sequence[int]) -> None:
    """Send up to MOST connections; the caller still has its copies. BlockingIOError: it is full."""
    link.sendmsg((kind * len(fds),), ((_SOCKET, _RIGHTS, array.array("i", fds)),), _NO_BLOCK)


def receive(link: socket.socket) -> tuple[bytes, Sequence[int]] | None:
    """Take the connections of one message out of a link; None if there is none.

    The first is a byte for each of them: all CLIENT or all PROBE, or empty when the link has
    ended. There are fewer descriptors only if this process has no number for them.
    """
    try:
        kinds, ancillary, _, _ = link.recvmsg(MOST, _SPACE, _CLOEXEC)
    except (BlockingIOError, InterruptedError):
        return None
    fds = array.array("i")
    for level, what, data in ancillary:
        if level == _SOCKET and what == _RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for extra in fds[len(kinds) :]:
        os.close(extra)
    return kinds, fds[: len(kinds)]


def reports(link: socket.socket) -> Report | None:
    """Everything that a worker has said; None if it has said nothing. OSError: it is gone."""
    taken = ended = 0
    heard = False
    while True:
        try:
            # One byte more, or a longer message would look like one of ours.
            data = link.recv(_CREDIT_SIZE + 1, _NO_BLOCK)
        except (BlockingIOError, InterruptedError):
            return Report(taken, ended) if heard else None
        if len(data) != _CREDIT_SIZE:
            # Nothing is the end; anything else is no worker of ours.
            raise ConnectionResetError
        heard = True
        more = CREDIT.unpack(data)
        taken, ended = taken + more[0], ended + more[1]
