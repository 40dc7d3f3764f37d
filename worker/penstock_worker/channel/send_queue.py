"""What one end of a channel has still to send, and the one descriptor that is under way.

Owns the messages that wait and their copies of descriptors. Both are bounded twice. Up to the
first bound a program may send; then the queue is `congested`, and the sender is refused or waits
for `on_room`. A peer that is busy is slow, and nothing else. Our own messages are few and may
always follow. Only at the second bound, which no program can reach, the peer is taken to have
stopped reading, because it must not make us grow. What is said in many messages at once, such as a
configuration, is as long as it is: who says it says it seldom (`put_each`). Owns also the rule that
nothing follows a descriptor until the peer has acknowledged it: on a stream, two descriptors can
overtake the lines that they belong to. Only our own acknowledgements may pass. If the peer exceeds
a bound or breaks that rule, `on_violation` is called, which ends the channel.

Must not know what is read from the peer, except acknowledgements, nor what messages mean.
"""

import array
import errno
import logging
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from penstock_worker.channel import framing

MAX_UNSENT: Final = 4 << 20
"""Bytes that a program may leave waiting for a slow peer."""
MAX_LINES: Final = 1 << 16
"""The same in messages: a short one costs more memory than its bytes."""
MAX_HANDLES: Final = 64
"""Descriptors that wait to be sent, each a copy that is open meanwhile."""
_OWN_FACTOR: Final = 2
"""So many times as much may wait in all, with our own messages."""
_MAX_ATTEMPTS: Final = 4
"""How often a descriptor is sent that the peer has no room for. Node tries as often."""
_EXHAUSTED: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""The kernel is short of something. Nothing is wrong with the peer."""
_RETRY_S: Final = 0.05

_logger: Final = logging.getLogger("penstock.channel")


class QueuedMessage(NamedTuple):
    """A line that waits to be sent, and the descriptor that goes with its first byte."""

    line: bytes
    handle: socket.socket | None = None
    on_sent: Callable[[bool], None] | None = None
    wants_ack: bool = False
    """The peer acknowledges it."""
    is_ack: bool = False
    """It is an acknowledgement of ours."""
    is_bounded: bool = True
    """It counts as unsent. False: it is part of what is said at once, however long that is."""


class SendQueue:
    """The sending half; `sock` belongs to the channel and outlives this."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        on_violation: Callable[[str], None],
        on_unwritable: Callable[[], None],
        max_handles: int = MAX_HANDLES,
    ) -> None:
        self.unwritable = False
        """The peer takes nothing any more. Its last messages may still be unread."""
        self._loop = loop
        self._sock = sock
        self._on_violation = on_violation
        self._on_unwritable = on_unwritable
        self._max_handles = max_handles
        self._closed = False
        self._writing: deque[QueuedMessage] = deque()
        self._queue: deque[QueuedMessage] = deque()
        """Messages that follow the handle that waits to be acknowledged."""
        self._pending: QueuedMessage | None = None
        """The message with that handle. There is one at a time."""
        self._handles = 0
        """Handles that are not acknowledged: the one under way and those in the queue."""
        self._ack_due = False
        """The whole line has been sent, so the peer may acknowledge it."""
        self._ack_unsent = False
        """Our own acknowledgement has not left yet, so the peer must not send another handle."""
        self._attempts = 0
        self._unsent = 0
        """Bytes of all messages that wait and are bounded."""
        self._unbounded = 0
        """The number of the other ones."""
        self._retry: TimerHandle | None = None
        self._exhausted = False
        """The kernel is short of something, and that was logged."""
        self.on_room: Callable[[], None] | None = None
        """Is called when the queue is not congested any more."""

    @property
    def empty(self) -> bool:
        """The kernel has everything, or nothing will be taken any more."""
        return self.unwritable or not (self._writing or self._queue or self._pending)

    @property
    def awaits_ack(self) -> bool:
        """Nothing can be sent until the peer acknowledges a handle."""
        return self._pending is not None and not self._writing

    @property
    def congested(self) -> bool:
        """A program has to wait: one large message more may be too much."""
        return (
            self._handles >= self._max_handles
            or self._unsent >= MAX_UNSENT - framing.MAX_LINE
            or len(self._queue) + len(self._writing) - self._unbounded >= MAX_LINES
        )

    def put(self, message: QueuedMessage) -> None:
        """Send a message when its turn comes. Owns the handle from now on."""
        self._handles += message.handle is not None
        self._unsent += len(message.line)
        self._queue.append(message)
        self._advance()
        lines = len(self._queue) + len(self._writing) - self._unbounded
        if self._unsent > _OWN_FACTOR * MAX_UNSENT:
            self._on_violation(f"the peer left {self._unsent} bytes unread")
        elif lines > _OWN_FACTOR * MAX_LINES:
            self._on_violation(f"the peer left {lines} messages unread")
        elif self._handles > _OWN_FACTOR * self._max_handles:
            self._on_violation(f"the peer left {self._handles} descriptors untaken")

    def put_each(self, lines: Sequence[bytes]) -> None:
        """Send all of these, without a bound: they say one thing together, once."""
        self._unbounded += len(lines)
        self._queue.extend(QueuedMessage(line, is_bounded=False) for line in lines)
        self._advance()

    def close(self) -> list[QueuedMessage]:
        """Drop everything; returns the messages that waited, so that their senders can be told."""
        self._closed = True
        self._loop.remove_writer(self._sock)
        if self._retry is not None:
            self._retry.cancel()
        waiting = [message for message in (self._pending, *self._queue) if message is not None]
        for message in waiting:
            if message.handle is not None:
                message.handle.close()
        self._writing.clear()
        self._queue.clear()
        self._pending = None
        self._unsent = self._unbounded = self._handles = 0
        self._tell_room()
        return waiting

    def leave_loop(self, loop: AbstractEventLoop) -> None:
        """The loop is closed: use this one, which never calls anything."""
        self._loop = loop

    def _advance(self) -> None:
        """Write what may be written: everything up to the next handle, and that one."""
        while self._queue and self._pending is None:
            message = self._queue.popleft()
            self._writing.append(message)
            if message.wants_ack:
                self._pending, self._attempts, self._ack_due = message, 1, False
        self._flush()

    def acknowledge(self, command: str) -> None:
        """Send ACK or NACK past the queue, or two peers that both send handles wait for ever."""
        if self.unwritable:
            return
        if self._ack_unsent:
            self._on_violation("descriptors that do not wait to be acknowledged")
            return
        line = framing.encode({"cmd": command})
        self._ack_unsent = True
        self._unsent += len(line)
        self._writing.append(QueuedMessage(line, is_ack=True))
        self._flush()

    def flush(self) -> None:
        """Write what the kernel takes now."""
        self._flush()

    def _flush(self) -> None:
        # At once, if possible: a child sends why it failed and exits without another turn of
        # its loop.
        while self._writing and not self.unwritable and not self._closed:
            message = self._writing[0]
            sent = self._write(message)
            if sent < 0:
                return
            self._exhausted = False
            self._writing.popleft()
            if message.is_bounded:
                self._unsent -= sent
            elif sent == len(message.line):
                self._unbounded -= 1
            if sent < len(message.line):
                # The descriptor went with the first byte.
                self._writing.appendleft(message._replace(line=message.line[sent:], handle=None))
            elif message.wants_ack:
                self._ack_due = True
            elif message.is_ack:
                self._ack_unsent = False
            self._tell_room()

    def _tell_room(self) -> None:
        if self.on_room is not None and not self.congested:
            on_room, self.on_room = self.on_room, None
            on_room()

    def _write(self, message: QueuedMessage) -> int:
        """Bytes that the kernel took; -1 if it has no room, and `_flush` is called again."""
        rights: list[tuple[int, int, array.array[int]]] = []
        if message.handle is not None:
            fds = array.array("i", [message.handle.fileno()])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        try:
            return self._sock.sendmsg([message.line], rights)
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._sock, self._writable)
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                # Not yet the end: what the peer sent before it left is still to be read.
                self.unwritable = True
                self._on_unwritable()
                return len(message.line)
            if not self._exhausted:
                self._exhausted = True
                _logger.warning("channel: %s; trying again", error.strerror)
            if self._retry is None:
                self._retry = self._loop.call_later(_RETRY_S, self._retry_now)
        return -1

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._flush()

    def _retry_now(self) -> None:
        self._retry = None
        self._flush()

    def on_acknowledged(self, taken: bool) -> None:
        message = self._pending
        if message is None or message.handle is None or not self._ack_due:
            self._on_violation("an acknowledgement that nobody asked for")
            return
        self._ack_due = False
        if not taken and self._attempts < _MAX_ATTEMPTS:
            self._attempts += 1
            self._unsent += len(message.line)
            self._writing.append(message)
            self._flush()
            return
        if not taken:
            _logger.warning("channel: the peer cannot take a descriptor; it is given up")
        self._pending = None
        self._handles -= 1
        message.handle.close()
        report(message, taken)
        if not self._closed:
            self._tell_room()
            self._advance()


def report(message: QueuedMessage, taken: bool) -> None:
    """Tell the sender of a handle whether the peer has it."""
    if message.on_sent is None:
        return
    try:
        message.on_sent(taken)
    except Exception:
        _logger.exception("channel: a callback of `send` failed")
