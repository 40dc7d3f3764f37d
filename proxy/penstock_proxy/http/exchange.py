"""One HTTP request and its response.

Owns: an exchange from the moment its head is read: the request's body on its way to the worker, and
the response on its way to the client. Must not know: how bytes are read from either side
(`client_connection`, `worker_connection`), how a worker is found (`upstream_request`) or another
one asked (`retried_request`), and what is done at its end (`ended_request`, its base).

Each request gets a new exchange, so no state of one request can leak into the next. It needs no
task and no timer: its deadline is the client connection's.
"""

from time import monotonic

from penstock_proxy import errors
from penstock_proxy.config import Timeouts
from penstock_proxy.errors import RejectedError
from penstock_proxy.http import upgrade
from penstock_proxy.http.client_closing import MAX_SKIPPED
from penstock_proxy.http.downstream import Downstream
from penstock_proxy.http.ended_request import EndedRequest
from penstock_proxy.http.retry import Failure
from penstock_proxy.http.upstream_connection import LENGTH, BodyFraming, UpstreamConnection
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.http1.request import PreparedRequest
from penstock_proxy.http1.request_body import RequestBody
from penstock_proxy.http1.response import Response
from penstock_proxy.net.tcp_info import UNIX_OPEN, UNKNOWN
from penstock_proxy.tcp.duplex import NO_FAULT, ClientHalf


