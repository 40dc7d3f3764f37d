"""Relays bytes between a client's connection and a worker's, in both directions.

Owns: both halves once both connections are there, half-close in both directions, back-pressure,
the time of silence, and the bytes counted. Must not know: what the bytes mean, how the worker was
chosen. Mode tcp and upgraded HTTP connections both end here.

Each side sees of the other what it would see without a proxy: an end of file is forwarded as an
end of file, a reset as a reset. If a reset became an end of file, a protocol that reads until
the end would accept a truncated message as complete.

Bytes that one side sends before the other is connected wait in the kernel: a half is not read
until the other half is there.

When one side has ended, the other has less time to be silent: mostly its peer is gone. It has as
long as a worker has to answer, because a client that has said all may wait for an answer. What a
slow reader still takes is no silence. See docs/decisions/0021-half-closed.md.
"""

import os
import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import Final, Protocol

from penstock_proxy.config import Timeouts
from penstock_proxy.errors import HALF_CLOSED_TIMEOUT, STOP_TIMEOUT, TUNNEL_TIMEOUT
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.net.half_closed import unacknowledged
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.tcp_info import is_unix
from penstock_proxy.net.timer_wheel import NEVER, HasDeadline, TimerWheel
from penstock_proxy.net.transport import FirstReceiver, Transport
from penstock_proxy.service.context import RelayOwner

