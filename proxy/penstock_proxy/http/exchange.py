"""Delivery http: one request and its response.

Owns: an exchange from the moment its head is read until it is counted: the request's body up,
the response down, what the client was told, how it ended. Must not know: how bytes are read from
either side (`client_connection`, `worker_connection`), how a worker is found (`upstream_request`,
its base).

It is made for each request and dies with it, so nothing of one can be left over in the next. It
costs no task and no timer; its deadline is its client's.
"""

from time import monotonic
from typing import Final

from penstock_proxy import errors
from penstock_proxy.errors import Fault, RejectedError
from penstock_proxy.http import upgrade
from penstock_proxy.http.downstream import Downstream
from penstock_proxy.http.upstream_request import UpstreamRequest
from penstock_proxy.http.worker_connection import LENGTH, Body, WorkerConnection
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.http1.request import PreparedRequest
from penstock_proxy.http1.request_body import RequestBody
from penstock_proxy.http1.response import Response
from penstock_proxy.metrics import METHODS, OTHER, PROXY_SLOT
from penstock_proxy.net.tcp_info import UNIX_OPEN, UNKNOWN
from penstock_proxy.tcp.duplex import OK, ClientHalf

_LABELS: Final = {method.encode(): method for method in METHODS}


class Exchange(UpstreamRequest):
    """One request and its response."""

    # Defaults of the class, as in its base.
    first_byte_s: float | None = None
    status = 0
    sent = 0
    """Bytes of the response's body."""
    received = 0
    """Bytes of the request's body."""
    _body: RequestBody | None = None
    _chunked_out = False
    _told = False
    """The client has seen something of an answer, be it a 1xx."""
    _head = b""
    """The request's, for the worker; until it answers."""

    def __init__(
        self, client: Downstream, line: RequestLine, prepared: PreparedRequest, request_id: bytes
    ) -> None:
        self.client = client
        self.line = line
        self.prepared = prepared
        self.request_id = request_id
        self.started = monotonic()
        self._keep = not prepared.close if line.minor else prepared.keep_alive
        framing = prepared.framing
        self.request_done = framing.length <= 0 and not framing.chunked
        if not self.request_done:
            limits = client.service.config.limits
            self._body = RequestBody(framing, limits.body, limits.min_rate)

    # -- to the worker

    def start(self, head: bytes) -> None:
        """Send the request's head to whoever is next."""
        if self._body is not None and self._body.is_too_large:
            self.fail(errors.BODY_TOO_LARGE, "as it says itself")
            return
        self._head = head
        if self.client.service.queue:
            self.wait()
        else:
            self.dispatch()

    def send_request(self, link: WorkerConnection) -> None:
        """Send what there is of the request over this connection."""
        self.link = link
        if self.client.blocked:
            link.transport.pause_reading()
        body = self._body
        if body is None:
            link.transport.write(self._head)
            self.expire_in(self.client.service.timeouts.response)
        else:
            link.transport.write(body.after(self._head))
            self.uploading()

    def uploading(self) -> None:
        """The worker takes bytes: read on, or wait for its answer."""
        body = self._body
        if body is not None:
            body.begin(monotonic())
        self._expect(body)
        if body is not None and self.link is not None and not self.link.blocked:
            # Also when all has come: it is by reading that we see a client leave.
            self.client.transport.resume_reading()

    def _expect(self, body: RequestBody | None) -> None:
        timeouts = self.client.service.timeouts
        if body is None or self._awaits_continue():
            self.expire_in(timeouts.response)
        else:
            self.expire_in(body.slack(monotonic(), timeouts.body, timeouts.response))

    def _awaits_continue(self) -> bool:
        """Is it the worker's turn to speak before the client sends its body?"""
        return self.prepared.expects and not self.received and not self._told

    def upload(self, data: bytes) -> bytes:
        """Take bytes of the request's body; return what lies behind its end."""
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
        return rest

    def _send(self, body: RequestBody, data: bytes) -> None:
        link = self.link
        if link is None:
            # Not connected yet: hold this one piece, and leave the rest in the kernel.
            body.hold(data)
            if not self.request_done:
                self.client.transport.pause_reading()
            return
        body.keep(data)
        if link.acked == UNIX_OPEN:
            link.acked = UNKNOWN
        link.transport.write(data)
        self._expect(body)

    def pause_upload(self) -> None:
        """The worker does not take what it is sent."""
        self.client.transport.pause_reading()

    # -- to the client

    def interim(self, response: Response) -> None:
        """Pass a 1xx on (HTTP/1.0 has none)."""
        if self.line.minor:
            self._told = True
            if self._body is not None:
                self._body.forget()
            self.relay(response.out + b"\r\n", 0)
            self.uploading()

    def response_head(self, response: Response, body: Body, *, complete: bool) -> bytes:
        """Note how the worker answered and return the head for the client."""
        client = self.client
        service = client.service
        member = self.member
        assert member is not None
        now = monotonic()
        self.responding = self._told = True
        self._head = b""
        if self._body is not None:
            self._body.forget()
        self.status = response.status
        self.first_byte_s = now - self.started
        service.counters.first_byte.observe(self.first_byte_s)
        if response.status >= 500:
            service.pool.failed(member, now)
        elif member.consecutive_failures:
            service.pool.succeeded(member)
        minor = self.line.minor
        # All of an answer before all of its request: the rest of that is not waited for.
        early = complete and not self.request_done
        self._keep = self._keep and not early and not service.stopping
        fields = b"\r\n"
        if body is not LENGTH:
            # Whatever told the worker's end: chunks tell ours, or for HTTP/1.0 its close.
            self._chunked_out = minor == 1
            self._keep = self._keep and minor == 1
            fields = b"Transfer-Encoding: chunked\r\n\r\n" if minor else fields
        if not self._keep:
            fields = b"Connection: close\r\n" + fields
        elif not minor:
            fields = b"Connection: keep-alive\r\n" + fields
        return response.out + fields

    def relay(self, data: bytes, body: int) -> None:
        """Write to the client; `body` of these bytes are body."""
        self.sent += body
        client = self.client
        client.service.counters.sent += len(data)
        client.transport.write(data)

    def begin_body(self, head: bytes) -> None:
        """Send the head; the body follows in pieces."""
        self.relay(head, 0)
        self.expire_in(self.client.service.timeouts.body)

    def body(self, piece: bytes) -> None:
        """Pass a piece of the response's body on."""
        size = len(piece)
        if self._chunked_out:
            piece = b"%x\r\n%b\r\n" % (size, piece)
        self.relay(piece, size)
        self.expire_in(self.client.service.timeouts.body)

    def finish(self, trailers: bytes) -> None:
        """The response is complete."""
        if self._chunked_out:
            self.relay(b"0\r\n" + trailers + b"\r\n", 0)
        self._close(OK, keep=self._keep and self.request_done)

    def upgraded(self, link: WorkerConnection, response: Response, rest: bytes) -> None:
        """The worker speaks another protocol: from here on bytes are just bytes."""
        offers = self.prepared.framing.upgrade
        if not (self.request_done and upgrade.was_offered(response, offers)):
            self.useless(errors.BAD_RESPONSE, "101 to something that nobody asked for")
        elif link.transport.is_closing():
            # Heard out after its end: nobody would tell the duplex, which would stay for ever.
            self.useless(errors.WORKER_RESET, "101 and no more")
        else:
            self.status = 101
            self.first_byte_s = monotonic() - self.started
            self.relay(upgrade.head(response) + rest, len(rest))
            upgrade.join(self.client, link, self)

    def duplex_closed(self, half: ClientHalf) -> None:
        """The upgraded connection is closed."""
        client = self.client
        service = client.service
        service.fd_budget.upstreams -= 1
        self.received += half.received
        self.sent += half.sent
        if half.outcome != OK:
            service.counters.errors[half.outcome] += 1
        self.count(monotonic() - self.started, half.outcome)
        self.release_member()
        service.clients.discard(client)
        service.client_closed(client.counts_for)

    # -- how it ends

    @property
    def is_repeatable(self) -> bool:
        """Has the client seen nothing, and is all that was sent still here?"""
        return not self._told and (self._body is None or self._body.is_replayable)

    def expired(self, now: float) -> None:
        """Something took too long: find out what, and end it."""
        service = self.client.service
        total = service.timeouts.total
        if total and now >= self.started + total:
            self.fail(errors.TOTAL_TIMEOUT, "")
        elif self in service.queue:
            self.refuse(self.last_fault())
        elif self.link is None:
            self.stop_trying()
            self.connect_failed("", errors.CONNECT_TIMEOUT)
        elif self.client.blocked:
            self.fail(errors.SEND_TIMEOUT, "")
        elif not (self.request_done or self.link.blocked or self._awaits_continue()):
            self.fail(errors.BODY_TIMEOUT, "")
        elif self.responding:
            # A stream may be quiet for reasons of its own: no mark against the worker.
            self.fail(errors.RESPONSE_TIMEOUT, "between two pieces")
        else:
            self.useless(errors.RESPONSE_TIMEOUT, "")

    def client_gone(self) -> None:
        """The client has left: so does the exchange with the worker."""
        self.stop_trying()
        self.client.service.counters.errors[errors.CLIENT_GONE.kind] += 1
        self._keep = False
        self.drop_link()
        self._close(errors.CLIENT_GONE.kind, keep=False)

    def fail(self, fault: Fault, reason: str) -> None:
        """Count a fault, say why, and end the exchange with it."""
        client = self.client
        client.service.error_log.fault(self.line, client.address, fault, reason, self.member)
        client.service.counters.errors[fault.kind] += 1
        self._end(fault)

    def refuse(self, fault: Fault) -> None:
        """There is nobody left to try. What a try ended with was counted with the try."""
        if self.retries:
            self._end(fault)
        else:
            self.fail(fault, "")

    def _end(self, fault: Fault) -> None:
        """Tell the client if it can be told, else cut it off."""
        client = self.client
        service = client.service
        if fault in errors.REJECTED:
            service.counters.rejected[fault.kind] += 1
        self.stop_trying()
        self.drop_link()
        if self.responding or not fault.status:
            self._close(fault.kind, keep=False, cut=True)
            return
        self.status = fault.status
        keep = self._keep and self.request_done and not service.stopping
        self.sent = client.answer(fault, self.line, keep=keep)
        self._close(fault.kind, keep=keep)

    def _close(self, ended: str, *, keep: bool, cut: bool = False) -> None:
        """Count it, log it, give the connections back. The only way out."""
        client = self.client
        service = client.service
        link, self.link = self.link, None
        total_s = monotonic() - self.started
        self.count(total_s, ended)
        self.release_member()
        if link is not None:
            link.receiver = None
            if link.keep_s and self.request_done and not link.blocked:
                service.connections.keep(link, self.started + total_s)
            else:
                # Not `close`: a worker that has answered may leave the request unread for ever.
                link.transport.abort()
        client.exchange_over(keep=keep, cut=cut)

    def count(self, total_s: float, ended: str) -> None:
        """Count and log the exchange: once, when it has ended after `total_s` seconds."""
        client, line, member = self.client, self.line, self.member
        service = client.service
        counters, log = service.counters, service.error_log
        slot = PROXY_SLOT if member is None else member.slot
        counters.requests[_LABELS.get(line.method, OTHER), self.status, slot] += 1
        counters.total.observe(total_s)
        if log.access_log is not None:
            log.access_log.add(
                (
                    monotonic() + log.wall, client.address, line.method, line.target,
                    "HTTP/1.1" if line.minor else "HTTP/1.0", self.status, self.sent,
                    self.received, log.worker_name(member), self.connect_s, self.first_byte_s,
                    total_s, self.retries, self.request_id.decode("latin-1"), ended,
                    self.prepared.out, client.tls,
                )
            )  # fmt: skip
