"""What one connection was given to send, and its kernel has not taken yet.

Owns: these bytes in their order, and the pipe that holds the first of them if they came through
one. Must not know: who is told to pause, and what follows when all is sent (`socket_writer`).
"""

import os
from collections import deque
from typing import Final

from penstock_proxy.net.pipes import Pipe, Pipes

_MAX_PIECES: Final = 64
"""Of one writev. The kernel takes 1024; there are rarely many."""


class Unsent:
    """Made when it is needed: for most connections never."""

    __slots__ = ("_pieces", "_pipe", "_pipes", "size")

    def __init__(self, pipes: Pipes, pipe: Pipe | None = None) -> None:
        """`pipe`: it holds what has to be sent first, and belongs to this from now on."""
        self._pipes = pipes
        self._pipe = pipe
        self._pieces: deque[bytes] = deque()
        self.size = 0 if pipe is None else pipe.held
        """Bytes, with those in the pipe."""

    def is_piped(self) -> bool:
        """Is the first of it in a pipe?"""
        return self._pipe is not None

    def append(self, data: bytes) -> None:
        self._pieces.append(data)
        self.size += len(data)

    def send(self, fd: int) -> None:
        """Send as much as the socket takes. Raises OSError, also if it takes nothing."""
        pieces, pipe = self._pieces, self._pipe
        if pipe is not None and not (self._has_sent(fd, pipe) and pieces):
            return
        sent = os.writev(fd, [pieces[i] for i in range(min(len(pieces), _MAX_PIECES))])
        self.size -= sent
        while sent:
            piece = pieces.popleft()
            sent -= len(piece)
            if sent < 0:
                pieces.appendleft(piece[sent:])
                break

    def _has_sent(self, fd: int, pipe: Pipe) -> bool:
        """Send what is in the pipe. Is it empty?"""
        before = pipe.held
        pipe.send(fd)
        self.size -= before - pipe.held
        if pipe.held:
            return False
        self._pipe = None
        self._pipes.give(pipe)
        return True

    def discard(self) -> None:
        """The connection is gone, and nothing of this will be sent."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._pipes.give(pipe)
