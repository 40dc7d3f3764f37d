"""How a client's connection ends, and what happens to what the client sends behind its answer.

Owns: the lingering close, the rest of a body that nobody wants, the close in the middle of a
response, and the reset. Must not know: how requests are read (`client_connection`).

A client may have its answer while it still sends. A plain close would make the kernel reset the
connection, and the client would lose the answer. So the connection is shut down for writing, and
what comes is read and thrown away (RFC 9112 §9.6): as long as something comes, and for a limited
time. How much comes has no limit, because nothing of it is kept.

If what is left of the body is small and its size is known, it is read the same way, and then the
next request. The client was told that its connection is kept, so the rest has as long as any body:
`timeouts.body`, and `limits.min_rate` beyond.

A client that takes its answer slowly is waited for, as long as it takes some.
"""

import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Final

from penstock_proxy.http.client_identity import ClientIdentity
from penstock_proxy.http.context import HttpContext
from penstock_proxy.net.half_closed import unacknowledged
from penstock_proxy.net.timer_wheel import NEVER, TICK_S
from penstock_worker.net import lingering_close

LINGER_IDLE_S: Final = lingering_close.IDLE_S
LINGER_S: Final = lingering_close.TOTAL_S
_STOPPING_LINGER_S: Final = 2.0
"""When the process stops, it waits no longer for that."""
MAX_SKIPPED: Final = 256 << 10
"""Bytes of a body that are read for the sake of the next request. As in Go's net/http."""
_ALL: Final = -1
_UNKNOWN: Final = 1 << 62
"""More than can be untaken: nobody has looked yet."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing resets the connection."""


class Discarding:
    """What is read and thrown away."""

    __slots__ = ("ends_at", "idle_s", "left", "min_rate", "since", "untaken")

    def __init__(
        self, left: int, now: float, seconds: float, idle_s: float, min_rate: int = 0
    ) -> None:
        """It lasts for `seconds`, and for one more for each `min_rate` bytes that come; 0: for no
        more. It ends when nothing comes for `idle_s`."""
        self.left = left
        """Bytes until the next request; below zero: none follows."""
        self.since = now
        self.ends_at = now + seconds
        self.idle_s = idle_s
        self.min_rate = min_rate
        self.untaken = _UNKNOWN
        """Bytes of its answer that the client had not taken at the last look."""

    def deadline(self, now: float) -> float:
        """When it ends, if nothing more comes."""
        return min(now + TICK_S + self.idle_s, self.ends_at)

    def has_taken_some(self, untaken: int) -> bool:
        """Does the client still take its answer? `untaken`: bytes that it has not taken yet."""
        before, self.untaken = self.untaken, untaken
        return 0 < untaken < before


class ClosingClient(ClientIdentity):
    """The end of a client's connection."""

    __slots__ = ("_closing", "_discarding", "_discards")

    def __init__(
        self, service: HttpContext, peer: Any, fields: bytes, port: int, *, may_be_trusted: bool
    ) -> None:
        super().__init__(service, peer, fields, port, may_be_trusted=may_be_trusted)
        self.binding = None
        self._closing = False
        """No request is served any more."""
        self._discards = False
        """What comes is no request: the connection is closing, or a body has to end first."""
        self._discarding: Discarding | None = None

    def _stop_serving(self) -> None:
        self._closing = self._discards = True
        if self.binding is not None:
            self.binding.end()

    def _end(self, *, linger: bool) -> None:
        """Close when all is written; `linger`: the client may still send."""
        self._stop_serving()
        self.buffer = b""
        service = self.service
        if linger and not (self.at_eof or self.transport.is_closing()):
            self.transport.write_eof()
            seconds = _STOPPING_LINGER_S
            if not service.stopping:
                # The answer may be on its way for as long as any other.
                seconds = max(LINGER_S, service.timeouts.body)
            self._begin_discarding(Discarding(_ALL, service.timers.now, seconds, LINGER_IDLE_S))
        else:
            self._discarding = None
            self.transport.close()
            service.timers.arm_in(self, service.timeouts.body)

    def skip(self, size: int) -> None:
        """So much of the last request's body has not come yet: the next request is behind it."""
        if not self._closing:
            self._discards = True
            service = self.service
            body_s, min_rate = service.timeouts.body, service.config.limits.min_rate
            seconds = body_s if min_rate else NEVER
            self._begin_discarding(Discarding(size, service.timers.now, seconds, body_s, min_rate))

    def _begin_discarding(self, discarding: Discarding) -> None:
        timers = self.service.timers
        self._discarding = discarding
        self.transport.resume_reading()
        timers.arm(self, discarding.deadline(timers.now))

    def _discard(self, data: bytes) -> bool:
        """Throw away what has come. True: the next request follows, and its beginning is in the
        buffer."""
        discarding = self._discarding
        if discarding is None:
            return False
        if discarding.left >= 0:
            if len(data) >= discarding.left:
                self.buffer = data[discarding.left :]
                self._discarding, self._discards = None, False
                return True
            discarding.left -= len(data)
        if discarding.min_rate:
            discarding.ends_at += len(data) / discarding.min_rate
        timers = self.service.timers
        timers.arm(self, discarding.deadline(timers.now))
        return False

    def _hurry(self) -> None:
        """The process stops: it waits only a moment longer for the end of this connection."""
        timers, discarding = self.service.timers, self._discarding
        if discarding is not None:
            discarding.ends_at = min(discarding.ends_at, timers.now + _STOPPING_LINGER_S)
            timers.arm(self, min(self.deadline, discarding.ends_at))

    def _discarding_expired(self, now: float) -> None:
        """Nothing has come for long enough, or something for too long."""
        discarding = self._discarding
        if not self._closing:
            # It may still read its answer, and send what it has begun.
            self._end(linger=True)
        elif (
            discarding is not None
            and now < discarding.ends_at
            and discarding.has_taken_some(self._untaken())
        ):
            self.service.timers.arm(self, discarding.deadline(now))
        else:
            self.transport.abort()

    def _untaken(self) -> int:
        """Bytes that were written, and that the client has not taken."""
        return self.transport.get_write_buffer_size() + unacknowledged(self.transport.borrow())

    def _close_truncated(self, *, reset: bool) -> None:
        """Close in the middle of a response.

        `reset`: so that an HTTP/1.0 client does not take the end for the end of the body.
        """
        if reset:
            self._reset()
        self.transport.break_off()
        self._stop_serving()
        self.service.timers.arm_in(self, self.service.timeouts.body)

    def _reset(self) -> None:
        """Close now, and reset the connection. What is unsent is lost, and the client sees it."""
        if (sock := self.transport.borrow()) is not None:
            sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def _abort_if_closing(self) -> None:
        if self._closing:
            self.transport.abort()
