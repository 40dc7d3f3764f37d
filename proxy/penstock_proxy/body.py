"""A request's body on its way through: its framing is read, and written anew.

Owns: how much of one body has come and where it ends. Pieces pass as they come; nothing is
kept but what does not make a whole chunk size yet. The worker gets chunks of our making,
so that no two servers can differ about an extension or a size. No I/O.
"""

from penstock_proxy.errors import BAD_REQUEST
from penstock_proxy.forwarding import request_trailers
from penstock_proxy.http1 import Chunked, Framing


class RequestBody:
    """One body. `done` from the byte on that is its last."""

    __slots__ = ("_chunked", "_left", "_options", "done", "received")

    def __init__(self, framing: Framing) -> None:
        self._chunked = Chunked(BAD_REQUEST) if framing.chunked else None
        self._options = framing.connection
        self._left = framing.length
        self.done = False
        self.received = 0
        """Bytes of payload so far."""

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
        out = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
        if not chunked.done:
            return out, b""
        self.done = True
        return out + b"0\r\n" + request_trailers(
            chunked.trailers, self._options
        ) + b"\r\n", chunked.rest
