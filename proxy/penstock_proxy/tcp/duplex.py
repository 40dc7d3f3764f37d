"""Delivery tcp: two connections made into one, byte for byte.

Owns: the two halves of a relayed connection from the moment both ends are connected,
half-close both ways, back-pressure, and what it amounted to. Must not know: what the
bytes mean, how the worker was chosen. Upgraded HTTP connections end up here as well.

Each end hears of the other what it would have heard without us: an end of file is passed on
as one, and a reset as a reset. To a protocol that reads until the end, an end of file in
place of a reset would say that it has everything.

Bytes that one side sends while the other is not yet ready wait in the kernel: a half
reads nothing until its peer is there.
"""

import asyncio
import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import Final, Protocol

from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.net.timer_wheel import NEVER, TimerWheel
from penstock_proxy.net.transport import Transport

OK: Final = "ok"
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: close resets."""
_FLUSH_S: Final = 30.0
"""Without a byte taken by the one that is left; then it is cut off."""


class _End:
    """One of the two connections. `transport` is None before it is made and after."""

    __slots__ = ("finished", "loop", "other", "transport")

    other: "_End"
    """Both halves also know it by its kind: `client` and `worker`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Asked for by name, a running loop costs a getpid each time.
        self.loop = loop
        self.transport: Transport | None = None
        self.finished = False
        """It has sent its end of file."""

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        self.finished = True
        other = self.other
        if other.transport is None:
            return False
        if other.finished:
            # Both have said all they will: close both now, in one turn of the loop.
            other.transport.close()
            return False
        # Often the other end closes in the same turn, and then there is nothing to tell it.
        self.loop.call_soon(other.finish_writing)
        return True

    def resets(self) -> None:
        """However it is closed from now on, that is a reset."""
        if self.transport is not None:
            sock = self.transport.borrow()
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)

    def finish_writing(self) -> None:
        """Pass the end of file on, unless the connection is on its way out already."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write_eof()


class WorkerEnd(_End):
    """The connection to the worker."""

    __slots__ = ("client",)

    def __init__(self, loop: asyncio.AbstractEventLoop, client: "ClientEnd") -> None:
        super().__init__(loop)
        self.other = self.client = client

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        client = self.client
        client.sent += len(data)
        client.counters.sent += len(data)
        client.touched = client.timers.now
        if client.transport is not None:
            client.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.client.ended(error, "worker_reset")


class Owner(Protocol):
    """Who made a pair, and is told of its end. An object, because a closure is larger."""

    def duplex_closed(self, half: "ClientEnd") -> None:
        """Both connections are gone. Called once."""


class ClientEnd(_End):
    """The connection from the client, and the account of the pair."""

    __slots__ = (
        "_owner",
        "bucket",
        "counters",
        "deadline",
        "idle_s",
        "outcome",
        "received",
        "sent",
        "timers",
        "touched",
        "unsent",
        "worker",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: ServiceCounters,
        timers: TimerWheel,
        idle_s: float,
        owner: Owner,
    ) -> None:
        super().__init__(loop)
        self.other = self.worker = WorkerEnd(loop, self)
        self.counters = counters
        self.timers = timers
        self.idle_s = idle_s
        self._owner = owner
        self.received = 0
        self.sent = 0
        self.unsent = 0
        self.outcome = OK
        """"ok", or the kind of the fault that ended it."""
        self.touched = timers.now
        self.deadline = NEVER
        self.bucket = NEVER

    def start(self) -> None:
        """Both ends are known: the idle time runs from now on."""
        self.touched = self.timers.now
        self.timers.arm_in(self, self.idle_s)

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        self.start()
        if self.other.transport is None:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.counters.received += len(data)
        self.touched = self.timers.now
        worker = self.other.transport
        if worker is not None:
            worker.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.ended(error, "client_gone")

    def ended(self, error: Exception | None, kind: str) -> None:
        """One connection is gone: end the other when what it was sent has gone out."""
        if error is not None and self.outcome == OK:
            self.outcome = kind
        left = self.transport or self.worker.transport
        if left is not None:
            if error is None:
                left.close()
            elif left is self.transport:
                self.resets()
                left.break_off()
            else:
                # The client is gone: nobody wants what its worker does not take.
                self.worker.resets()
                left.abort()
            self.unsent = left.get_write_buffer_size()
            if self.unsent:
                self.timers.arm_in(self, _FLUSH_S)
        if self.transport is None and self.other.transport is None:
            self.timers.disarm(self)
            self._owner.duplex_closed(self)

    def expired(self, now: float) -> None:
        if self.transport is None or self.other.transport is None:
            self._flushing()
        elif self.touched + self.idle_s > now:
            self.timers.arm(self, self.touched + self.idle_s)
        else:
            self.outcome = "tunnel_timeout"
            self.abort()

    def _flushing(self) -> None:
        """The last one to leave takes what it was sent, if slowly, or is cut off."""
        left = self.transport or self.other.transport
        if left is None:
            return
        before, self.unsent = self.unsent, left.get_write_buffer_size()
        if self.unsent < before:
            self.timers.arm_in(self, _FLUSH_S)
        else:
            left.abort()

    def abort(self) -> None:
        """End both at once; what is unsent is lost."""
        for half in (self, self.other):
            if half.transport is not None:
                half.transport.abort()
