"""A connection from a client: where requests are read.

Owns: one client's connection, which bytes on it are a head, a body or the next request,
and how it ends. Must not know: workers (`exchange`), how a request is forwarded.

Requests on one connection are answered in their order, one at a time: what a client sends
ahead waits here up to the size of a head, and then in the kernel. A connection that we end
while its client is still sending is shut down for writing first and read until the client
has had its time to see the answer; a plain close would make the kernel reset it, and the
answer with it.
"""

import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Final

from penstock_proxy.errors import (
    BAD_REQUEST,
    HEAD_TIMEOUT,
    HEAD_TOO_LARGE,
    TARGET_TOO_LONG,
    Fault,
    RejectedError,
    status_line,
)
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.downstream import Downstream
from penstock_proxy.http.exchange import Exchange
from penstock_proxy.http1 import parser
from penstock_proxy.http1.parser import RequestLine
from penstock_proxy.http1.request import PreparedRequest
from penstock_proxy.net.timer_wheel import NEVER
from penstock_proxy.net.transport import Transport
from penstock_worker.net.trusted_proxies import peer_address

_LINGER_S: Final = 2.0
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: close resets."""
_HEAD: Final = RequestLine(b"HEAD", b"", 1, 0)
"""As much of a request that was refused as its answer depends on."""
_STOPPING_S: Final = 1.0
"""A client that has not sent a byte when we stop gets this long to begin."""


class ClientConnection(Downstream):
    """One client."""

    __slots__ = (
        "_beginning",
        "_closing",
        "_heading",
        "_left",
        "_peer",
        "_skipped",
        "_trusted",
        "exchange",
        "from_here",
    )

    def __init__(
        self,
        service: HttpContext,
        peer: Any,
        proxy_header: bytes = b"",
        *,
        believed: bool = True,
        fields: bytes = b"",
        port: int = 0,
        tls: str = "",
    ) -> None:
        """`proxy_header`: what each connection to a worker begins with. `believed`: the client may
        be one of those whose word is taken. `fields` are lines for the worker that this
        connection has and others have not. `port`: what it connected to, if not to us.
        `tls`: what the access log says of it."""
        self.proxy_header = proxy_header
        self.tls = tls
        self.service = service
        self.address = self._peer = peer_address(peer)
        forwarding = service.rewriter
        trusted = self._trusted = believed and forwarding.trusts(self.address)
        self.from_here = forwarding.of_connection(self.address, port, fields, trusted=trusted)
        self.buffer = b""
        self.exchange: Exchange | None = None
        self.blocked = False
        self.deadline = NEVER
        self.bucket = NEVER
        self._heading = True
        """A head is awaited since a moment that its deadline runs from."""
        self._left = service.config.limits.requests or -1
        """Requests that it may still send; below zero: as many as it likes."""
        self._skipped = 0
        """Bytes of empty lines before its requests."""
        self._beginning = False
        self._closing = False

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        service = self.service
        seconds = _STOPPING_S if service.stopping else service.timeouts.head
        service.timers.arm_in(self, seconds)

    def data_received(self, data: bytes) -> None:
        self.service.counters.received += len(data)
        exchange = self.exchange
        if exchange is None or exchange.request_done:
            if self._closing:
                return
            self.buffer = self.buffer + data if self.buffer else data
            if exchange is None and not self.blocked:
                self._next()
            elif len(self.buffer) >= self.service.config.limits.head:
                # It asks ahead, or for more while it does not read its answers.
                self.transport.pause_reading()
        else:
            rest = exchange.upload(data)
            if rest:
                self.buffer = rest

    def _next(self) -> None:
        """Begin what the buffer holds. A loop: answers of our own come back into it."""
        if self._beginning:
            return
        self._beginning = True
        while self.buffer and self.exchange is None and not (self._closing or self.blocked):
            if not self._begin():
                break
        self._beginning = False

    def _begin(self) -> bool:
        data = self.buffer
        service = self.service
        limit = service.config.limits.head
        end = data.find(b"\r\n\r\n", 0, limit) + 4
        if end <= 4:
            return self._incomplete(data, limit, blank=end == 4)
        head = data if end == len(data) else data[:end]
        try:
            line = parser.parse_request_line(head)
            if end > service.config.limits.target:
                self._check_target(line)
            prepared = service.rewriter.request(line, head[line.end :], trusted=self._trusted)
        except RejectedError as rejected:
            if data.startswith(b"\r\n"):  # looked for here, where it costs nobody else
                return self._incomplete(data, limit, blank=True)
            self._refuse(rejected.fault, rejected.reason)
            return False
        self.buffer = data[end:]
        self._heading = False
        self._left -= 1
        if self._trusted or not self._left:
            prepared = self._regarded(prepared)
        request_id = prepared.request_id or service.error_log.next_request_id()
        exchange = self.exchange = Exchange(self, line, prepared, request_id)
        if line.minor and line.target.startswith(b"/"):
            start = head[: line.end]
        else:
            start = b"%b %b HTTP/1.1\r\n" % (line.method, parser.worker_target(line))
        # `join` takes half the time of `%`.
        exchange.start(b"".join((start, prepared.out, self.from_here, request_id, b"\r\n\r\n")))
        if self.buffer and self.exchange is exchange and not exchange.request_done:
            rest, self.buffer = self.buffer, b""
            self.buffer = exchange.upload(rest)
        return True

    def _regarded(self, prepared: PreparedRequest) -> PreparedRequest:
        """A request that is not only what it says: a proxy's, or the last one."""
        if self._trusted:
            self.address = prepared.client or self._peer
        if not self._left:
            # As if it had asked for it: the answer says so, and no other request is read.
            return prepared._replace(close=True, keep_alive=False)
        return prepared

    def _incomplete(self, data: bytes, limit: int, *, blank: bool) -> bool:
        """There is no whole head yet: go on, wait, or refuse what can never be one."""
        if blank or data.startswith(b"\r\n"):
            # RFC 9112 §2.2: an empty line before a request line is skipped.
            self.buffer = parser.skip_empty_lines(data)
            self._skipped += len(data) - len(self.buffer)
            if self._skipped > limit:
                self._refuse(BAD_REQUEST, "nothing but empty lines")
            return True
        target = self.service.config.limits.target
        if len(data) > target and parser.is_target_beyond(data, target):
            self._refuse(TARGET_TOO_LONG, f"target beyond {target} bytes")
        elif len(data) >= limit:
            self._refuse(HEAD_TOO_LARGE, f"head beyond {limit} bytes")
        elif parser.looks_wrong(data):
            self._refuse(BAD_REQUEST, "not HTTP")
        elif not self._heading:
            self._heading = True
            self.service.timers.arm_in(self, self.service.timeouts.head)
        return False

    def _check_target(self, line: RequestLine) -> None:
        limit = self.service.config.limits.target
        if len(line.target) > limit:
            raise RejectedError(TARGET_TOO_LONG, f"target beyond {limit} bytes")

    def _refuse(self, fault: Fault, reason: str) -> None:
        """Answer what never became an exchange, and end the connection."""
        self.service.error_log.refused(self.address, fault, reason, self.tls)
        line = _HEAD if self.buffer.startswith(b"HEAD ") else None
        self.buffer = b""
        self.answer(fault, line, keep=False)
        self._end(gently=True)

    def answer(self, fault: Fault, line: RequestLine | None, *, keep: bool) -> int:
        """Send an answer of our own, one line of text. Returns the bytes of its body."""
        body = b"" if line and line.method == b"HEAD" else f"{fault.text}\n".encode()
        head = (
            f"{status_line(fault)}"
            f"Content-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(fault.text) + 1}\r\n"
        )
        if fault.status == 503:
            head += f"Retry-After: {self.service.retry_after(fault)}\r\n"
        if not keep:
            head += "Connection: close\r\n"
        elif line and not line.minor:
            head += "Connection: keep-alive\r\n"
        data = head.encode() + b"\r\n" + body
        self.service.counters.sent += len(data)
        self.transport.write(data)
        return len(body)

    def exchange_over(self, *, keep: bool, cut: bool) -> None:
        """The exchange has ended: on to the next, or to the end of the connection."""
        exchange, self.exchange = self.exchange, None
        if not keep or self.service.stopping:
            assert exchange is not None
            if cut:
                self._cut(visibly=exchange.line.minor == 1)
            else:
                self._end(gently=not exchange.request_done or bool(self.buffer))
            return
        self.service.timers.arm_in(self, self.service.timeouts.keepalive)
        self.transport.resume_reading()
        if self.buffer:
            self._next()

    def _end(self, *, gently: bool) -> None:
        """Close when all is written; `gently`: the client may still be sending."""
        self._closing = True
        self.buffer = b""
        if gently and not self.transport.is_closing():
            self.transport.write_eof()
            self.transport.resume_reading()
            self._close_by(_LINGER_S)
        else:
            self.transport.close()
            self._close_by(self.service.timeouts.body)

    def _cut(self, *, visibly: bool) -> None:
        """End in the middle of an answer. HTTP/1.0 sees it only if the connection is reset."""
        if not visibly and (sock := self.transport.borrow()) is not None:
            sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
            self.transport.abort()
        self.transport.break_off()
        self._closing = True
        self._close_by(self.service.timeouts.body)

    def _close_by(self, seconds: float) -> None:
        self.service.timers.arm_in(self, seconds)

    @property
    def counts_for(self) -> str:
        """The address that this connection counts for; empty: for none."""
        return "" if self._trusted else self.address

    @property
    def idle_since(self) -> float:
        """Since when nothing is asked or answered here; NEVER while something is."""
        if self.exchange is not None or self._closing or self.buffer or self.blocked:
            return NEVER
        timeouts = self.service.timeouts
        return self.deadline - (timeouts.head if self._heading else timeouts.keepalive)

    def end_idle(self) -> None:
        """It is in the way of somebody who has something to ask."""
        self._end(gently=False)

    def stop(self) -> None:
        """No new requests, please: end an idle connection, let others finish."""
        if self.exchange is not None or self._closing:
            return
        if not self._heading:
            self._end(gently=False)
        else:
            self._close_by(_STOPPING_S)

    def expired(self, now: float) -> None:
        if self._closing:
            self.transport.abort()
        elif self.exchange is not None:
            was_blocked = self.blocked
            self.exchange.expired(now)
            if was_blocked:
                # It has had its time to take what it was sent; another would be as long.
                self._give_up()
        elif self._heading and self.buffer and not self.service.stopping:
            self._refuse(HEAD_TIMEOUT, "")
        else:
            self._end(gently=False)

    def _give_up(self) -> None:
        if self._closing:
            self.transport.abort()

    def pause_writing(self) -> None:
        self.blocked = True
        if self.exchange is not None and self.exchange.link is not None:
            self.exchange.link.transport.pause_reading()

    def resume_writing(self) -> None:
        self.blocked = False
        if self._closing:
            return
        if self.exchange is None:
            self.transport.resume_reading()
            self._next()
        elif self.exchange.link is not None:
            self.exchange.expire_in(self.service.timeouts.body)
            self.exchange.link.transport.resume_reading()

    def eof_received(self) -> bool:
        # A client that shuts down its side looks like one that left, until something is
        # written to it. Like nginx we take it at its word; but what is being closed by us
        # may finish.
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        if self.exchange is not None:
            self.exchange.client_gone()
        self.service.timers.disarm(self)
        self.service.clients.discard(self)
        self.service.client_closed(self.counts_for)
