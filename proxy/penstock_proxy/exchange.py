"""Delivery http: one request and its response.

Owns: an exchange from the moment its head is read until it is counted: which workers were tried,
what the client was told, how it ended. Must not know: how bytes are read from either side
(`client`, `upstream`), what allows another try (`retrying`).

It is made for each request and dies with it, so nothing of one can be left over in the next. It
costs no task and no timer; its deadline is its client's.

It may be tried again as long as the client has seen nothing and all that was sent is still here
to be sent again. So the beginning of a body is kept for a while, and one that is known to be
longer is sent on a new connection, which cannot have ended unnoticed.
"""

from time import monotonic
from typing import TYPE_CHECKING, Final

from penstock_proxy import errors
from penstock_proxy.body import RequestBody
from penstock_proxy.errors import Fault, RejectedError
from penstock_proxy.forwarding import Prepared, Response
from penstock_proxy.http1 import RequestLine
from penstock_proxy.kept import REPLAYED
from penstock_proxy.metrics import FRONT_SLOT, METHODS, OTHER
from penstock_proxy.pump import OK
from penstock_proxy.receipts import ONE_WRITE, UNKNOWN, acknowledged
from penstock_proxy.retrying import IDEMPOTENT, Loss
from penstock_proxy.tries import Tries
from penstock_proxy.upstream import LENGTH, Body, WorkerConnection

if TYPE_CHECKING:
    from penstock_proxy.client import ClientConnection
    from penstock_proxy.dial import Dialing
    from penstock_proxy.pool import Member

_LABELS: Final = {method.encode(): method for method in METHODS}
_PIECES: Final = 64
"""Of a body that are kept until its worker answers: small ones cost more than they hold."""


