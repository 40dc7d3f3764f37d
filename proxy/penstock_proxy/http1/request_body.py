"""A request's body: its framing is read, and written anew for the worker.

Owns: how much of one body was received and where it ends, its limits of size and rate, and the
replay buffer. The beginning of a body is kept until its worker responds, so that it can be sent
again to another worker. Otherwise pieces are forwarded as they arrive; only an incomplete chunk
size is buffered. The worker gets chunks that we have framed, so that no two servers can read an
extension or a size in different ways. No I/O, no clock.
"""

from typing import Final

from penstock_proxy.errors import BAD_REQUEST, BODY_TOO_LARGE, RejectedError
from penstock_proxy.http1.chunked import Chunked
from penstock_proxy.http1.parser import NO_LENGTH, Framing
from penstock_proxy.http1.request import request_trailers

MAX_REPLAYED: Final = 64 << 10
"""Bytes of the replay buffer. A body that is known to be longer gets a new connection."""
_MAX_PIECES: Final = 64
"""Pieces in the replay buffer: small ones cost more memory than they hold."""


class RequestBody:
    """One body. `done` is true once its last byte was received."""

    __slots__ = (
        "_chunked",
        "_connection_options",
        "_left",
        "_max_size",
        "_min_rate",
        "_received_before",
        "_replay_buffer",
        "_timing_since",
        "done",
        "is_replayable",
        "received",
    )

    def __init__(self, framing: Framing, max_size: int = 0, min_rate: int = 0) -> None:
        """`max_size` bytes, `min_rate` of them a second; 0: no limit."""
        self._max_size = max_size
        self._min_rate = min_rate
        self._timing_since = 0.0
        self._received_before = 0
        self._chunked = Chunked(BAD_REQUEST) if framing.chunked else None
        self._connection_options = framing.connection
        self._left = framing.length
        self.done = False
        self.received = 0
        """Bytes of payload that were received so far."""
        self._replay_buffer: list[bytes] = []
        self.is_replayable = True
        """All that was received is still in the replay buffer."""

    @property
    def is_too_large(self) -> bool:
        """Is its Content-Length above the limit?"""
        return 0 < self._max_size < self._left

    @property
    def left(self) -> int:
        """Bytes that have not come yet; below zero: that is not known."""
        return NO_LENGTH if self._chunked is not None else self._left

    def start_timing(self, now: float) -> None:
        """Measure the client's rate from now on: before, we did not read."""
        self._timing_since = now
        self._received_before = self.received

    def seconds_left(self, now: float, grace_s: float, response_s: float) -> float:
        """Seconds until the client is too slow, on average, if it sends nothing more.

        `grace_s` lets a client begin slowly, and pause; it is used up only once. When the body
        is complete, the response is awaited: then it is `response_s`.
        """
        if self.done:
            return response_s
        if not self._min_rate:
            return grace_s
        earned = (self.received - self._received_before) / self._min_rate
        return min(grace_s, self._timing_since + grace_s + earned - now)

    def hold_unsent(self, piece: bytes) -> None:
        """Keep a piece that cannot be sent yet: no connection is established."""
        self._replay_buffer.append(piece)

    def keep_for_replay(self, piece: bytes) -> None:
        """Keep a piece for a retry, as long as the replay buffer can hold all of them."""
        if self.is_replayable:
            self._replay_buffer.append(piece)
            if self.received > MAX_REPLAYED or len(self._replay_buffer) >= _MAX_PIECES:
                self.drop_replay()

    def drop_replay(self) -> None:
        """Give up the replay buffer: there will be no retry."""
        self.is_replayable = False
        self._replay_buffer.clear()

    def with_head(self, head: bytes) -> bytes:
        """A request's head, and the pieces of its body that are kept."""
        return b"".join((head, *self._replay_buffer)) if self._replay_buffer else head

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what goes to the worker, and what follows the body. Raises RejectedError."""
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
        if 0 < self._max_size < self.received:
            raise RejectedError(BODY_TOO_LARGE, f"more than {self._max_size} bytes in chunks")
        out = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
        if not chunked.done:
            return out, b""
        self.done = True
        return out + b"0\r\n" + request_trailers(
            chunked.trailers, self._connection_options
        ) + b"\r\n", chunked.rest
