"""What one end of a channel still has to write, and the one descriptor that is on its way.

Owns the parcels that wait (bounded, because a peer that has stopped reading must not make us
grow), their copies of descriptors, and the rule that nothing follows a descriptor until the
peer has acknowledged it; only our own acknowledgements go past. A breach of a bound or of
that rule by the peer is reported to `blame`, which ends the channel. Must not know what is
read from the peer, except acknowledgements, nor what messages mean.
"""

import array
import errno
import logging
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from penstock_worker import wire

MAX_UNSENT: Final = 4 << 20
"""Bytes that wait for a slow peer. Beyond it the peer is not slow but has stopped reading."""
MAX_LINES: Final = 1 << 16
"""The same for messages of a few bytes, each of which costs more than those."""
MAX_HANDLES: Final = 64
"""Descriptors that wait to be sent, each a copy that is open meanwhile."""
_TRIES: Final = 4
"""How often a descriptor is sent that the peer has no room for (Node: three times again)."""
_SHORT: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""The kernel is short of something; the peer is well."""
_PAUSE_S: Final = 0.05

_logger: Final = logging.getLogger("penstock.channel")


class Parcel(NamedTuple):
    """A line that waits to be sent, and the descriptor that goes with its first byte."""

    line: bytes
    handle: socket.socket | None = None
    on_sent: Callable[[bool], None] | None = None
    asks: bool = False
    """Its last byte asks for an acknowledgement."""
    answers: bool = False
    """It is one."""


class Outgoing:
    """The sending half; `sock` belongs to the channel and outlives this."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        blame: Callable[[str], None],
        on_deaf: Callable[[], None],
        most_handles: int = MAX_HANDLES,
    ) -> None:
        self.deaf = False
        """The peer takes nothing any more; its last words may still be unread."""
        self._loop = loop
        self._sock = sock
        self._blame = blame
        self._on_deaf = on_deaf
        self._most_handles = most_handles
        self._closed = False
        self._writing: deque[Parcel] = deque()
        self._queue: deque[Parcel] = deque()
        """Behind the handle that waits to be acknowledged."""
        self._pending: Parcel | None = None
        """That handle. There is one at a time."""
        self._handles = 0
        """Those that are not acknowledged, all in all."""
        self._asked = False
        """All of it is with the peer, which may answer now."""
        self._answering = False
        """Our own answer has not left yet, so the peer cannot send a handle again."""
        self._tries = 0
        self._unsent = 0
        """Bytes of all parcels that wait."""
        self._pause: TimerHandle | None = None
        self._short = False
        """The kernel has refused since it last took something, which was logged."""

    @property
    def crowded(self) -> bool:
        """One message more may be too much."""
        return (
            self._handles >= self._most_handles
            or self._unsent >= MAX_UNSENT - wire.MAX_LINE
            or len(self._queue) + len(self._writing) >= MAX_LINES
        )

    def put(self, parcel: Parcel) -> None:
        """Send it when its turn comes; the parcel's handle is ours now."""
        self._handles += parcel.handle is not None
        self._unsent += len(parcel.line)
        self._queue.append(parcel)
        self._advance()
        if self._unsent > MAX_UNSENT:
            self._blame(f"the peer left {self._unsent} bytes unread")
        elif len(self._queue) + len(self._writing) > MAX_LINES:
            self._blame(f"the peer left more than {MAX_LINES} messages unread")
        elif self._handles > self._most_handles:
            self._blame(f"the peer left {self._handles} descriptors untaken")

    def close(self) -> list[Parcel]:
        """Let go of everything; returns what waited, for whoever waits for it."""
        self._closed = True
        self._loop.remove_writer(self._sock)
        if self._pause is not None:
            self._pause.cancel()
        waiting = [parcel for parcel in (self._pending, *self._queue) if parcel is not None]
        for parcel in waiting:
            if parcel.handle is not None:
                parcel.handle.close()
        self._writing.clear()
        self._queue.clear()
        self._pending = None
        self._unsent = self._handles = 0
        return waiting

    def _advance(self) -> None:
        """Write what may be written: everything up to the next handle, and that one."""
        while self._queue and self._pending is None:
            parcel = self._queue.popleft()
            self._writing.append(parcel)
            if parcel.asks:
                self._pending, self._tries, self._asked = parcel, 1, False
        self._flush()

    def answer(self, command: str) -> None:
        """Acknowledge, past the queue: two peers with handles would wait for ever."""
        if self.deaf:
            return
        if self._answering:
            self._blame("descriptors that do not wait to be acknowledged")
            return
        line = wire.encoded({"cmd": command})
        self._answering = True
        self._unsent += len(line)
        self._writing.append(Parcel(line, answers=True))
        self._flush()

    def _flush(self) -> None:
        # At once when it can be: a child says why it failed and exits without another turn
        # of its loop.
        while self._writing and not self.deaf and not self._closed:
            parcel = self._writing[0]
            sent = self._write(parcel)
            if sent < 0:
                return
            self._short = False
            self._unsent -= sent
            self._writing.popleft()
            if sent < len(parcel.line):
                # The descriptor went with the first byte.
                self._writing.appendleft(parcel._replace(line=parcel.line[sent:], handle=None))
            elif parcel.asks:
                self._asked = True
            elif parcel.answers:
                self._answering = False

    def _write(self, parcel: Parcel) -> int:
        """Bytes that the kernel took; -1 if it has no room, and `_flush` is called again."""
        rights: list[tuple[int, int, array.array[int]]] = []
        if parcel.handle is not None:
            fds = array.array("i", [parcel.handle.fileno()])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        try:
            return self._sock.sendmsg([parcel.line], rights)
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._sock, self._writable)
        except OSError as error:
            if error.errno not in _SHORT:
                # Not yet the end: what the peer said before it left is still to be read.
                self.deaf = True
                self._on_deaf()
                return len(parcel.line)
            if not self._short:
                self._short = True
                _logger.warning("channel: %s; trying again", error.strerror)
            if self._pause is None:
                self._pause = self._loop.call_later(_PAUSE_S, self._resumed)
        return -1

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._flush()

    def _resumed(self) -> None:
        self._pause = None
        self._flush()

    def acknowledged(self, taken: bool) -> None:
        parcel = self._pending
        if parcel is None or parcel.handle is None or not self._asked:
            self._blame("an acknowledgement that nobody asked for")
            return
        self._asked = False
        if not taken and self._tries < _TRIES:
            self._tries += 1
            self._unsent += len(parcel.line)
            self._writing.append(parcel)
            self._flush()
            return
        if not taken:
            _logger.warning("channel: the peer cannot take a descriptor; it is given up")
        self._pending = None
        self._handles -= 1
        parcel.handle.close()
        tell(parcel, taken)
        if not self._closed:
            self._advance()


def tell(parcel: Parcel, taken: bool) -> None:
    """Tell who sent it what became of its handle."""
    if parcel.on_sent is None:
        return
    try:
        parcel.on_sent(taken)
    except Exception:
        _logger.exception("channel: who was told of a descriptor failed")
