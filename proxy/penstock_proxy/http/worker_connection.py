"""A connection to a worker: where responses are read.

Owns: one connection to a worker, the framing of the response on it, whether it may be used
again, and what whoever sent the request has to answer to (`ResponseReceiver`). Must not know:
which worker is next, what the client gets to see.

A connection is either idle, and then a byte on it is a fault and its end is nothing, or it
belongs to one request. It goes back to the connection pool only when the response ended exactly
where its framing said and nothing followed: what is left over on a reused connection would
be read as the answer to somebody else's request.
"""

import os
from collections.abc import Callable
from enum import Enum, auto
from time import monotonic
from typing import Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import BAD_RESPONSE, WORKER_CLOSED, WORKER_RESET, Fault, RejectedError
from penstock_proxy.http.retry import Loss
from penstock_proxy.http1.chunked import Chunked
from penstock_proxy.http1.parser import NO_LENGTH, RequestLine, answer_looks_wrong
from penstock_proxy.http1.response import Response, ResponseHeads, keep_response_trailers
from penstock_proxy.net import tcp_info
from penstock_proxy.net.connector import Connecting
from penstock_proxy.net.transport import Transport

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


class ResponseReceiver:
    """Whoever has sent a request over a connection, and gets the response.

    A plain base class: where the data path is compiled, its calls are native ones.
    """

    line: RequestLine
    connecting: Connecting | None = None
    """The way to a new connection, as long as it is not made."""

    def connected(self, link: "WorkerConnection") -> None:
        """A new connection is there: send the request."""
        raise NotImplementedError

    def connect_failed(self, reason: str, fault: Fault) -> None:
        """There is no connection to the worker."""
        raise NotImplementedError

    def interim(self, response: Response) -> None:
        """A 1xx response has come, not 101."""
        raise NotImplementedError

    def response_head(self, response: Response, body: Body, *, complete: bool) -> bytes:
        """The final response has come; returns the head for the client.

        `complete`: all of its body has come with it.
        """
        raise NotImplementedError

    def relay(self, data: bytes, body: int) -> None:
        """Send the whole response, head and body, to the client; `body` bytes of it are body."""
        raise NotImplementedError

    def begin_body(self, head: bytes) -> None:
        """Send the head; the body follows in pieces."""
        raise NotImplementedError

    def body(self, piece: bytes) -> None:
        """A piece of the body; never empty."""
        raise NotImplementedError

    def finish(self, trailers: bytes) -> None:
        """The response is complete."""
        raise NotImplementedError

    def upgraded(self, link: "WorkerConnection", response: Response, rest: bytes) -> None:
        """The worker speaks another protocol from now on; `rest` is the beginning of it."""
        raise NotImplementedError

    def uploading(self) -> None:
        """The worker takes more of the request's body."""
        raise NotImplementedError

    def pause_upload(self) -> None:
        """The worker does not take what it is sent."""
        raise NotImplementedError

    def useless(self, fault: Fault, reason: str) -> None:
        """What the worker says cannot be passed on."""
        raise NotImplementedError

    def lost(self, link: "WorkerConnection", fault: Fault, loss: Loss) -> None:
        """The connection ended before the response did."""
        raise NotImplementedError