NO_FAULT: Final = "ok"
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on with a time of zero: close sends a reset."""
_HALF_CLOSED_S: Final = 1.0
"""For a client to close its side too, when the process stops."""
_PENDING_READ: Final = 64 << 10
"""Bytes of one read of what waits in the kernel, which has a few hundred thousand at the most."""
_FLUSH_TIMEOUT_S: Final = 30.0
"""When one side is gone, the other is aborted after this time without taking a byte."""
_UNKNOWN: Final = 1 << 62
"""More than can be unsent: it was not measured yet."""


class _Half(HasDeadline, FirstReceiver):
    """One of the two connections. `transport` is None until connected and after it is lost."""

    __slots__ = ("at_eof", "other", "reactor", "transport")

    other: "_Half"
    """Subclasses also have it with its own type, as `client` or `worker`."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.transport: Transport | None = None
        self.at_eof = False
        """Its end of file has come."""

    def sink(self) -> Transport | None:
        return self.other.transport

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        self.at_eof = True
        other = self.other
        if other.transport is None:
            return False
        if other.at_eof:
            # Both directions have ended: close both now, in one turn of the loop.
            other.transport.close()
            return False
        # Mostly the other side closes as soon as it has the last bytes, and then there is nothing
        # to forward: two system calls less.
        self.reactor.call_when_quiet(other.forward_eof)
        return True

    def reset_on_close(self) -> None:
        """Make every later close of this connection a reset."""
        if self.transport is not None:
            sock = self.transport.borrow()
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)

    def forward_eof(self) -> None:
        """Forward an end of file, unless this connection is closing already."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write_eof()
            self.expect_less_silence()

    def expect_less_silence(self) -> None:
        """One side has ended."""
        raise NotImplementedError


class WorkerHalf(_Half):
    """The connection to the worker."""

    __slots__ = ("client",)

    def __init__(self, reactor: Reactor, client: "ClientHalf") -> None:
        super().__init__(reactor)
        self.other = self.client = client

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        client = self.client
        client.sent += len(data)
        client.counters.sent += len(data)
        client.last_active = client.timers.now
        if client.transport is not None:
            client.transport.write(data)

    def bytes_spliced(self, count: int) -> None:
        client = self.client
        client.sent += count
        client.counters.sent += count
        client.last_active = client.timers.now

    def expect_less_silence(self) -> None:
        self.client.expect_less_silence()

    def connection_lost(self, error: Exception | None) -> None:
        if isinstance(error, BrokenPipeError) and self._read_to_end():
            error = None
        self.transport = None
        self.client.half_closed(error, "worker_reset")

    def _read_to_end(self) -> bool:
        """Read what the worker had sent when a write failed. True: it had ended its side in order.

        A worker may answer and close while its client still sends. Over TCP its end is read long
        before a write fails; on a unix socket the next write fails at once, and would make a reset
        of what was an end. (What it has left unread is a reset there, too: ECONNRESET.)
        """
        if self.transport is None or not is_unix(self.transport):
            return False
        sock = self.transport.borrow()
        assert sock is not None
        try:
            while data := os.read(sock.fileno(), _PENDING_READ):
                self.data_received(data)
        except OSError:
            return False
        return True


class DuplexOwner(RelayOwner, Protocol):
    """What a duplex needs of its owner. An object, because a closure takes more memory."""

    def duplex_closed(self, half: "ClientHalf") -> None:
        """Both connections are closed. Called once."""


class ClientHalf(_Half):
    """The connection from the client, and the state of the pair."""

    __slots__ = (
        "_owner",
        "counters",
        "last_active",
        "outcome",
        "received",
        "sent",
        "timeouts",
        "timers",
        "unsent",
        "worker",
    )

    def __init__(
        self,
        reactor: Reactor,
        counters: ServiceCounters,
        timers: TimerWheel,
        timeouts: Timeouts,
        owner: DuplexOwner,
    ) -> None:
        super().__init__(reactor)
        self.other = self.worker = WorkerHalf(reactor, self)
        self.counters = counters
        self.timers = timers
        self.timeouts = timeouts
        self._owner = owner
        self.received = 0
        self.sent = 0
        self.unsent = 0
        self.outcome = NO_FAULT
        """OK, or the kind of the fault that ended it."""
        self.last_active = timers.now
        self.deadline = NEVER
        self.bucket = NEVER

    def start(self) -> None:
        """Both connections are there: the time of silence runs from now on."""
        self.last_active = self.timers.now
        self.timers.arm_in(self, self.timeouts.tunnel)

    def expect_less_silence(self) -> None:
        self.last_active = self.timers.now
        self.unsent = _UNKNOWN
        self.timers.arm_in(self, self._silence_s())

    @property
    def _is_half_closed(self) -> bool:
        return self.at_eof or self.worker.at_eof

    def _silence_s(self) -> float:
        """How long it may be silent."""
        timeouts = self.timeouts
        if self._is_half_closed:
            return min(timeouts.half_closed, timeouts.tunnel)
        return timeouts.tunnel

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        self.start()
        if self.other.transport is None:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.counters.received += len(data)
        self.last_active = self.timers.now
        worker = self.other.transport
        if worker is not None:
            worker.write(data)

    def bytes_spliced(self, count: int) -> None:
        self.received += count
        self.counters.received += count
        self.last_active = self.timers.now

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.half_closed(error, "client_gone")

    def half_closed(self, error: Exception | None, reason: str) -> None:
        """One connection is closed: close the other when all is written to it.

        `reason`: the outcome if it was closed by an error.
        """
        if error is not None and self.outcome == NO_FAULT:
            self.outcome = reason
        remaining = self.transport or self.worker.transport
        if remaining is not None:
            if error is None:
                remaining.close()
            elif remaining is self.transport:
                self.reset_on_close()
                remaining.break_off()
            else:
                # The client is gone, so what its worker has not taken is worth nothing.
                self.worker.reset_on_close()
                remaining.abort()
            self.unsent = remaining.get_write_buffer_size()
            if self.unsent:
                self.timers.arm_in(self, _FLUSH_TIMEOUT_S)
        if self.transport is None and self.other.transport is None:
            self.timers.disarm(self)
            self._owner.duplex_closed(self)

    def expired(self, now: float) -> None:
        if self.transport is None or self.other.transport is None:
            self._check_flush()
        elif self.last_active + self._silence_s() > now:
            self.unsent = _UNKNOWN
            self.timers.arm(self, self.last_active + self._silence_s())
        elif not self._is_half_closed:
            self.outcome = TUNNEL_TIMEOUT.kind
            self.abort()
        elif self._has_taken_some():
            self.timers.arm_in(self, self._silence_s())
        else:
            self.outcome = HALF_CLOSED_TIMEOUT.kind
            # The other side has not said that it is done.
            self._reset()

    def _has_taken_some(self) -> bool:
        """Has a slow reader taken bytes since the last look, and are there more for it?"""
        before, self.unsent = self.unsent, 0
        for transport in (self.transport, self.worker.transport):
            if transport is not None:
                self.unsent += transport.get_write_buffer_size()
                self.unsent += unacknowledged(transport.borrow())
        return 0 < self.unsent < before

    def _check_flush(self) -> None:
        """One side is gone: abort the other, unless it has taken bytes since the last check."""
        remaining = self.transport or self.other.transport
        if remaining is None:
            return
        before, self.unsent = self.unsent, remaining.get_write_buffer_size()
        if self.unsent < before:
            self.timers.arm_in(self, _FLUSH_TIMEOUT_S)
        else:
            remaining.abort()

    def close_if_worker_ended(self) -> None:
        """The process stops: close both connections if the worker has ended its side, the client
        has got that, and nothing has come since. A WebSocket client that leaves it to the server
        to close would hold the stop."""
        if self.worker.at_eof and self.last_active + _HALF_CLOSED_S < self.timers.now:
            for transport in (self.transport, self.worker.transport):
                if transport is not None:
                    transport.close()

    def cut(self) -> bool:
        """The time to finish is over: reset both connections. An end of file would look as if the
        last message were complete."""
        if self.outcome == NO_FAULT:
            self.outcome = STOP_TIMEOUT.kind
        self._reset()
        return True

    def _reset(self) -> None:
        """Reset both connections."""
        self.reset_on_close()
        self.worker.reset_on_close()
        self.abort()

    def abort(self) -> None:
        """Abort both connections; what is unsent is lost."""
        for half in (self, self.other):
            if half.transport is not None:
                half.transport.abort()
