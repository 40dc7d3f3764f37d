"""A request's body on its way through: its framing is read, and written anew.

Owns: how much of one body has come and where it ends, how much may come, and how slowly, and
the replay buffer: the beginning of a body is kept until its worker answers, so that it can be
sent again to another one. Otherwise pieces pass as they come; nothing is kept but what does not
make a whole chunk size yet. The worker gets chunks of our making, so that no two servers can
differ about an extension or a size. No I/O, no clock.
"""

from typing import Final

from penstock_proxy.errors import BAD_REQUEST, BODY_TOO_LARGE, RejectedError
from penstock_proxy.http1.chunked import Chunked
from penstock_proxy.http1.parser import Framing
from penstock_proxy.http1.request import request_trailers

MAX_REPLAYED: Final = 64 << 10
"""Bytes of a body that are kept until its worker answers. One that is known to be longer gets
a connection of its own."""
_MAX_PIECES: Final = 64
"""That are kept: small ones cost more than they hold."""


class RequestBody:
    """One body. `done` from the byte on that is its last."""

    __slots__ = (
        "_base", "_chunked", "_kept", "_left", "_min_rate", "_most", "_options", "_since",
        "done", "is_replayable", "received",
    )  # fmt: skip

    def __init__(self, framing: Framing, most: int = 0, min_rate: int = 0) -> None:
        """`most` bytes, `min_rate` of them a second; 0: no limit."""
        self._most = most
        self._min_rate = min_rate
        self._since = 0.0
        self._base = 0
        self._chunked = Chunked(BAD_REQUEST) if framing.chunked else None
        self._options = framing.connection
        self._left = framing.length
        self.done = False
        self.received = 0
        """Bytes of payload so far."""
        self._kept: list[bytes] = []
        self.is_replayable = True
        """All that was taken of it is still here, to be sent again."""

    @property
    def is_too_large(self) -> bool:
        """It says by itself that it is longer than it may be."""
        return 0 < self._most < self._left

    def begin(self, now: float) -> None:
        """From now on the client is waited for; it was not its turn before."""
        self._since = now
        self._base = self.received

    def slack(self, now: float, grace_s: float, answer_s: float) -> float:
        """Seconds that the client has left before it is too slow, on average.

        The grace is what lets a client begin slowly, and pause; it is used up only once.
        When all has come, it is the answer's turn.
        """
        if self.done:
            return answer_s
        if not self._min_rate:
            return grace_s
        earned = (self.received - self._base) / self._min_rate
        return min(grace_s, self._since + grace_s + earned - now)

    def hold(self, piece: bytes) -> None:
        """Keep a piece that has not been sent yet."""
        self._kept.append(piece)

    def keep(self, piece: bytes) -> None:
        """Keep a piece for another attempt, as long as there is room for all of them."""
        if self.is_replayable:
            self._kept.append(piece)
            if self.received > MAX_REPLAYED or len(self._kept) >= _MAX_PIECES:
                self.forget()

    def forget(self) -> None:
        """There will be no other attempt."""
        self.is_replayable = False
        self._kept.clear()

    def after(self, head: bytes) -> bytes:
        """A request's head, and what was kept of its body."""
        return b"".join((head, *self._kept)) if self._kept else head

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what goes to the worker, and what lies behind the end. Raises RejectedError."""
        if self._chunked is not None:
            return self._take_chunks(self._chunked, data)
        rest = b""
        if len(data) > self._left:
            data, rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        self.received += len(data)
        self.done = self._left == 0
        return data, rest

    def _take_chunks(self, chunked: Chunked, data: bytes) -> tuple[bytes, bytes]:
        payload = b"".join(chunked.feed(data))
        self.received += len(payload)
        if 0 < self._most < self.received:
            raise RejectedError(BODY_TOO_LARGE, f"more than {self._most} bytes in chunks")
        out = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
        if not chunked.done:
            return out, b""
        self.done = True
        return out + b"0\r\n" + request_trailers(
            chunked.trailers, self._options
        ) + b"\r\n", chunked.rest
