"""A connection's bytes, in and out: the transport of a proxy's plain connections.

Owns: one connected stream socket, what could not be written to it yet, and
how it ends. `tls.transport` stands on one of these, and keeps the same contract, so a
receiver does not know which one it has: `connection_lost` comes once, never in the middle of
another call, and the descriptor is open until it has returned.

What is written goes out at once, or, if it is little, when all connections that are ready have
been called: who waits for it on another core is then woken once for all of them and not once
for each (measured on a relayed HTTP request: 1.0 of 12 µs in the kernel).

What is read comes in pieces of 16 KiB, and in larger ones as long as those are filled and the
other side keeps up, so a slow reader of something huge costs kilobytes.

It must not know: what the bytes mean. Must not be used: after `connection_lost`.
"""

import os
import socket
from collections import deque
from contextlib import suppress
from typing import Final

from penstock_proxy.net.reactor import BROKEN, ENDED, IN, OUT, URGENT, Reactor
from penstock_proxy.net.transport import Adopter, Receiver, Transport
from penstock_worker.net.stream import Stream

HIGH_WATER: Final = 64 << 10
"""Bytes that wait to be written before the protocol is told to pause, unless told otherwise."""
_FIRST_READ: Final = 16 << 10
_LARGEST_READ: Final = 4
"""Times the mark above, so that what waits for one that stops reading is at most five times it.
Smaller reads cost a relayed stream a third more system calls."""
_LITTLE: Final = 16 << 10
"""Bytes of what may wait for the others; each connection that one look finds may hold so much."""
_MOST_PIECES: Final = 64
"""Of one writev. The kernel takes 1024; what waits here is few."""


