"""The transport of a plain connection: a non-blocking stream socket.

Owns: one connected socket, the bytes that could not be written to it yet, and how it is closed.
`tls.transport` works on top of one of these and keeps the same contract, so a receiver does not
know which one it has: `connection_lost` is called once, never in the middle of another call, and
the descriptor stays open until it has returned.

A large write goes out at once. A small one is deferred until all ready connections have been
handled: a peer on another core is then woken once for all of them, not once for each (measured
on a relayed HTTP request: 1.0 of 12 µs in the kernel).

Reads are of 16 KiB. They grow as long as they are filled and the receiver keeps up, so something
huge for a slow receiver costs kilobytes, and a small read makes them small again.

Must not know: what the bytes mean. Must not be used after `connection_lost`.

See docs/decisions/0001-own-epoll-reactor.md.
"""

import os
import socket
from collections import deque
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
    EventHandler,
    Reactor,
)
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
_MAX_DEFERRED: Final = 16 << 10
"""Bytes that one connection may defer; each one that is ready in the same poll may do so."""
_MAX_PIECES: Final = 64
"""Of one writev. The kernel takes 1024; there are rarely many."""


class SocketTransport(Transport, EventHandler):
    """One connection, made by `adopt`."""

    __slots__ = (
        "_at_eof",
        "_closing",
        "_deferred",
        "_eof_written",
        "_error",
        "_events",
        "_family",
        "_fd",
        "_first",
        "_high_water",
        "_lost",
        "_may_have_more",
        "_paused",
        "_protocol",
        "_reactor",
        "_read_size",
        "_sock",
        "_unsent",
        "_unsent_bytes",
        "_watches_errors",
        "_writer_paused",
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
        self._reactor = reactor
        self._first = first
        self._fd = fd
        self._family = family
        self._protocol = protocol
        self._unsent: deque[bytes] | None = None
        """Made when it is needed: for most connections never."""
        self._unsent_bytes = 0
        """Bytes in `_unsent`."""
        self._high_water = high_water
        self._deferred = b""
        """Written, and not sent yet: the reactor calls `send_deferred`."""
        self._events = 0
        """What the reactor waits for."""
        self._read_size = _SMALL_READ
        self._paused = False
        """The receiver does not want to read."""
        self._may_have_more = False
        """The last read has not shown that the kernel has no more."""
        self._at_eof = False
        self._watches_errors = True
        """After the end of file: a reset is to be reported."""
        self._eof_written = False
        """`write_eof` was called: shut down for writing when all is written."""
        self._writer_paused = False
        """The receiver was told to pause writing."""
        self._closing = False
        self._lost = False
        self._error: OSError | None = None
        self._sock: SocketType | None = None

    # -- called by the reactor

    def ready(self, events: int) -> None:
        if self._events & OUT and events & ~IN:
            self._flush()
        if self._closing or not (self._events & IN and events & ~OUT):
            if self._at_eof and events & (ERROR | HANGUP):
                self._ended(events)
            return
        size = self._read_size
        try:
            data = read(self._fd, size)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if 0 < len(data) < size and not events & PEER_CLOSED:
            if size > _SMALL_READ >= len(data):
                # A buffer that is made for a flood costs many times as much as what it gets now.
                self._read_size = _SMALL_READ
            self._protocol.data_received(data)
        else:
            self._read_more(data, events)

    def failed(self) -> None:
        self.abort()

    def _read_more(self, data: bytes, events: int) -> None:
        """The read filled its buffer, or the peer has shut down its side."""
        size = self._read_size
        if data:
            self._may_have_more = True
            if len(data) == size:
                if size < self._high_water * _MAX_READ_FACTOR:
                    self._read_size = size * 2
                self._protocol.data_received(data)
                return
            self._protocol.data_received(data)
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

    def _ended(self, events: int) -> None:
        """After its end of file the peer has reset the connection, or closed its reading side."""
        if self._closing:
            return
        if events & ERROR:
            number = self.borrow().getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._fail(ConnectionResetError(number, os.strerror(number)))
        else:
            # Both directions have ended without an error. The receiver closes when it wants to;
            # until then epoll would report this again and again.
            self._watches_errors = False
            self._update_events()

    def _flush(self) -> None:
        unsent = self._unsent
        assert unsent is not None
        try:
            sent = os.writev(self._fd, [unsent[i] for i in range(min(len(unsent), _MAX_PIECES))])
        except BlockingIOError:
            return
        except OSError as error:
            # Not as BrokenPipeError, which means that nothing was sent at all (`tcp_info`).
            self._fail(ConnectionResetError(error.errno, error.strerror))
            return
        self._unsent_bytes -= sent
        while sent:
            piece = unsent.popleft()
            sent -= len(piece)
            if sent < 0:
                unsent.appendleft(piece[sent:])
                break
        if not unsent:
            self._flushed()
        if self._writer_paused and self._unsent_bytes <= self._high_water // 4 and not self._lost:
            self._writer_paused = False
            self._protocol.resume_writing()

    def _flushed(self) -> None:
        self._unsent = None
        if self._closing:
            self._close_now(None)
        else:
            if self._eof_written:
                self._shutdown()
            self._update_events()

    def _update_events(self) -> None:
        """Tell the reactor which events to wait for."""
        events = 0
        if self._at_eof:
            # Nothing is left to read, but the peer may still reset the connection.
            events = ERROR if self._watches_errors and not self._closing else 0
        elif not (self._paused or self._closing):
            events = IN
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

    # -- writing

    def write(self, data: bytes) -> None:
        if self._closing or self._eof_written or not data:
            return
        if self._unsent is not None:
            self._buffer(data)
            return
        reactor = self._reactor
        if self._deferred:
            data = self._deferred + data
        elif reactor.dispatching:
            reactor.deferred.append(self)
        self._deferred = data
        if not reactor.dispatching or len(data) > _MAX_DEFERRED:
            self.send_deferred()

    def send_deferred(self) -> None:
        """Send what was deferred: all ready handlers have been called, or it has become much."""
        data = self._deferred
        if not data:
            return
        self._deferred = b""
        try:
            sent = write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(error)
            return
        if sent != len(data):
            self._buffer(data[sent:])

    def _buffer(self, data: bytes) -> None:
        if self._unsent is None:
            self._unsent = deque()
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        self._update_events()
        if self._unsent_bytes > self._high_water and not self._writer_paused:
            self._writer_paused = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        if not (self._eof_written or self._closing):
            self.send_deferred()
            self._eof_written = True
            if self._unsent is None:
                self._shutdown()

    def _shutdown(self) -> None:
        try:
            self.borrow().shutdown(socket.SHUT_WR)
        except OSError:
            # The connection is gone, and the next read reports it.
            return

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes + len(self._deferred)

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

    def _fail(self, error: OSError) -> None:
        self._close_now(error)

    def _close_now(self, error: OSError | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._error = error
        self._unsent, self._unsent_bytes, self._deferred = None, 0, b""
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
        transport._fail(error)
