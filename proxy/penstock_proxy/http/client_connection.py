"""A connection from a client: where requests are read.

Owns: one client's connection, which bytes on it are a head, a body or the next request, and when
it is closed. Must not know: workers (`exchange`), how a request is forwarded, how it is closed
(`client_closing`, a base), what the service wants of it (`client_control`, its base).

The requests of one connection are answered in order, one at a time. Pipelined requests wait
in a buffer up to the size of a head, and beyond that in the kernel.
"""

from dataclasses import replace
from typing import Any, Final

from penstock_proxy.errors import (
    BAD_REQUEST,
    HEAD_TIMEOUT,
    HEAD_TOO_LARGE,
    TARGET_TOO_LONG,
    Fault,
    RejectedError,
)
from penstock_proxy.http.client_control import STOPPING_HEAD_S, ControlledClient
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.exchange import Exchange
from penstock_proxy.http1 import parser, target_forms
from penstock_proxy.http1.error_response import error_response
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.http1.request import MAX_CACHED_HEAD, PreparedRequest, RepeatedHead
from penstock_proxy.net.half_closed import has_left
from penstock_proxy.net.timer_wheel import NEVER
from penstock_proxy.net.transport import FirstReceiver, Transport
from penstock_proxy.net.unread_input import has_unread

_HEAD_REQUEST: Final = RequestLine(b"HEAD", b"", 1, 0)
"""Stands for a refused HEAD request: its response has no body."""


