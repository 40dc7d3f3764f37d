"""A connection to a worker: where responses are read.

Owns: one connection of the pool, the framing of the response on it, and whether it may be
used again. Must not know: which worker is next, what the client gets to see (`exchange`).

A connection is either idle, and then a byte on it is a fault and its end is nothing, or it
belongs to one exchange. It goes back to the pool only when the response ended exactly
where its framing said and nothing followed: what is left over on a reused connection would
be read as the answer to somebody else's request.
"""

import os
from collections.abc import Callable
from enum import Enum, auto
from time import monotonic
from typing import TYPE_CHECKING, Final

from penstock_proxy import forwarding, receipts
from penstock_proxy.connection import Transport
from penstock_proxy.errors import BAD_RESPONSE, WORKER_CLOSED, WORKER_RESET, RejectedError
from penstock_proxy.forwarding import Response
from penstock_proxy.http1 import NO_LENGTH, Chunked, answer_looks_wrong
from penstock_proxy.pool import Member
from penstock_proxy.retrying import Loss
from penstock_proxy.tunnel import switch

if TYPE_CHECKING:
    from penstock_proxy.exchange import Exchange

_MAX_INTERIM: Final = 16
"""1xx responses before a final one. Nobody needs more than two or three."""
_LAST_READ: Final = 64 << 10


class Body(Enum):
    """How the end of a response is known (RFC 9112 §6.3)."""

    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()


LENGTH: Final = Body.LENGTH
"""Python 3.11 takes longer to find a member of an enum than to compare it."""


