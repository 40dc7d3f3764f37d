"""A connection from a client: where requests are read.

Owns: one client's connection, which bytes on it are a head, a body or the next request,
and how it is closed. Must not know: workers (`exchange`), how a request is forwarded.

The requests of one connection are answered in order, one at a time. Pipelined requests wait
in a buffer up to the size of a head, and beyond that in the kernel.

A connection that is closed while its client still sends gets a lingering close: it is shut
down for writing first, and read until the client has had time to see the response. A plain
close would make the kernel reset the connection, and the client would lose the response.
"""

import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Final

from penstock_proxy.config import Timeouts
from penstock_proxy.errors import (
    BAD_REQUEST,
    HEAD_TIMEOUT,
    HEAD_TOO_LARGE,
    STOP_TIMEOUT,
    TARGET_TOO_LONG,
    Fault,
    RejectedError,
    status_line,
)
from penstock_proxy.http.client_identity import ClientIdentity
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.exchange import Exchange
from penstock_proxy.http1 import parser, target_forms
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.http1.request import MAX_CACHED_HEAD, PreparedRequest, RepeatedHead
from penstock_proxy.net.half_closed import has_left
from penstock_proxy.net.timer_wheel import NEVER
from penstock_proxy.net.transport import Transport
from penstock_proxy.net.unread_input import has_unread

