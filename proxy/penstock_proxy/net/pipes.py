"""Pipes through which bytes go from one socket to another without being copied (splice(2)).

Owns: the pipes of one process, how many there are and how large, and which of them are open.
A pipe is lent for one move of bytes. It stays with the receiving transport only as long as that
socket does not take all of them (`unsent`). So an idle connection has no pipe, and as long as
receivers keep up one is enough for all connections.

A pipe that holds bytes is never lent: they belong to one connection. If they cannot be sent, the
pipe is closed with them.

Pipes are never needed. Where the process has no descriptors to spare, or the kernel gives no
pipe of this size, there is none, and bytes are read and written. Must not know: whose bytes.

See docs/decisions/0027-splice.md.
"""

import errno
import os
from fcntl import F_SETPIPE_SZ, fcntl
from os import splice
from typing import Final, Protocol

_SIZE: Final = 512 << 10
"""Of a pipe. It counts in pages, and a page may have one packet of 1.4 KB: this is for 180 KB of
such packets. A pipe of the default size of 64 KiB costs more turns than it saves."""
_MAX_OPEN: Final = 32
"""Together 16 MiB: a quarter of what the kernel grants a user who is not root."""
_FREE_PAIRS: Final = 64
"""No pipe is opened unless so many more connections would still find their descriptors."""
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class DescriptorCount(Protocol):
    """Who counts the descriptors of the process."""

    pipes: int
    """Descriptors of open pipes."""

    def room(self) -> int:
        """How many more connections can have two descriptors each."""


class Pipe:
    """One pipe, and how many bytes are in it."""

    __slots__ = ("_read_fd", "_write_fd", "held")

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self.held = 0

    def fill(self, fd: int, count: int) -> int:
        """Take up to `count` bytes from a socket; the pipe has to be empty.

        Returns how many. 0: there are none, or none that can be spliced, and a read has to find
        out which. Raises OSError as a read would.
        """
        try:
            self.held = splice(fd, self._write_fd, count, None, None, _FLAGS)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # The kernel cannot splice this kind of socket.
            return 0
        return self.held

    def send(self, fd: int) -> None:
        """Give as many bytes as it takes to a socket. Raises OSError as a write would."""
        try:
            self.held -= splice(self._read_fd, fd, self.held, None, None, _FLAGS)
        except BlockingIOError:
            return

    def take_out(self) -> bytes:
        """What it still holds."""
        pieces = []
        while self.held:
            piece = os.read(self._read_fd, self.held)
            self.held -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


class Pipes:
    """The pipes of one process."""

    __slots__ = ("_fewest", "_open", "_spare", "descriptors", "moved")

    def __init__(self) -> None:
        self.descriptors: DescriptorCount | None = None
        """None: descriptors are not counted."""
        self.moved = 0
        """Bytes that went through pipes so far."""
        self._spare: list[Pipe] = []
        self._open = 0
        self._fewest = 0
        """So many were spare at every moment since the last tick."""

    def take(self) -> Pipe | None:
        """An empty pipe; None: there is none. It has to come back by `give`."""
        spare = self._spare
        if not spare:
            return self._open_one() if self._may_open() else None
        pipe = spare.pop()
        self._fewest = min(self._fewest, len(spare))
        return pipe

    def give(self, pipe: Pipe) -> None:
        """It is not used any more. If it still holds bytes they are lost, and it is closed."""
        if pipe.held:
            self._close_one(pipe)
        else:
            self._spare.append(pipe)

    def may_be_kept(self) -> bool:
        """May a pipe stay with a connection that is slow? There has to be another for the rest."""
        return bool(self._spare) or self._may_open()

    def tick(self) -> None:
        """Close the pipes that nobody needed since the last tick."""
        for _ in range(self._fewest):
            self._close_one(self._spare.pop())
        self._fewest = len(self._spare)

    def close(self) -> None:
        """Close all that are spare."""
        while self._spare:
            self._close_one(self._spare.pop())

    def _may_open(self) -> bool:
        count = self.descriptors
        return self._open < _MAX_OPEN and (count is None or count.room() > _FREE_PAIRS)

    def _open_one(self) -> Pipe | None:
        try:
            read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        pipe = Pipe(read_fd, write_fd)
        try:
            fcntl(write_fd, F_SETPIPE_SZ, _SIZE)
        except OSError:
            # The user has too many, or the system's largest size is smaller.
            pipe.close()
            return None
        self._count(1)
        return pipe

    def _close_one(self, pipe: Pipe) -> None:
        pipe.close()
        self._count(-1)

    def _count(self, pipes: int) -> None:
        self._open += pipes
        if self.descriptors is not None:
            self.descriptors.pipes += 2 * pipes