class SocketTransport(Transport):
    """One connection. Made by `adopt`."""

    __slots__ = (
        "_closing",
        "_ending",
        "_error",
        "_events",
        "_fd",
        "_heard_end",
        "_held",
        "_high",
        "_lost",
        "_paused",
        "_protocol",
        "_reactor",
        "_read_size",
        "_sock",
        "_stalled",
        "_unsent",
        "_waiting",
    )

    def __init__(
        self, reactor: Reactor, fd: int, protocol: Receiver, high: int = HIGH_WATER
    ) -> None:
        self._reactor = reactor
        self._fd = fd
        self._protocol = protocol
        self._unsent: deque[bytes] | None = None
        """Made when it is needed, which for most it never is."""
        self._waiting = 0
        """Bytes in it."""
        self._high = high
        self._held = b""
        """Written in this turn, and not sent: the reactor calls `send_held`."""
        self._events = 0
        """What the reactor looks for."""
        self._read_size = _FIRST_READ
        self._paused = False
        """The protocol does not want to read."""
        self._heard_end = False
        self._ending = False
        """To be shut down for writing when all is written."""
        self._stalled = False
        """The protocol was told to pause."""
        self._closing = False
        self._lost = False
        self._error: OSError | None = None
        self._sock: socket.socket | None = None

    # -- called by the reactor

    def ready(self, events: int) -> None:
        if self._events & OUT and events & ~IN:
            self._flush()
        if self._closing or not (self._events & IN and events & ~OUT):
            return
        size = self._read_size
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if 0 < len(data) < size and not events & ENDED:
            self._protocol.data_received(data)
        else:
            self._read_on(data, events)

    def broken(self) -> None:
        self.abort()

    def _read_on(self, data: bytes, events: int) -> None:
        """It was as much as we asked for, or the other side ends."""
        size = self._read_size
        if data:
            if len(data) == size:
                if size < self._high * _LARGEST_READ:
                    self._read_size = size * 2
                self._protocol.data_received(data)
                return
            self._protocol.data_received(data)
            # That was all, and its end is known already: no need to ask for it. What broke off
            # has an error that reading will tell.
            if events & (ENDED | BROKEN | URGENT) != ENDED or self._paused or self._closing:
                return
        self._heard_end = True
        if self._protocol.eof_received():
            self._look()
        else:
            self.close()

    def _flush(self) -> None:
        unsent = self._unsent
        assert unsent is not None
        try:
            sent = os.writev(self._fd, [unsent[i] for i in range(min(len(unsent), _MOST_PIECES))])
        except BlockingIOError:
            return
        except OSError as error:
            # Not a broken pipe any more, which says that nothing was taken (`tcp_info`).
            self._fail(ConnectionResetError(error.errno, error.strerror))
            return
        self._waiting -= sent
        while sent:
            piece = unsent.popleft()
            sent -= len(piece)
            if sent < 0:
                unsent.appendleft(piece[sent:])
                break
        if not unsent:
            self._flushed()
        if self._stalled and self._waiting <= self._high // 4 and not self._lost:
            self._stalled = False
            self._protocol.resume_writing()

    def _flushed(self) -> None:
        self._unsent = None
        if self._closing:
            self._lose(None)
        else:
            if self._ending:
                self._shut_down()
            self._look()

    def _look(self) -> None:
        """Tell the reactor what to look for."""
        events = 0
        if not (self._paused or self._heard_end or self._closing):
            events = IN
        if self._unsent is not None:
            events |= OUT
        before, self._events = self._events, events
        if events == before or self._lost:
            return
        if not events:
            self._reactor.forget(self._fd)
        elif not before:
            self._reactor.watch(self._fd, self, events)
        else:
            self._reactor.change(self._fd, events)

    # -- writing

    def write(self, data: bytes) -> None:
        if self._closing or self._ending or not data:
            return
        if self._unsent is not None:
            self._put_off(data)
            return
        reactor = self._reactor
        if self._held:
            data = self._held + data
        elif reactor.turning:
            reactor.holding.append(self)
        self._held = data
        if not reactor.turning or len(data) > _LITTLE:
            self.send_held()

    def send_held(self) -> None:
        """All that were ready have been called, or it is too much to wait for that."""
        data = self._held
        if not data:
            return
        self._held = b""
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(error)
            return
        if sent != len(data):
            self._put_off(data[sent:])

    def _put_off(self, data: bytes) -> None:
        if self._unsent is None:
            self._unsent = deque()
        self._unsent.append(data)
        self._waiting += len(data)
        self._look()
        if self._waiting > self._high and not self._stalled:
            self._stalled = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        if not (self._ending or self._closing):
            self.send_held()
            self._ending = True
            if self._unsent is None:
                self._shut_down()

    def _shut_down(self) -> None:
        try:
            self.borrow().shutdown(socket.SHUT_WR)
        except OSError:
            # It is gone already, and reading will say so.
            return

    def get_write_buffer_size(self) -> int:
        return self._waiting + len(self._held)

    # -- reading

    def pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            # Somebody is slow: small pieces from now on.
            self._read_size = _FIRST_READ
            self._look()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._look()

    def is_reading(self) -> bool:
        return not (self._paused or self._closing)

    # -- who it belongs to

    def set_protocol(self, protocol: Receiver) -> None:
        self._protocol = protocol

    def borrow(self) -> socket.socket:
        if self._sock is None:
            self._sock = socket.socket(fileno=self._fd)
        return self._sock

    # -- how it ends

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """When all is written."""
        if not self._closing:
            self.send_held()
            self._closing = True
            if self._unsent is None:
                self._lose(None)
            else:
                self._look()

    def abort(self) -> None:
        # No more than the kernel takes now, and nobody is told to pause.
        held, self._held = self._held, b""
        if held:
            with suppress(OSError):
                os.write(self._fd, held)
        self._lose(None)

    def _fail(self, error: OSError) -> None:
        self._lose(error)

    def _lose(self, error: OSError | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._error = error
        self._unsent, self._waiting, self._held = None, 0, b""
        if self._events:
            self._events = 0
            self._reactor.closing(self._fd)
        self._reactor.later(self._end)

    def _end(self) -> None:
        try:
            self._protocol.connection_lost(self._error)
        finally:
            if self._sock is not None:
                self._sock.detach()
            os.close(self._fd)


def adopt(reactor: Reactor, protocol: Adopter, stream: Stream, high: int = HIGH_WATER) -> None:
    """Give a connected stream to a protocol, and tell it so before returning.

    `high`: bytes that may wait to be written before the protocol is told to pause.
    """
    fd = stream.fileno()
    if stream.blocks:
        os.set_blocking(fd, False)
    transport = SocketTransport(reactor, fd, protocol, high)
    stream.detach()
    protocol.connection_made(transport)
    try:
        transport._look()
    except OSError as error:
        # The kernel cannot watch one more.
        transport._fail(error)
