"""The sending half of a plain connection's transport.

Owns: the bytes that were written and are not in the kernel yet, when they are sent, when the
receiver has to pause, and the end of what is sent. `socket_transport` adds the rest.

A large write goes out at once. A small one is deferred until all ready connections have been
handled: a peer on another core is then woken once for all of them, not once for each (measured
on a relayed HTTP request: 1.0 of 12 µs in the kernel).

What comes in a pipe goes out at once, too. If the socket does not take all of it the pipe stays
here, and the sender has to pause until it is empty.

Must not know: how a connection is read, and what the bytes mean.
"""

import socket
from os import write
from socket import SocketType
from typing import Final

from penstock_proxy.net.pipes import Pipe
from penstock_proxy.net.reactor import EventHandler, Reactor
from penstock_proxy.net.transport import Receiver, Transport
from penstock_proxy.net.unsent import Unsent

_MAX_DEFERRED: Final = 16 << 10
"""Bytes that one connection may defer; each one that is ready in the same poll may do so."""


class SocketWriter(Transport, EventHandler):
    """A connected socket, as far as it is written to."""

    __slots__ = (
        "_closing",
        "_deferred",
        "_eof_written",
        "_fd",
        "_high_water",
        "_lost",
        "_protocol",
        "_reactor",
        "_unsent",
        "_writer_paused",
    )

    def __init__(self, reactor: Reactor, fd: int, protocol: Receiver, high_water: int) -> None:
        self._reactor = reactor
        self._fd = fd
        self._protocol = protocol
        self._high_water = high_water
        self._unsent: Unsent | None = None
        """Made when it is needed: for most connections never."""
        self._deferred = b""
        """Written, and not sent yet: the reactor calls `send_deferred`."""
        self._eof_written = False
        """`write_eof` was called: shut down for writing when all is written."""
        self._writer_paused = False
        """The receiver was told to pause writing."""
        self._closing = False
        self._lost = False

    # -- supplied by `socket_transport`

    def borrow(self) -> SocketType:
        raise NotImplementedError

    def _update_events(self) -> None:
        """Tell the reactor which events to wait for."""
        raise NotImplementedError

    def _close_now(self, error: OSError | None) -> None:
        """Close it; what is unsent is lost."""
        raise NotImplementedError

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
            self._close_now(error)
            return
        if sent != len(data):
            self._buffer(data[sent:])

    def _buffer(self, data: bytes) -> None:
        unsent = self._unsent
        if unsent is None:
            unsent = self._unsent = Unsent(self._reactor.pipes)
        unsent.append(data)
        self._update_events()
        if unsent.size > self._high_water:
            self._pause_writer()

    def _pause_writer(self) -> None:
        if not self._writer_paused:
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
        unsent = self._unsent
        return len(self._deferred) + (0 if unsent is None else unsent.size)

    # -- writing what comes in a pipe

    def lend_pipe(self) -> Pipe | None:
        self.send_deferred()
        if self._unsent is not None or self._closing or self._eof_written:
            return None
        return self._reactor.pipes.take()

    def write_pipe(self, pipe: Pipe) -> None:
        pipes = self._reactor.pipes
        pipes.moved += pipe.held
        try:
            pipe.send(self._fd)
        except OSError as error:
            pipes.give(pipe)
            self._close_now(error)
            return
        if not pipe.held:
            pipes.give(pipe)
        elif pipes.may_be_kept():
            self._unsent = Unsent(pipes, pipe)
            self._update_events()
            self._pause_writer()
        else:
            left = pipe.take_out()
            pipes.give(pipe)
            self._buffer(left)

    # -- sending what did not fit

    def _flush(self) -> None:
        unsent = self._unsent
        assert unsent is not None
        try:
            unsent.send(self._fd)
        except BlockingIOError:
            return
        except OSError as error:
            # Not as BrokenPipeError, which means that nothing was sent at all (`tcp_info`).
            self._close_now(ConnectionResetError(error.errno, error.strerror))
            return
        if not unsent.size:
            self._flushed()
        # Of what is in a pipe all has to go first: nothing else can follow it through a pipe.
        low = 0 if unsent.is_piped() else self._high_water // 4
        if self._writer_paused and unsent.size <= low and not self._lost:
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
