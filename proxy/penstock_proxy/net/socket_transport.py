"""The transport of a plain connection: a non-blocking stream socket.

Owns: one connected socket, how it is read, and how it is closed (`socket_writer` has the rest).
`tls.transport` works on top of one of these and keeps the same contract, so a receiver does not
know which one it has: `connection_lost` is called once, never in the middle of another call, and
the descriptor stays open until it has returned.

Reads are of 16 KiB. They grow as long as they are filled and the receiver keeps up, so something
huge for a slow receiver costs kilobytes, and a small read makes them small again.

What came in large reads for a while is bulk. If all of it goes to one other transport, the next
bytes go there through a pipe and are not copied (`pipes`), until little comes. Whatever is not
plainly bytes (an end, an error, an urgent mark) is left to a read.

Must not know: what the bytes mean. Must not be used after `connection_lost`.

See docs/decisions/0001-own-epoll-reactor.md.
"""

import os
import socket
from contextlib import suppress
from os import read, write
from socket import SocketType
from typing import Final

from penstock_proxy.net.reactor import (
    ERROR,
    HANGUP,
    IN,
    OUT,
    PEER_CLOSED,
    URGENT,
    Reactor,
)
from penstock_proxy.net.socket_writer import SocketWriter
from penstock_proxy.net.transport import FirstReceiver, Receiver, Transport
from penstock_proxy.net.unread_input import is_silent
from penstock_worker.net.stream import Stream

_STREAM: Final = int(socket.SOCK_STREAM)

HIGH_WATER: Final = 64 << 10
"""Default for the bytes that may wait to be written before the receiver has to pause."""
_SMALL_READ: Final = 16 << 10
_MAX_READ_FACTOR: Final = 4
"""Times the high-water mark. So at most five times that mark waits for a peer that stops reading.
Smaller reads cost a relayed stream a third more system calls."""
_BULK: Final = 512 << 10
"""Bytes of large reads in a row, after which it is bulk. On a unix socket few fill their buffer."""