class Exchange:
    """One request and its response."""

    # Defaults of the class, not slots: most of an exchange never changes from them, and
    # setting two dozen attributes would be a tenth of what the whole of it costs.
    connect_s: float | None = None
    first_byte_s: float | None = None
    member: "Member | None" = None
    link: WorkerConnection | None = None
    dialing: "Dialing | None" = None
    """The way to a new connection, as long as it does not stand."""
    status = 0
    sent = 0
    """Bytes of the response's body."""
    received = 0
    """Bytes of the request's body."""
    retries = 0
    _body: RequestBody | None = None
    _chunked_out = False
    _streamed = False
    """Bytes of the body are gone that cannot be sent again."""
    responding = False
    _told = False
    """The client has seen something of an answer, be it a 1xx."""
    tries: Tries | None = None
    """Since the first one has failed."""

    def __init__(
        self, client: "ClientConnection", line: RequestLine, prepared: Prepared, request_id: bytes
    ) -> None:
        self.client = client
        self.line = line
        self.prepared = prepared
        self.request_id = request_id
        self.started = monotonic()
        self._outgoing: list[bytes] = []
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
        self._outgoing.append(head)
        if self.client.service.waiting:
            self._wait()
        else:
            self.dispatch()

    def dispatch(self) -> None:
        """Choose a worker and send it what there is; wait if there is none."""
        client, tries = self.client, self.tries
        service = client.service
        member = service.pool.pick(client.address, () if tries is None else tries.tried)
        if member is None:
            self._wait()
            return
        self.member = member
        member.active += 1
        if self._body is None and tries is None and self.line.method in IDEMPOTENT:
            link = service.kept.take(member)
        else:
            fresh = tries is not None and tries.fresh
            link = None if fresh else service.kept.take_for(member, self, monotonic())
        if link is not None:
            link.begin(self)
            self._send_all(link)
            return
        self.expire_in(service.timeouts.connect)
        service.dial(member, self)

    def connected(self, link: WorkerConnection) -> None:
        """A new connection to the worker stands."""
        self.connect_s = monotonic() - self.started
        self.client.service.counters.connect.observe(self.connect_s)
        if self.line.method not in IDEMPOTENT:
            link.acked = acknowledged(link.transport)
        self._send_all(link)

    def _send_all(self, link: WorkerConnection) -> None:
        self.link = link
        if self.client.blocked:
            link.transport.pause_reading()
        out = self._outgoing
        link.transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self._body is None:
            self.expire_in(self.client.service.timeouts.response)
        else:
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
        assert self._body is not None
        try:
            out, rest = self._body.take(data)
        except RejectedError as rejected:
            self.fail(rejected.fault, rejected.reason)
            return b""
        self.received = self._body.received
        self.request_done = self._body.done
        if out:
            self._send(out)
        return rest

    def _send(self, data: bytes) -> None:
        link = self.link
        if link is None:
            # Not connected yet: hold this one piece, and leave the rest in the kernel.
            self._outgoing.append(data)
            if not self.request_done:
                self.client.transport.pause_reading()
            return
        if not self._streamed:
            self._outgoing.append(data)
            if self._told or self.received > REPLAYED or len(self._outgoing) > _PIECES:
                self._streamed = True
                self._outgoing.clear()
        if link.acked == ONE_WRITE:
            link.acked = UNKNOWN
        link.transport.write(data)
        self._expect(self._body)

    # -- to the client

    def interim(self, response: Response) -> None:
        """Pass a 1xx on (HTTP/1.0 has none)."""
        if self.line.minor:
            self._told = True
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
        self._outgoing.clear()
        self.status = response.status
        self.first_byte_s = now - self.started
        service.counters.first_byte.observe(self.first_byte_s)
        if response.status >= 500:
            service.pool.failed(member, now)
        elif member.failures:
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

    # -- how it ends

    def connect_failed(self, reason: str, fault: Fault = errors.CONNECT_FAILED) -> None:
        """There is no connection to the worker."""
        self.tries = self.tries or Tries(self)
        self.tries.unsent(fault, reason)

    def lost(self, link: WorkerConnection, fault: Fault, loss: Loss) -> None:
        """The worker's connection ended too early."""
        self.link = None
        self.tries = self.tries or Tries(self)
        self.tries.lost(link, fault, loss)

    def useless(self, fault: Fault, reason: str) -> None:
        """The worker's answer cannot be passed on, or does not come."""
        self.tries = self.tries or Tries(self)
        self.tries.useless(fault, reason)

    def _last_fault(self) -> Fault:
        fault = errors.NO_WORKER if self.tries is None else self.tries.last_fault
        return self.client.service.nobody() if fault is errors.NO_WORKER else fault

    @property
    def is_idempotent(self) -> bool:
        return self.line.method in IDEMPOTENT

    @property
    def is_repeatable(self) -> bool:
        """Has the client seen nothing, and is all that was sent still here?"""
        return not (self._told or self._streamed)

    def _wait(self) -> None:
        if self.tries is not None and not self.tries.another_round():
            self.refuse(self._last_fault())
            return
        patience = self.client.service.enqueue(self, self.dispatch, self.started)
        if isinstance(patience, float):
            self.expire_in(patience)
        elif patience is errors.QUEUE_FULL:
            self.fail(patience, "")
        else:
            self.refuse(self._last_fault())

    def expire_in(self, seconds: float) -> None:
        """Set the deadline of what is waited for now."""
        client = self.client
        total = client.service.timeouts.total
        deadline = monotonic() + seconds
        if total and deadline > self.started + total:
            deadline = self.started + total
        client.deadline = deadline
        if deadline < client.bucket:
            client.service.deadlines.arm(client, deadline)

    def expired(self, now: float) -> None:
        """Something took too long: find out what, and end it."""
        service = self.client.service
        total = service.timeouts.total
        if total and now >= self.started + total:
            self.fail(errors.TOTAL_TIMEOUT, "")
        elif self in service.waiting:
            self.refuse(self._last_fault())
        elif self.link is None:
            self._end_dialing()
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
        self._end_dialing()
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
        if fault in errors.TURNED_AWAY:
            service.counters.rejected[fault.kind] += 1
        self._end_dialing()
        self.drop_link()
        if self.responding or not fault.status:
            self._close(fault.kind, keep=False, cut=True)
            return
        self.status = fault.status
        keep = self._keep and self.request_done and not service.stopping
        self.sent = client.answer(fault, self.line, keep=keep)
        self._close(fault.kind, keep=keep)

    def _end_dialing(self) -> None:
        if self.dialing is not None:
            self.client.service.stop_dialing(self.dialing)
            self.dialing = None
        self.client.service.waiting.leave(self)

    def drop_link(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.exchange = None
            link.transport.abort()

    def leave_member(self) -> "Member | None":
        """It has one exchange less."""
        member, self.member = self.member, None
        if member is not None:
            member.active -= 1
            if member.full:
                self.client.service.freed(member)
        return member

    def _close(self, ended: str, *, keep: bool, cut: bool = False) -> None:
        """Count it, log it, give the connections back. The only way out."""
        client = self.client
        service = client.service
        link, self.link = self.link, None
        total_s = monotonic() - self.started
        self.count(total_s, ended)
        self.leave_member()
        if link is not None:
            link.exchange = None
            if link.keep_s and self.request_done and not link.blocked:
                service.kept.keep(link, self.started + total_s)
            else:
                # Not `close`: a worker that has answered may leave the request unread for ever.
                link.transport.abort()
        client.exchange_over(keep=keep, cut=cut)

    def count(self, total_s: float, ended: str) -> None:
        """Count and log the exchange: once, when it has ended after `total_s` seconds."""
        client, line, member = self.client, self.line, self.member
        service = client.service
        counters, log = service.counters, service.error_log
        slot = FRONT_SLOT if member is None else member.slot
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