class WorkerConnection:
    """One connection. `receiver` is None while it is idle."""

    __slots__ = (
        "_body",
        "_buffer",
        "_chunked",
        "_ended",
        "_gone",
        "_in_head",
        "_interim",
        "_left",
        "_responses",
        "acked",
        "blocked",
        "idle_since",
        "keep_s",
        "member",
        "receiver",
        "transport",
        "used",
    )

    transport: Transport

    def __init__(
        self,
        member: Member,
        receiver: ResponseReceiver,
        responses: ResponseHeads,
        gone: Callable[["WorkerConnection"], None],
        ended: Callable[["WorkerConnection", float], None],
    ) -> None:
        """`gone` is called once, when the connection is lost; `ended(link, now)` before that,
        if its worker closed it while it was idle."""
        self.member = member
        self.receiver: ResponseReceiver | None = receiver
        self._responses = responses
        self.used = False
        """It has carried a request before: its worker may have closed it meanwhile."""
        self.keep_s = 0.0
        """How long it may be idle before it is used again; 0: it cannot be used again."""
        self.blocked = False
        """The worker does not take what it is sent."""
        self.idle_since = 0.0
        self.acked = tcp_info.UNKNOWN
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
        assert self.receiver is not None
        self.receiver.connected(self)

    def begin(self, receiver: ResponseReceiver) -> None:
        """Take a new request. The caller writes it."""
        self.receiver = receiver
        self._in_head = True
        self._interim = 0
        self.keep_s = 0.0

    def data_received(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None:
            # Nobody asked for anything: whatever this is must not answer the next one.
            self.transport.abort()
            return
        try:
            if self._in_head:
                self._read_head(receiver, data)
            else:
                self._read_body(receiver, data)
        except RejectedError as rejected:
            receiver.useless(BAD_RESPONSE, rejected.reason)

    def _read_head(self, receiver: ResponseReceiver, data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        response, data = self._final(receiver, data)
        if response is None:
            return
        if response.status == 101:
            receiver.upgraded(self, response, data)
            return
        self._in_head = False
        self._frame(response, receiver)
        complete = self._body is LENGTH and len(data) >= self._left
        head = receiver.response_head(response, self._body, complete=complete)
        if complete and len(data) == self._left:
            # The whole answer in one read: one write, and nothing to remember.
            receiver.relay(head + data, len(data))
            self._end(receiver, b"")
        else:
            receiver.begin_body(head)
            if data or self._left == 0:
                self._read_body(receiver, data)

    def _final(self, receiver: ResponseReceiver, data: bytes) -> tuple[Response | None, bytes]:
        """The final response and what follows it; None while it is not all there."""
        responses = self._responses
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
            receiver.interim(response)
        return None, b""

    def _frame(self, response: Response, receiver: ResponseReceiver) -> None:
        self.keep_s = response.keep_s
        self._left = NO_LENGTH
        if receiver.line.method == b"HEAD" or response.status in (204, 304):
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

    def _read_body(self, receiver: ResponseReceiver, data: bytes) -> None:
        if self._chunked is not None:
            self._read_chunks(receiver, self._chunked, data)
        elif self._body is Body.UNTIL_CLOSE:
            if data:
                receiver.body(data)
        else:
            if len(data) > self._left:
                # More than was promised: the promise is kept, the connection is not.
                self.keep_s = 0.0
                data = data[: self._left]
            self._left -= len(data)
            if data:
                receiver.body(data)
            if self._left == 0:
                self._end(receiver, b"")

    def _read_chunks(self, receiver: ResponseReceiver, chunked: Chunked, data: bytes) -> None:
        if payload := b"".join(chunked.feed(data)):
            receiver.body(payload)
        if chunked.done:
            if chunked.rest:
                self.keep_s = 0.0
            self._end(receiver, keep_response_trailers(chunked.trailers))

    def _end(self, receiver: ResponseReceiver, trailers: bytes) -> None:
        self._chunked = None
        self.used = True
        receiver.finish(trailers)

    def pause_writing(self) -> None:
        self.blocked = True
        if self.receiver is not None:
            self.receiver.pause_upload()

    def resume_writing(self) -> None:
        self.blocked = False
        if self.receiver is not None:
            self.receiver.uploading()

    def eof_received(self) -> bool:
        if self.receiver is None and self.used:
            self._ended(self, monotonic())
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self.receiver is not None:
            self._hear_out()
        receiver, self.receiver = self.receiver, None
        # Not before: an answer that was heard out has put it back among those that are kept.
        self._gone(self)
        if receiver is None:
            return
        if not self._in_head and self._body is Body.UNTIL_CLOSE and error is None:
            receiver.finish(b"")
        else:
            fault = WORKER_CLOSED if error is None else WORKER_RESET
            receiver.lost(self, fault, self._loss(error))

    def _loss(self, error: Exception | None) -> Loss:
        """What its worker can have seen of the request."""
        if self._buffer or self._interim or not self._in_head:
            return Loss.BROKEN
        if tcp_info.is_unread(self.transport, self.acked, error):
            return Loss.UNREAD
        return Loss.STALE if self.used else Loss.BROKEN

    def _hear_out(self) -> None:
        """Read what the worker said before it closed without having read the whole request.

        That close is a reset ("413, and I have heard enough"). The kernel keeps what came
        before it; the transport gave up at the first write that failed, and closes its
        descriptor only when it has told us.
        """
        sock = self.transport.borrow()
        while sock is not None and self.receiver is not None:
            try:
                data = os.read(sock.fileno(), _LAST_READ)
            except OSError:
                return
            if not data:
                return
            self.data_received(data)