class SocketTransport(SocketWriter):
    """One connection, made by `adopt`."""

    __slots__ = (
        "_at_eof",
        "_bulk",
        "_error",
        "_events",
        "_family",
        "_first",
        "_is_read",
        "_may_have_more",
        "_paused",
        "_read_size",
        "_sink",
        "_sock",
        "_watches_errors",
    )

    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        family: int,
        protocol: Receiver,
        high_water: int = HIGH_WATER,
        *,
        first: bool = False,
    ) -> None:
        super().__init__(reactor, fd, protocol, high_water)
        self._first = first
        self._family = family
        self._events = 0
        """What the reactor waits for."""
        self._is_read = False
        """It waits for bytes, and they are read: none go to `_sink`."""
        self._read_size = _SMALL_READ
        self._bulk = 0
        """Bytes of large reads in a row."""
        self._sink: Transport | None = None
        """All that comes goes there, through a pipe."""
        self._paused = False
        """The receiver does not want to read."""
        self._may_have_more = False
        """The last read has not shown that the kernel has no more."""
        self._at_eof = False
        self._watches_errors = True
        """After the end of file: a reset is to be reported."""
        self._error: OSError | None = None
        self._sock: SocketType | None = None

    # -- called by the reactor

    def ready(self, events: int) -> None:
        if self._events & OUT and events & ~IN:
            self._flush()
        if self._closing or not (self._is_read and events & ~OUT):
            self._ready_otherwise(events)
            return
        size = self._read_size
        try:
            data = read(self._fd, size)
        except BlockingIOError:
            return
        except OSError as error:
            self._close_now(error)
            return
        if 0 < len(data) < size == _SMALL_READ and not events & PEER_CLOSED:
            self._protocol.data_received(data)
        else:
            self._read_more(data, events)

    def _ready_otherwise(self, events: int) -> None:
        """Nothing has to be read."""
        if self._at_eof:
            if events & (ERROR | HANGUP):
                self._ended(events)
        elif self._sink is not None and events & ~OUT:
            self._splice(self._sink, events)

    def failed(self) -> None:
        self.abort()

    def _read_more(self, data: bytes, events: int) -> None:
        """The read filled its buffer, or that was large, or the peer has shut down its side."""
        if data:
            is_full = len(data) == self._read_size
            self._may_have_more |= is_full or bool(events & PEER_CLOSED)
            self._adapt_read_size(len(data))
            self._protocol.data_received(data)
            if self._bulk >= _BULK:
                self._splice_from_now_on()
            if is_full or not events & PEER_CLOSED:
                return
            # These were the last bytes if only PEER_CLOSED is set: no read is needed to learn of
            # the end. With an error set, the next read returns it.
            if (
                events & (PEER_CLOSED | ERROR | URGENT) != PEER_CLOSED
                or self._paused
                or self._closing
            ):
                return
        self._at_eof = True
        if self._protocol.eof_received():
            self._update_events()
        else:
            self.close()

    def _adapt_read_size(self, count: int) -> None:
        size = self._read_size
        if count == size:
            if size < self._high_water * _MAX_READ_FACTOR:
                self._read_size = size * 2
        elif count <= _SMALL_READ:
            # A buffer that is made for a flood costs many times as much as what it gets now.
            self._read_size = _SMALL_READ
            self._bulk = 0
            return
        self._bulk += count

    def _splice_from_now_on(self) -> None:
        self._bulk = 0
        if not self._closing:
            self._sink = self._protocol.sink()
            self._is_read = self._sink is None and bool(self._events & IN)

    def _splice(self, sink: Transport, events: int) -> None:
        """Send what has come through a pipe, or leave it to the next read."""
        if self._closing or not self._events & IN:
            return
        size = self._read_size
        count = 0 if events & (ERROR | HANGUP | URGENT) else self._move(sink)
        self._adapt_read_size(count)
        if not self._bulk:
            self._stop_splicing()
        elif count == size and self._events & IN:
            # Likely there is as much again. Twice takes no longer than a read and a write, and
            # a turn of the loop for each move cost a tenth more.
            self._move(sink)

    def _move(self, sink: Transport) -> int:
        """Move bytes through a pipe. Returns how many; 0: there are none, or no pipe."""
        pipe = sink.lend_pipe()
        if pipe is None:
            return 0
        try:
            count = pipe.fill(self._fd, self._read_size)
        except OSError as error:
            self._reactor.pipes.give(pipe)
            self._close_now(error)
            return 0
        if count:
            sink.write_pipe(pipe)
            self._protocol.bytes_spliced(count)
        else:
            self._reactor.pipes.give(pipe)
        return count

    def _stop_splicing(self) -> None:
        self._sink = None
        self._bulk = 0
        self._is_read = bool(self._events & IN)

    def _ended(self, events: int) -> None:
        """After its end of file the peer has reset the connection, or closed its reading side."""
        if self._closing:
            return
        if events & ERROR:
            number = self.borrow().getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._close_now(ConnectionResetError(number, os.strerror(number)))
        else:
            # Both directions have ended without an error. The receiver closes when it wants to;
            # until then epoll would report this again and again.
            self._watches_errors = False
            self._update_events()

    def _update_events(self) -> None:
        """Tell the reactor which events to wait for."""
        events = 0
        if self._at_eof:
            # Nothing is left to read, but the peer may still reset the connection.
            events = ERROR if self._watches_errors and not self._closing else 0
        elif not (self._paused or self._closing):
            events = IN
        self._is_read = events == IN and self._sink is None
        if self._unsent is not None:
            events |= OUT
        before, self._events = self._events, events
        if events == before or self._lost:
            return
        if not events:
            self._reactor.unregister(self._fd)
        elif not before:
            self._reactor.register(self._fd, self, events, first=self._first)
        else:
            self._reactor.modify(self._fd, events)

    # -- reading

    def pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            # The receiver is slow: read small pieces from now on.
            self._read_size = _SMALL_READ
            self._update_events()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._update_events()

    def is_reading(self) -> bool:
        return not (self._paused or self._closing)

    def is_quiet(self) -> bool:
        if self._closing:
            return False
        if self._may_have_more or not self._reactor.is_current:
            self._may_have_more = not is_silent(self.borrow())
            return not self._may_have_more
        return True

    # -- receiver and socket

    def set_protocol(self, protocol: Receiver) -> None:
        self._protocol = protocol
        if self._sink is not None:
            self._stop_splicing()

    def borrow(self) -> SocketType:
        if self._sock is None:
            # With less given, the kernel is asked three times. (Python's own class looks up enum
            # members besides, and costs as much again.)
            self._sock = SocketType(self._family, _STREAM, 0, self._fd)
        return self._sock

    # -- closing

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Close when all is written."""
        if not self._closing:
            self.send_deferred()
            self._closing = True
            if self._unsent is None:
                self._close_now(None)
            else:
                self._update_events()

    def abort(self) -> None:
        # As much as the kernel takes now; the receiver is not told to pause.
        held, self._deferred = self._deferred, b""
        if held:
            with suppress(OSError):
                write(self._fd, held)
        self._close_now(None)

    def _close_now(self, error: OSError | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._error = error
        if self._unsent is not None:
            self._unsent.discard()
        self._unsent, self._sink, self._deferred = None, None, b""
        if self._events:
            self._events = 0
            self._reactor.discard(self._fd)
        self._reactor.call_after_events(self._finish_close)

    def _finish_close(self) -> None:
        try:
            self._protocol.connection_lost(self._error)
        finally:
            if self._sock is not None:
                self._sock.detach()
            os.close(self._fd)


def adopt(
    reactor: Reactor,
    protocol: FirstReceiver,
    stream: Stream,
    high_water: int = HIGH_WATER,
    *,
    first: bool = False,
) -> None:
    """Give a connected stream to a receiver; its `connection_made` is called before this returns.

    `high_water`: bytes that may wait to be written before the receiver has to pause. `first`: it is
    read before the connections without this.
    """
    fd = stream.fileno()
    if stream.blocks:
        os.set_blocking(fd, False)
    transport = SocketTransport(reactor, fd, stream.family, protocol, high_water, first=first)
    stream.detach()
    protocol.connection_made(transport)
    try:
        transport._update_events()
    except OSError as error:
        # epoll cannot watch one more.
        transport._close_now(error)
