"""What one connection was given to send, and its kernel has not taken yet.

Owns: these bytes in their order. Must not know: who is told to pause, and what follows when all is
sent (`socket_writer`).
"""

import os
from collections import deque
from typing import Final

_MAX_PIECES: Final = 64
"""Of one writev. The kernel takes 1024; there are rarely many."""


class Unsent:
    """Made when it is needed: for most connections never."""

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self.size = 0
        """Bytes."""

    def append(self, data: bytes) -> None:
        self._pieces.append(data)
        self.size += len(data)

    def send(self, fd: int) -> None:
        """Send as much as the socket takes. Raises OSError, also if it takes nothing."""
        pieces = self._pieces
        sent = os.writev(fd, [pieces[i] for i in range(min(len(pieces), _MAX_PIECES))])
        self.size -= sent
        while sent:
            piece = pieces.popleft()
            sent -= len(piece)
            if sent < 0:
                pieces.appendleft(piece[sent:])
                break