class WorkerConnection:
    """One connection. `exchange` is None while it is idle."""

    __slots__ = (
        "_body",
        "_buffer",
        "_chunked",
        "_ended",
        "_gone",
        "_in_head",
        "_interim",
        "_left",
        "acked",
        "blocked",
        "exchange",
        "idle_since",
        "keep_s",
        "member",
        "transport",
        "used",
    )

    transport: Transport

    def __init__(
        self,
        member: Member,
        exchange: "Exchange",
        gone: Callable[["WorkerConnection"], None],
        ended: Callable[["WorkerConnection", float], None],
    ) -> None:
        """`gone` is called once, when the connection is lost; `ended(link, now)` before that,
        if its worker closed it while it was idle."""
        self.member = member
        self.exchange: Exchange | None = exchange
        self.used = False
        """It has carried an exchange before: its worker may have closed it meanwhile."""
        self.keep_s = 0.0
        """How long it may be idle before it is used again; 0: it cannot be used again."""
        self.blocked = False
        """The worker does not take what it is sent."""
        self.idle_since = 0.0
        self.acked = receipts.UNKNOWN
        """What its worker's kernel had taken before this request, if that matters."""
        self._gone = gone
        self._ended = ended
        self._buffer = b""
        self._in_head = True
        self._interim = 0
        self._body = LENGTH
        self._left = 0
        self._chunked: Chunked | None = None

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        assert self.exchange is not None
        self.exchange.connected(self)

    def begin(self, exchange: "Exchange") -> None:
        """Take a new exchange. The caller writes the request."""
        self.exchange = exchange
        self._in_head = True
        self._interim = 0
        self.keep_s = 0.0

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            # Nobody asked for anything: whatever this is must not answer the next one.
            self.transport.abort()
            return
        try:
            if self._in_head:
                self._read_head(exchange, data)
            else:
                self._read_body(exchange, data)
        except RejectedError as rejected:
            exchange.useless(BAD_RESPONSE, rejected.reason)

    def _read_head(self, exchange: "Exchange", data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        response, data = self._final(exchange, data)
        if response is None:
            return
        if response.status == 101:
            switch(exchange, self, response, data)
            return
        self._in_head = False
        self._frame(response, exchange)
        complete = self._body is LENGTH and len(data) >= self._left
        head = exchange.response_head(response, self._body, complete=complete)
        if complete and len(data) == self._left:
            # The whole answer in one read: one write, and nothing to remember.
            exchange.relay(head + data, len(data))
            self._end(exchange, b"")
        else:
            exchange.relay(head, 0)
            exchange.expire_in(exchange.client.service.timeouts.body)
            if data or self._left == 0:
                self._read_body(exchange, data)

    def _final(self, exchange: "Exchange", data: bytes) -> tuple[Response | None, bytes]:
        """The final response and what follows it; None while it is not all there."""
        responses = exchange.client.service.responses
        while data:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                responses.check(len(data))
                if answer_looks_wrong(data):
                    raise RejectedError(BAD_RESPONSE, "not HTTP")
                self._buffer = data
                break
            response = responses.read(data[:end])
            data = data[end:]
            if response.status >= 200 or response.status == 101:
                return response, data
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise RejectedError(BAD_RESPONSE, "too many interim responses")
            exchange.interim(response)
        return None, b""

    def _frame(self, response: Response, exchange: "Exchange") -> None:
        self.keep_s = response.keep_s
        self._left = NO_LENGTH
        if exchange.line.method == b"HEAD" or response.status in (204, 304):
            self._body = LENGTH
            self._left = 0
            if response.chunked:
                # Legal for HEAD and 304, but who says it may send the chunks as well, later.
                self.keep_s = 0.0
        elif response.chunked:
            self._body = Body.CHUNKED
            self._chunked = Chunked(BAD_RESPONSE)
        elif response.length != NO_LENGTH:
            self._body = LENGTH
            self._left = response.length
        else:
            self._body = Body.UNTIL_CLOSE
            self.keep_s = 0.0

    def _read_body(self, exchange: "Exchange", data: bytes) -> None:
        if self._chunked is not None:
            self._read_chunks(exchange, self._chunked, data)
        elif self._body is Body.UNTIL_CLOSE:
            if data:
                exchange.body(data)
        else:
            if len(data) > self._left:
                # More than was promised: the promise is kept, the connection is not.
                self.keep_s = 0.0
                data = data[: self._left]
            self._left -= len(data)
            if data:
                exchange.body(data)
            if self._left == 0:
                self._end(exchange, b"")

    def _read_chunks(self, exchange: "Exchange", chunked: Chunked, data: bytes) -> None:
        if payload := b"".join(chunked.feed(data)):
            exchange.body(payload)
        if chunked.done:
            if chunked.rest:
                self.keep_s = 0.0
            self._end(exchange, forwarding.trailers(chunked.trailers))

    def _end(self, exchange: "Exchange", trailers: bytes) -> None:
        self._chunked = None
        self.used = True
        exchange.finish(trailers)

    def pause_writing(self) -> None:
        self.blocked = True
        if self.exchange is not None:
            self.exchange.client.transport.pause_reading()

    def resume_writing(self) -> None:
        self.blocked = False
        if self.exchange is not None:
            self.exchange.uploading()

    def eof_received(self) -> bool:
        if self.exchange is None and self.used:
            self._ended(self, monotonic())
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self.exchange is not None:
            self._hear_out()
        exchange, self.exchange = self.exchange, None
        # Not before: an answer that was heard out has put it back among those that are kept.
        self._gone(self)
        if exchange is None:
            return
        if not self._in_head and self._body is Body.UNTIL_CLOSE and error is None:
            exchange.finish(b"")
        else:
            fault = WORKER_CLOSED if error is None else WORKER_RESET
            exchange.lost(self, fault, self._loss(error))

    def _loss(self, error: Exception | None) -> Loss:
        """What its worker can have seen of the request."""
        if self._buffer or self._interim or not self._in_head:
            return Loss.BROKEN
        if receipts.untaken(self.transport, self.acked, error):
            return Loss.UNREAD
        return Loss.STALE if self.used else Loss.BROKEN

    def _hear_out(self) -> None:
        """Read what the worker said before it closed without having read the whole request.

        That close is a reset ("413, and I have heard enough"). The kernel keeps what came
        before it; the transport gave up at the first write that failed, and closes its
        descriptor only when it has told us.
        """
        sock = self.transport.borrow()
        while sock is not None and self.exchange is not None:
            try:
                data = os.read(sock.fileno(), _LAST_READ)
            except OSError:
                return
            if not data:
                return
            self.data_received(data)