class ClientConnection(ControlledClient, FirstReceiver):
    """The connection of one client."""

    __slots__ = (
        "_empty_line_bytes",
        "_is_processing",
        "_line",
        "_prepared",
        "_repeated",
    )

    def __init__(
        self,
        service: HttpContext,
        peer: Any,
        proxy_header: bytes = b"",
        *,
        may_be_trusted: bool = True,
        fields: bytes = b"",
        port: int = 0,
        tls: str = "",
    ) -> None:
        """`proxy_header`: sent first on each connection to a worker. `may_be_trusted`: the
        client is a trusted proxy if its address is in `trusted_proxies`. `fields`: header
        lines that each request of this connection gets on its way to the worker. `port`: the
        port that the client connected to, if a proxy has reported one. `tls`: the access
        log's field on TLS."""
        super().__init__(service, peer, fields, port, may_be_trusted=may_be_trusted)
        self.proxy_header = proxy_header
        self.tls = tls
        self.buffer = b""
        self.blocked = self.at_eof = False
        self.deadline = NEVER
        self.bucket = NEVER
        self._line: RequestLine | None = None
        self._prepared: PreparedRequest | None = None
        """The latest request, and its line. With the same again, its head is remembered."""
        self._repeated: RepeatedHead | None = None
        self._empty_line_bytes = 0
        """Bytes of empty lines that were skipped before requests."""
        self._is_processing = False

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        service = self.service
        seconds = STOPPING_HEAD_S if service.stopping else service.timeouts.head
        service.timers.arm_in(self, seconds)

    def data_received(self, data: bytes) -> None:
        self.service.counters.received += len(data)
        exchange = self.exchange
        if exchange is None or exchange.request_done:
            if self._discards:
                if self._discard(data):
                    self._await_request()
                return
            repeated = self._repeated
            if (
                exchange is None
                and repeated is not None
                and data == repeated.head
                and repeated.config is self.service.config
                and not (self.buffer or self.blocked)
                and self._requests_left != 1
            ):
                self._start_exchange(repeated.line, repeated.prepared, repeated.line_to_worker)
                return
            self.buffer = self.buffer + data if self.buffer else data
            if exchange is None and not self.blocked:
                self._process_buffer()
            elif len(self.buffer) >= self.service.config.limits.head:
                # It pipelines too much, or does not read its responses.
                self.transport.pause_reading()
        else:
            rest = exchange.receive_body(data)
            if rest:
                self.buffer = rest

    def _process_buffer(self) -> None:
        """Start the requests in the buffer.

        A loop and not a recursion: an error response ends its exchange at once, and
        `exchange_over` calls this again.
        """
        if self._is_processing:
            return
        self._is_processing = True
        while self.buffer and self.exchange is None and not (self._closing or self.blocked):
            if not self._begin_exchange():
                break
        self._is_processing = False

    def _begin_exchange(self) -> bool:
        data = self.buffer
        service = self.service
        limit = service.config.limits.head
        end = data.find(b"\r\n\r\n", 0, limit) + 4
        if end <= 4:
            return self._handle_incomplete_head(data, limit, blank=end == 4)
        head = data if end == len(data) else data[:end]
        try:
            line = parser.parse_request_line(head)
            if end > service.config.limits.target:
                self._check_target(line)
            prepared = self._rewriter.prepare(line, head[line.end :], trusted=self._trusted)
        except RejectedError as rejected:
            # Checked only here, so that other requests do not pay for it.
            if data.startswith(b"\r\n"):
                return self._handle_incomplete_head(data, limit, blank=True)
            self._refuse(rejected.fault, rejected.reason)
            return False
        self.buffer = data[end:]
        if line.is_plain:
            start = head[: line.end]
            if prepared is self._prepared and line == self._line:
                self._remember(head, line, prepared, start)
            self._line, self._prepared = line, prepared
        else:
            target = target_forms.for_worker(line.method, line.target)
            start = b"%b %b HTTP/1.1\r\n" % (line.method, target)
        exchange = self._start_exchange(line, prepared, start)
        if self.buffer and self.exchange is exchange and not exchange.request_done:
            rest, self.buffer = self.buffer, b""
            self.buffer = exchange.receive_body(rest)
        return True

    def _start_exchange(
        self, line: RequestLine, prepared: PreparedRequest, line_to_worker: bytes
    ) -> Exchange:
        self._head_timer_runs = False
        self._requests_left -= 1
        if self._trusted or not self._requests_left:
            prepared = self._apply_trust_and_limit(prepared)
        request_id = prepared.request_id or self.service.error_log.next_request_id()
        exchange = self.exchange = Exchange(self, line, prepared, request_id)
        # `join` takes half the time of `%`.
        exchange.start(
            b"".join((line_to_worker, prepared.fields, self._fields, request_id, b"\r\n\r\n"))
        )
        return exchange

    def _remember(
        self, head: bytes, line: RequestLine, prepared: PreparedRequest, line_to_worker: bytes
    ) -> None:
        """This head has come twice: the same bytes again need not be read again.

        Not one with a body, whose bytes may follow it, and not what a trusted proxy reports.
        """
        framing = prepared.framing
        has_body = framing.length > 0 or framing.chunked
        if not (self._trusted or has_body) and len(head) <= MAX_CACHED_HEAD:
            config = self.service.config
            self._repeated = RepeatedHead(head, config, line, prepared, line_to_worker)

    def _apply_trust_and_limit(self, prepared: PreparedRequest) -> PreparedRequest:
        """Handle a request that comes from a trusted proxy, or is the connection's last one."""
        if self._trusted:
            self.address = prepared.client or self._peer_address
        if not self._requests_left:
            # As if the client had sent `Connection: close`: the response says so, too, and no
            # other request is read.
            return replace(prepared, close=True, keep_alive=False)
        return prepared

    def _handle_incomplete_head(self, data: bytes, limit: int, *, blank: bool) -> bool:
        """Handle data without a whole head: skip empty lines, wait for more, or refuse it.

        Returns True if the buffer may hold a request now.
        """
        if blank or data.startswith(b"\r\n"):
            # RFC 9112 §2.2: an empty line before a request line is skipped.
            self.buffer = parser.skip_empty_lines(data)
            self._empty_line_bytes += len(data) - len(self.buffer)
            if self._empty_line_bytes > limit:
                self._refuse(BAD_REQUEST, "nothing but empty lines")
            return True
        target = self.service.config.limits.target
        if len(data) > target and parser.is_target_longer(data, target):
            self._refuse(TARGET_TOO_LONG, f"target beyond {target} bytes")
        elif len(data) >= limit:
            self._refuse(HEAD_TOO_LARGE, f"head beyond {limit} bytes")
        elif parser.cannot_be_request(data):
            self._refuse(BAD_REQUEST, "not HTTP")
        elif not self._head_timer_runs:
            self._head_timer_runs = True
            self.service.timers.arm_in(self, self.service.timeouts.head)
        return False

    def _check_target(self, line: RequestLine) -> None:
        limit = self.service.config.limits.target
        if len(line.target) > limit:
            raise RejectedError(TARGET_TOO_LONG, f"target beyond {limit} bytes")

    def _refuse(self, fault: Fault, reason: str) -> None:
        """Respond to what never became an exchange, and close the connection."""
        line = _HEAD_REQUEST if self.buffer.startswith(b"HEAD ") else None
        self.buffer = b""
        sent = self.send_error(fault, line, keep_alive=False)
        self.service.error_log.request_refused(self.address, fault, reason, self.tls, sent=sent)
        self._end(linger=True)

    def send_error(self, fault: Fault, line: RequestLine | None, *, keep_alive: bool) -> int:
        """Send an error response, with one line of text. Returns the size of its body."""
        option = "close"
        if keep_alive:
            option = "" if line is None or line.minor else "keep-alive"
        has_body = line is None or line.method != b"HEAD"
        data, size = error_response(
            fault, self.service.retry_after(fault), option, has_body=has_body
        )
        self.service.counters.sent += len(data)
        self.transport.write(data)
        return size

    def exchange_over(self, *, keep_alive: bool, truncated: bool) -> None:
        """The exchange has ended: start the next request, or close the connection."""
        exchange, self.exchange = self.exchange, None
        if not keep_alive or self.service.stopping:
            assert exchange is not None
            if truncated:
                self._close_truncated(reset=not exchange.line.minor)
            else:
                self._end(linger=self._may_send(exchange))
            return
        self._await_request()

    def _may_send(self, exchange: Exchange) -> bool:
        """Does its client still send? One that has not asked for the close may have begun."""
        if not exchange.request_done or self.buffer:
            return True
        asked_for_close = exchange.prepared.close or not exchange.line.minor
        return not asked_for_close and has_unread(self.transport.borrow())

    def _await_request(self) -> None:
        """Read the next request."""
        timeouts = self.service.timeouts
        # Blocked: the client has not taken its answer yet, and has as long as for any other.
        self.service.timers.arm_in(self, timeouts.body if self.blocked else timeouts.keepalive)
        self.transport.resume_reading()
        if self.buffer:
            self._process_buffer()
        if self.at_eof:
            self._serve_the_last()

    def expired(self, now: float) -> None:
        if self._discards:
            self._discarding_expired(now)
        elif self.exchange is not None:
            was_blocked = self.blocked
            self.exchange.expired(now)
            if was_blocked:
                # The client has had its time to read. A graceful close would take as long again.
                self._abort_if_closing()
        elif self.blocked:
            self.transport.abort()
        elif self._head_timer_runs and self.buffer and not self.service.stopping:
            self._refuse(HEAD_TIMEOUT, "")
        else:
            self._end(linger=False)

    def pause_writing(self) -> None:
        self.blocked = True
        if self.exchange is not None and self.exchange.connection is not None:
            self.exchange.connection.transport.pause_reading()

    def resume_writing(self) -> None:
        self.blocked = False
        if self._discards:
            return
        if self.exchange is None:
            self.service.timers.arm_in(self, self.service.timeouts.keepalive)
            self.transport.resume_reading()
            self._process_buffer()
            if self.at_eof:
                self._serve_the_last()
        elif self.exchange.connection is not None:
            self.exchange.expire_in(self.service.timeouts.body)
            self.exchange.connection.transport.resume_reading()

    def eof_received(self) -> bool:
        """The client sends no more. What it has sent as a whole is answered; see decision 0021."""
        exchange, transport = self.exchange, self.transport
        if self._closing or self.service.config.abort_on_close:
            return False
        if exchange is None:
            if not (self.blocked and self.buffer):
                return False
        elif not exchange.request_done or has_left(transport.borrow()):
            return False
        elif not self.buffer:
            exchange.be_the_last()
        self.at_eof = True
        return True

    def _serve_the_last(self) -> None:
        """The client has ended its side, and the next of its requests was looked for: close after
        the last one, or at once if none of what is left is whole."""
        exchange = self.exchange
        if self._is_processing or self._closing:
            return
        if exchange is None:
            if not self.blocked:
                self._end(linger=False)
        elif not exchange.request_done:
            self.transport.close()
        elif not self.buffer:
            exchange.be_the_last()

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        if self.exchange is not None:
            self.exchange.client_disconnected()
        self._stop_serving()
        self.service.timers.disarm(self)
        self.service.clients.discard(self)
        self.service.client_closed(self.counted_address)
