"""A connection to a worker: where responses are read.

Owns: one connection to a worker, the framing of the response on it, and whether the connection may
be reused. Must not know: which worker is next, and what the client gets. What it and its request
know of each other is in `upstream_connection`.

A connection is either idle or belongs to one request. Data on an idle connection is a fault; its
end is not. A connection goes back to the connection pool only when the response ended exactly
where its framing said and nothing followed: a byte that is left over would be read as the
response to another client's request.
"""

import os
from collections.abc import Callable
from time import monotonic
from typing import Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import BAD_RESPONSE, WORKER_CLOSED, WORKER_RESET, RejectedError
from penstock_proxy.http.retry import Failure
from penstock_proxy.http.upstream_connection import (
    LENGTH,
    BodyFraming,
    ResponseReceiver,
    UpstreamConnection,
)
from penstock_proxy.http1.chunked import Chunked
from penstock_proxy.http1.parser import NO_LENGTH, cannot_be_response
from penstock_proxy.http1.response import Response, ResponseHeads, keep_response_trailers
from penstock_proxy.net import tcp_info
from penstock_proxy.net.transport import Transport

_MAX_INTERIM: Final = 16
"""1xx responses before a final one. Honest workers send two or three at most."""
_PENDING_READ: Final = 64 << 10


class WorkerConnection(UpstreamConnection):
    """One connection to a worker. `receiver` is None while it is idle."""

    __slots__ = (
        "_body_left",
        "_buffer",
        "_chunked",
        "_connection_options",
        "_framing",
        "_in_head",
        "_interim_count",
        "_is_answered",
        "_on_idle_close",
        "_on_lost",
    )

    def __init__(
        self,
        member: Member,
        receiver: ResponseReceiver,
        responses: ResponseHeads,
        on_lost: Callable[[UpstreamConnection], None],
        on_idle_close: Callable[[UpstreamConnection, float], None],
    ) -> None:
        """`on_lost(connection)` is called once, when the connection is lost.
        `on_idle_close(connection, now)` is called before, if the worker closed it while idle."""
        super().__init__(member, receiver, responses)
        self._on_lost = on_lost
        self._on_idle_close = on_idle_close
        self._buffer = b""
        self._in_head = True
        self._interim_count = 0
        self._framing = LENGTH
        self._body_left = 0
        self._chunked: Chunked | None = None
        self._connection_options: frozenset[bytes] = frozenset()
        self._is_answered = False
        """The response is complete, and its request is not: nothing may come meanwhile."""

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        assert self.receiver is not None
        self.receiver.connected(self)

    def start_request(self, receiver: ResponseReceiver) -> None:
        """Carry another request. The caller writes it."""
        self.receiver = receiver
        self._in_head = True
        self._interim_count = 0
        self.max_idle_s = 0.0

    def data_received(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None:
            # No request was sent: this must not become the response to the next one.
            self.transport.abort()
            return
        try:
            if self._in_head:
                self._read_head(receiver, data)
            else:
                self._read_body(receiver, data)
        except RejectedError as rejected:
            receiver.bad_response(BAD_RESPONSE, rejected.reason)

    def _read_head(self, receiver: ResponseReceiver, data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        elif self._read_as_before(receiver, data):
            return
        response, data = self._read_final_response(receiver, data)
        if response is None:
            return
        if response.status in (101, 408) and self._is_no_answer(receiver, response, data):
            return
        self._in_head = False
        self._set_framing(response, receiver)
        head = receiver.response_head(response, self._framing)
        if not head:
            return
        if self._framing is LENGTH and len(data) == self._body_left:
            # The whole response in one read: one write, and no state to keep.
            receiver.write_to_client(head + data, len(data))
            self._complete(receiver, b"")
        else:
            receiver.send_head(head)
            if data or self._body_left == 0:
                self._read_body(receiver, data)

    def _is_no_answer(self, receiver: ResponseReceiver, response: Response, rest: bytes) -> bool:
        """Pass on what ends the use of this connection for HTTP, or for this request."""
        if response.status == 101:
            receiver.upgraded(self, response, rest)
            return True
        return response.close and self.used and receiver.discard_408(self)

    def _read_as_before(self, receiver: ResponseReceiver, data: bytes) -> bool:
        """Read a whole response that begins with the same head as the one before; False: it does
        not, or it has to be read step by step."""
        responses = self._responses
        response = responses.last
        if response is None or not (response.is_simple and data.startswith(responses.last_head)):
            return False
        body = data[len(responses.last_head) :]
        if len(body) != response.length:
            return False
        # Before the receiver has it: then this connection carries the next request.
        self.max_idle_s = response.max_idle_s
        self.used = True
        return receiver.whole_response(response, body)

    def _read_final_response(
        self, receiver: ResponseReceiver, data: bytes
    ) -> tuple[Response | None, bytes]:
        """The final response's head and what follows it; None while the head is incomplete."""
        responses = self._responses
        while data:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                responses.check(len(data))
                if cannot_be_response(data):
                    raise RejectedError(BAD_RESPONSE, "not HTTP")
                self._buffer = data
                break
            response = responses.read(data[:end])
            data = data[end:]
            if response.status >= 200 or response.status == 101:
                return response, data
            self._interim_count += 1
            if self._interim_count > _MAX_INTERIM:
                raise RejectedError(BAD_RESPONSE, "too many interim responses")
            receiver.interim_response(response)
        return None, b""

    def _set_framing(self, response: Response, receiver: ResponseReceiver) -> None:
        self.max_idle_s = response.max_idle_s
        self._is_answered = False
        if response.authenticates:
            receiver.bind(self)
        self._body_left = NO_LENGTH
        if receiver.line.method == b"HEAD" or response.status in (204, 304):
            self._framing = LENGTH
            self._body_left = 0
            if response.chunked:
                # Legal for HEAD and 304, but such a worker may send the chunks as well, later.
                self.max_idle_s = 0.0
        elif response.chunked:
            self._framing = BodyFraming.CHUNKED
            self._chunked = Chunked(BAD_RESPONSE)
            self._connection_options = response.connection
        elif response.length != NO_LENGTH:
            self._framing = LENGTH
            self._body_left = response.length
        else:
            self._framing = BodyFraming.UNTIL_CLOSE
            self.max_idle_s = 0.0

    def _read_body(self, receiver: ResponseReceiver, data: bytes) -> None:
        if self._is_answered:
            self.transport.abort()
        elif self._chunked is not None:
            self._read_chunks(receiver, self._chunked, data)
        elif self._framing is BodyFraming.UNTIL_CLOSE:
            if data:
                receiver.response_body(data)
        else:
            if len(data) > self._body_left:
                # More than Content-Length: the client gets the right length, and the
                # connection is not reused.
                self.max_idle_s = 0.0
                data = data[: self._body_left]
            self._body_left -= len(data)
            if data:
                receiver.response_body(data)
            if self._body_left == 0:
                self._complete(receiver, b"")

    def _read_chunks(self, receiver: ResponseReceiver, chunked: Chunked, data: bytes) -> None:
        if payload := b"".join(chunked.feed(data)):
            receiver.response_body(payload)
        if chunked.done:
            if chunked.rest:
                self.max_idle_s = 0.0
            trailers = chunked.trailers
            if trailers:
                trailers = keep_response_trailers(trailers, self._connection_options)
            self._complete(receiver, trailers)

    def _complete(self, receiver: ResponseReceiver, trailers: bytes) -> None:
        self._chunked = None
        self.used = True
        receiver.response_complete(trailers)
        self._is_answered = self.receiver is receiver

    def pause_writing(self) -> None:
        self.blocked = True
        if self.receiver is not None:
            self.receiver.pause_upload()

    def resume_writing(self) -> None:
        self.blocked = False
        if self.receiver is not None:
            self.receiver.resume_upload()

    def eof_received(self) -> bool:
        if self.receiver is None and self.used:
            self._on_idle_close(self, monotonic())
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self.receiver is not None and self._read_pending():
            # The end of a unix socket: a write that fails at once may come before it is read.
            is_unix = tcp_info.is_unix(self.transport)
            ended = is_unix and isinstance(error, BrokenPipeError)
        else:
            ended = error is None
        receiver, self.receiver = self.receiver, None
        # Not before: a response that was read just now has put the connection into the pool.
        self._on_lost(self)
        if receiver is None:
            return
        if not self._in_head and self._framing is BodyFraming.UNTIL_CLOSE and ended:
            receiver.response_complete(b"")
        else:
            fault = WORKER_CLOSED if error is None else WORKER_RESET
            receiver.worker_connection_lost(self, fault, self._failure(receiver, error))

    def _failure(self, receiver: ResponseReceiver, error: Exception | None) -> Failure:
        """How the attempt failed, by how much of the request the worker may have read."""
        if self._buffer or self._interim_count or not self._in_head:
            return Failure.BROKEN
        if not self.used:
            unread = tcp_info.is_unread(self.transport, self.acked_before, error)
            return Failure.UNREAD if unread else Failure.BROKEN
        # For an idempotent request the kernel was not asked before, which would cost each request.
        unread = tcp_info.is_unread(
            self.transport, self.acked_before, error
        ) or tcp_info.is_unacknowledged(self.transport, receiver.request_size(), error)
        return Failure.CLOSED if unread else Failure.STALE

    def _read_pending(self) -> bool:
        """Read a response that is still in the kernel although the connection was reset. True: it
        was read up to the worker's own end.

        A worker may respond and close before it has read the whole request (a 413). That close
        is a reset. The kernel keeps the data that arrived before it. The transport stopped
        reading at the first write that failed, but closes its descriptor only after this.
        """
        sock = self.transport.borrow()
        while sock is not None and self.receiver is not None:
            try:
                data = os.read(sock.fileno(), _PENDING_READ)
            except OSError:
                return False
            if not data:
                return True
            self.data_received(data)
        return False