_LINGER_S: Final = 2.0
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing resets the connection."""
_HEAD_REQUEST: Final = RequestLine(b"HEAD", b"", 1, 0)
"""Stands for a refused HEAD request: its response has no body."""
_STOPPING_HEAD_S: Final = 1.0
"""When the process stops, a client that has sent nothing yet gets this long for its request."""


class ClientConnection(ClientIdentity):
    """The connection of one client."""

    __slots__ = (
        "_closing",
        "_empty_line_bytes",
        "_head_timer_runs",
        "_is_processing",
        "_line",
        "_prepared",
        "_repeated",
        "_requests_left",
        "exchange",
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
        self.exchange: Exchange | None = None
        self.blocked = self.at_eof = False
        self.deadline = NEVER
        self.bucket = NEVER
        self._head_timer_runs = True
        """The deadline is the time-out of a head. False: it is keep-alive's or the exchange's."""
        self._requests_left = service.config.limits.requests or -1
        """Requests that the client may still send; below zero: no limit."""
        self._line: RequestLine | None = None
        self._prepared: PreparedRequest | None = None
        """The latest request, and its line. With the same again, its head is remembered."""
        self._repeated: RepeatedHead | None = None
        self._empty_line_bytes = 0
        """Bytes of empty lines that were skipped before requests."""
        self._is_processing = False
        self._closing = False

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        service = self.service
        seconds = _STOPPING_HEAD_S if service.stopping else service.timeouts.head
        service.timers.arm_in(self, seconds)

    def data_received(self, data: bytes) -> None:
        self.service.counters.received += len(data)
        exchange = self.exchange
        if exchange is None or exchange.request_done:
            if self._closing:
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
            return prepared._replace(close=True, keep_alive=False)
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
        body = b"" if line and line.method == b"HEAD" else f"{fault.text}\n".encode()
        head = (
            f"{status_line(fault)}"
            f"Content-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(fault.text) + 1}\r\n"
        )
        if fault.status == 503:
            head += f"Retry-After: {self.service.retry_after(fault)}\r\n"
        if not keep_alive:
            head += "Connection: close\r\n"
        elif line and not line.minor:
            head += "Connection: keep-alive\r\n"
        data = head.encode() + b"\r\n" + body
        self.service.counters.sent += len(data)
        self.transport.write(data)
        return len(body)

    def exchange_over(self, *, keep_alive: bool, truncated: bool) -> None:
        """The exchange has ended: start the next request, or close the connection."""
        exchange, self.exchange = self.exchange, None
        if not keep_alive or self.service.stopping:
            assert exchange is not None
            if truncated:
                self._close_truncated(reset=not exchange.line.minor)
            else:
                self._end(linger=not exchange.request_done or bool(self.buffer))
            return
        timeouts = self.service.timeouts
        # Blocked: the client has not taken its answer yet, and has as long as for any other.
        self.service.timers.arm_in(self, timeouts.body if self.blocked else timeouts.keepalive)
        self.transport.resume_reading()
        if self.buffer:
            self._process_buffer()
        if self.at_eof:
            self._serve_the_last()

    def _end(self, *, linger: bool) -> None:
        """Close when all is written; `linger`: the client may still send."""
        self._closing = True
        self.buffer = b""
        if linger and not (self.at_eof or self.transport.is_closing()):
            self.transport.write_eof()
            self.transport.resume_reading()
            self.service.timers.arm_in(self, _LINGER_S)
        else:
            self.transport.close()
            self.service.timers.arm_in(self, self.service.timeouts.body)

    def _close_truncated(self, *, reset: bool) -> None:
        """Close in the middle of a response.

        `reset`: so that an HTTP/1.0 client does not take the end for the end of the body.
        """
        if reset:
            self._reset()
        self.transport.break_off()
        self._closing = True
        self.service.timers.arm_in(self, self.service.timeouts.body)

    def _reset(self) -> None:
        """Close now, and reset the connection. What is unsent is lost, and the client sees it."""
        if (sock := self.transport.borrow()) is not None:
            sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def retire(self) -> None:
        """What it was accepted with holds no more: close it when it is idle, and let it serve at
        most the request that it has, or the next one."""
        if self.exchange is not None:
            self.exchange.be_the_last()
        elif self.is_kept_alive and not (self._closing or has_unread(self.transport.borrow())):
            self._end(linger=False)
        if self._requests_left:
            self._requests_left = 1

    def timeouts_changed(self, before: Timeouts) -> None:
        """The service's time-outs were these: what the client waits for has the new ones."""
        if self.exchange is not None:
            self.exchange.timeouts_changed(before)
        elif not (self._closing or self.blocked):
            now = self.service.timeouts
            head_s, idle_s = now.head - before.head, now.keepalive - before.keepalive
            later_s = head_s if self._head_timer_runs else idle_s
            self.service.timers.arm(self, self.deadline + later_s)

    @property
    def idle_since(self) -> float:
        """Since when it has had no complete request; NEVER while it has one, or while the client
        still takes its answer."""
        if self.exchange is not None or self._closing or self.blocked:
            return NEVER
        timeouts = self.service.timeouts
        if self._head_timer_runs:
            return self.deadline - timeouts.head
        since = self.deadline - timeouts.keepalive
        # The end of its answer has `timeouts.body`, as everywhere.
        return since + timeouts.body if self.transport.get_write_buffer_size() else since

    @property
    def is_kept_alive(self) -> bool:
        """It is between two requests. False: its request has not come, or only in part."""
        return not self._head_timer_runs

    def end_idle(self, fault: Fault) -> bool:
        """Close it, because another client needs its place. False: its request has just come."""
        if has_unread(self.transport.borrow()):
            return False
        if self.buffer:
            self.send_error(fault, None, keep_alive=False)
        self._end(linger=False)
        return True

    def stop(self) -> None:
        """Serve no new requests: close an idle connection, let others finish."""
        if self.exchange is not None or self._closing:
            return
        if not self._head_timer_runs:
            self._end(linger=False)
        else:
            self.service.timers.arm_in(self, _STOPPING_HEAD_S)

    def cut(self) -> bool:
        """The time to finish is over: end what is open, and let the client see that it was cut."""
        exchange = self.exchange
        if exchange is not None:
            if exchange.status == 101:
                return False
            exchange.fail(STOP_TIMEOUT, "its time to finish was over")
        unsent = self.transport.get_write_buffer_size() > 0
        if unsent:
            # It does not read. A response that we have whole and it has not is cut as well.
            self._reset()
            if exchange is None:
                self.service.counters.errors[STOP_TIMEOUT.kind] += 1
                self.service.counters.broken_off += 1
        elif exchange is None:
            self.stop()
        return unsent or exchange is not None

    def expired(self, now: float) -> None:
        if self._closing:
            self.transport.abort()
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

    def _abort_if_closing(self) -> None:
        if self._closing:
            self.transport.abort()

    def pause_writing(self) -> None:
        self.blocked = True
        if self.exchange is not None and self.exchange.connection is not None:
            self.exchange.connection.transport.pause_reading()

    def resume_writing(self) -> None:
        self.blocked = False
        if self._closing:
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
        self.service.timers.disarm(self)
        self.service.clients.discard(self)
        self.service.client_closed(self.counted_address)