class Exchange(EndedRequest):
    """One request and its response."""

    # Defaults of the class, as in its base.
    _body: RequestBody | None = None
    _sends_chunks = False
    _anything_sent = False
    """Part of a response has been sent to the client, perhaps only a 1xx."""
    _head = b""
    """The request's head for the worker; empty once the response has started."""

    def __init__(
        self, client: Downstream, line: RequestLine, prepared: PreparedRequest, request_id: bytes
    ) -> None:
        self.client = client
        self.line = line
        self.prepared = prepared
        self.request_id = request_id
        self.started = monotonic()
        self._keep_alive = not prepared.close if line.minor else prepared.keep_alive
        framing = prepared.framing
        self.request_done = framing.length <= 0 and not framing.chunked
        if not self.request_done:
            limits = client.service.config.limits
            self._body = RequestBody(framing, limits.body, limits.min_rate)

    # -- to the worker

    def start(self, head: bytes) -> None:
        """Send the request to a worker, or let it wait behind those in the queue."""
        if self._body is not None and self._body.is_too_large:
            self.fail(errors.BODY_TOO_LARGE, "by its Content-Length")
            return
        self._head = head
        if self.client.service.queue:
            self.wait()
        else:
            self.dispatch()

    def send_request(self, connection: UpstreamConnection) -> None:
        """Send all of the request that has arrived over this connection."""
        self.connection = connection
        if self.prepared.authenticates:
            self.bind(connection)
        if self.client.blocked:
            connection.transport.pause_reading()
        body = self._body
        if body is None:
            connection.transport.write(self._head)
            self.expire_in(self.client.service.timeouts.response)
        else:
            connection.transport.write(body.with_head(self._head))
            self.resume_upload()

    def resume_upload(self) -> None:
        """The worker's connection takes bytes: read more of the body, or wait for the response."""
        body = self._body
        if body is not None:
            body.start_timing(monotonic())
        self._set_deadline(body)
        if body is not None and self.connection is not None and not self.connection.blocked:
            # Also when the body is complete: only by reading do we see the client close.
            self.client.transport.resume_reading()

    def _set_deadline(self, body: RequestBody | None) -> None:
        timeouts = self.client.service.timeouts
        if body is None or self._awaits_continue():
            self.expire_in(timeouts.response)
        else:
            self.expire_in(body.seconds_left(monotonic(), timeouts.body, timeouts.response))

    def _awaits_continue(self) -> bool:
        """Does the client wait for a 100 before it sends the body?"""
        return self.prepared.expects_continue and not self.received and not self._anything_sent

    def receive_body(self, data: bytes) -> bytes:
        """Forward bytes of the request's body; return what follows its end."""
        body = self._body
        assert body is not None
        try:
            out, rest = body.take(data)
        except RejectedError as rejected:
            self.fail(rejected.fault, rejected.reason)
            return b""
        self.received = body.received
        self.request_done = body.done
        if out:
            self._send(body, out)
        if self.answered and body.done:
            # What follows is the next request.
            self.client.buffer, rest = rest, b""
            self.finish_answered()
        return rest

    def _send(self, body: RequestBody, data: bytes) -> None:
        connection = self.connection
        if connection is None:
            # Not connected yet: hold this piece, and leave the rest in the kernel.
            body.hold_unsent(data)
            if not self.request_done:
                self.client.transport.pause_reading()
            return
        body.keep_for_replay(data)
        if not body.is_replayable:
            self._head = b""
        if connection.acked_before == UNIX_OPEN:
            connection.acked_before = UNKNOWN
        connection.transport.write(data)
        self._set_deadline(body)

    def pause_upload(self) -> None:
        """The worker does not read fast enough: stop reading from the client."""
        self.client.transport.pause_reading()

    # -- to the client

    def interim_response(self, response: Response) -> None:
        """Forward a 1xx response (HTTP/1.0 has none)."""
        if self.line.minor:
            self._anything_sent = True
            if self._body is not None:
                self._body.drop_replay()
            self.write_to_client(response.head + b"\r\n", 0)
            self.resume_upload()

    def response_head(self, response: Response, framing: BodyFraming) -> bytes:
        """Record the worker's response, and return the head for the client."""
        client = self.client
        service = client.service
        member = self.member
        assert member is not None
        now = monotonic()
        if response.status >= 500:
            service.pool.failed(member, now)
            if response.status in service.retried_statuses and self.discard(response.status):
                return b""
        elif member.consecutive_failures:
            service.pool.succeeded(member)
        self._keep_alive = self._keep_alive and self._may_keep_alive()
        self.response_started = self._anything_sent = True
        self._head = b""
        if self._body is not None:
            self._body.drop_replay()
        self.status = response.status
        self.first_byte_s = now - self.started
        service.counters.first_byte.observe(self.first_byte_s)
        minor = self.line.minor
        fields = b"\r\n"
        if framing is not LENGTH:
            # The client gets chunks however the worker framed the body, or for HTTP/1.0 the
            # close of the connection.
            self._sends_chunks = minor == 1
            self._keep_alive = self._keep_alive and minor == 1
            fields = b"Transfer-Encoding: chunked\r\n\r\n" if minor else fields
        if not self._keep_alive:
            fields = b"Connection: close\r\n" + fields
        elif not minor:
            fields = b"Connection: keep-alive\r\n" + fields
        return response.head + fields

    def _may_keep_alive(self) -> bool:
        """May the client be told, with the head of its response, that its connection is kept?

        The response may end before the request does. Then the rest of the body is read, if it is
        small. Otherwise, or if that is not known, the client has to know it now. So it has if it
        waits for a 100: it may send the body all the same, or the next request. The worker of a
        connection that is this client's own gets all of the body.
        """
        body = self._body
        if self.client.service.stopping:
            return False
        if self.request_done or body is None:
            return True
        if self._awaits_continue():
            return False
        return 0 <= body.left <= MAX_SKIPPED or self._has_own_connection()

    def _has_own_connection(self) -> bool:
        """Is the worker's connection this client's own, and kept for its next request?"""
        connection = self.connection
        return (
            connection is not None
            and connection.receiver is self
            and connection.binding is not None
            and connection.max_idle_s > 0.0
            and not connection.transport.is_closing()
        )

    def whole_response(self, response: Response, body: bytes) -> bool:
        """Forward a whole response in which nothing has to be decided: most of them.

        What `response_head` and `response_complete` do together, with one look at the clock.
        """
        client, line, member = self.client, self.line, self.member
        service = client.service
        if (
            not (self._keep_alive and self.request_done and line.minor)
            or line.method == b"HEAD"
            or service.stopping
            or member is None
            or member.consecutive_failures
        ):
            return False
        now = monotonic()
        self.first_byte_s = total_s = now - self.started
        counters = service.counters
        counters.durations[member].observe_in(counters.first_byte.observe(total_s), total_s)
        self.status = response.status
        head_and_body = response.kept + body
        self.sent = len(body)
        counters.sent += len(head_and_body)
        client.transport.write(head_and_body)
        self._record(total_s, NO_FAULT)
        self._release(now, keep_alive=True, truncated=False)
        return True

    def write_to_client(self, data: bytes, body: int) -> None:
        """Write to the client; `body` is how many of these bytes belong to the body."""
        self.sent += body
        client = self.client
        client.service.counters.sent += len(data)
        client.transport.write(data)

    def send_head(self, head: bytes) -> None:
        """Send the head; the body follows in pieces."""
        self.write_to_client(head, 0)
        self.expire_in(self.client.service.timeouts.body)

    def response_body(self, piece: bytes) -> None:
        """Forward a piece of the response's body."""
        size = len(piece)
        if self._sends_chunks:
            piece = b"%x\r\n%b\r\n" % (size, piece)
        self.write_to_client(piece, size)
        self.expire_in(self.client.service.timeouts.body)

    def response_complete(self, trailers: bytes) -> None:
        """The response is complete."""
        if self._sends_chunks:
            self.write_to_client(b"0\r\n" + trailers + b"\r\n", 0)
        if self._keep_alive and not self.request_done and self._has_own_connection():
            # Of an authenticated connection nothing may be missing: the worker reads all of the
            # body before the next request.
            self.answered = True
            self.resume_upload()
        else:
            self.finish_answered()

    def finish_answered(self) -> None:
        """The client has its whole response, and the rest of its body goes nowhere."""
        body = self._body
        left = -1 if body is None or self.request_done else body.left
        keep_alive = self._keep_alive and (self.request_done or 0 <= left <= MAX_SKIPPED)
        self._finish(monotonic(), NO_FAULT, keep_alive=keep_alive)
        if left > 0:
            self.client.skip(left)

    def worker_connection_lost(
        self, connection: UpstreamConnection, fault: errors.Fault, failure: Failure
    ) -> None:
        if self.answered:
            self.connection = None
            self.finish_answered()
        else:
            super().worker_connection_lost(connection, fault, failure)

    def upgraded(self, connection: UpstreamConnection, response: Response, rest: bytes) -> None:
        """The worker switches to another protocol: from now on both connections are a duplex."""
        offers = self.prepared.framing.upgrade
        if not (self.request_done and upgrade.was_offered(response, offers)):
            self.bad_response(errors.BAD_RESPONSE, "101 for a protocol that was not offered")
        elif connection.transport.is_closing():
            # Read after the connection was lost: a duplex would never see its end.
            self.bad_response(errors.WORKER_RESET, "reset after its 101")
        else:
            self.status = 101
            self.first_byte_s = monotonic() - self.started
            self.write_to_client(upgrade.head(response) + rest, len(rest))
            # What the client sent ahead goes to the worker, too.
            self.received += len(self.client.buffer)
            upgrade.join(self.client, connection, self)

    def duplex_closed(self, half: ClientHalf) -> None:
        """The upgraded connection is closed."""
        client = self.client
        service = client.service
        service.fd_budget.upstreams -= 1
        service.counters.upstreams -= 1
        service.relays.pop(self, None)
        self.received += half.received
        self.sent += half.sent
        if half.outcome != NO_FAULT:
            service.counters.errors[half.outcome] += 1
            service.counters.broken_off += half.outcome in errors.BROKEN_OFF
        self.count(monotonic() - self.started, half.outcome)
        self.release_member()
        service.clients.discard(client)
        service.client_closed(client.counted_address)

    # -- the configuration has changed

    def be_the_last(self) -> None:
        """The client's connection is closed after this exchange."""
        self._keep_alive = False

    def timeouts_changed(self, before: Timeouts) -> None:
        """The service's time-outs were these. What waits for a worker or a client goes on as it
        was; only the time of a whole exchange is looked up when it is over."""
        service = self.client.service
        if before.total and self.client.deadline == self.started + before.total:
            timeouts = service.timeouts
            self.expire_in(timeouts.connect if self.connection is None else timeouts.response)

    # -- how it ends

    @property
    def is_repeatable(self) -> bool:
        """Was nothing sent to the client yet, and can the whole request be sent again?"""
        return not self._anything_sent and (self._body is None or self._body.is_replayable)

    def request_size(self) -> int:
        """Bytes of the request that were written to its connection; 0: that is not known."""
        body = self._body
        if body is None:
            return len(self._head)
        return len(body.with_head(self._head)) if body.is_replayable else 0

    def expired(self, now: float) -> None:
        """The deadline has passed: end the exchange or the attempt. What was waited for decides."""
        service = self.client.service
        total = service.timeouts.total
        if total and now >= self.started + total:
            self.fail(errors.TOTAL_TIMEOUT, "")
        elif self in service.queue:
            self.refuse(self.last_fault())
        elif self.connection is None:
            self.stop_trying()
            self.connect_failed("", errors.CONNECT_TIMEOUT)
        elif self.client.blocked:
            self.fail(errors.SEND_TIMEOUT, "")
        elif not (self.request_done or self.connection.blocked or self._awaits_continue()):
            self.fail(errors.BODY_TIMEOUT, "")
        elif self.response_started:
            # A stream may pause for good reasons: this is not counted as the worker's failure.
            self.fail(errors.RESPONSE_TIMEOUT, "between two pieces")
        else:
            self.bad_response(errors.RESPONSE_TIMEOUT, "")
