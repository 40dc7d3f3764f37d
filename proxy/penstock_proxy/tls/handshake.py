"""TLS handshakes of one service: clients that have connected and are not served yet.

Owns: the current contexts, how many handshakes may be in progress, each handshake from its first
byte until it succeeds or fails, and how a client is told of a failure. Must not know: what
happens after a handshake. A `TlsConnection` then becomes the receiver of the socket transport, and
the handshake is dropped.

OpenSSL gets nothing before the ClientHello is complete. So a client that connects and sends
nothing costs no buffers, and the handshake begins with the certificate that the client asks for.

The number of handshakes is bounded, but the port stays open to everybody: beyond
`limits.handshakes` the oldest handshake in progress is evicted. A client that wants to be served
needs a few round trips; the oldest handshake is the least likely to finish.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from penstock_proxy.errors import Fault
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.net.timer_wheel import NEVER, HasDeadline, TimerWheel
from penstock_proxy.net.transport import FirstReceiver, Transport
from penstock_proxy.service.context import ServiceContext
from penstock_proxy.tls import client_hello
from penstock_proxy.tls.client_hello import HelloError
from penstock_proxy.tls.contexts import Contexts, ContextsBuilder
from penstock_proxy.tls.transport import TlsConnection
from penstock_worker.net.stream import Stream

_LINGER_S: Final = 1.0
"""Time for the client to read the alert."""

_WAITING_FOR_HELLO: Final = 0
_HANDSHAKING: Final = 1
_CLOSING: Final = 2
"""Refused: the alert or answer is sent, and the connection is about to be closed."""


_PLAIN_HTTP_TEXT: Final = b"this port speaks TLS: ask for https://\n"
_PLAIN_HTTP_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_PLAIN_HTTP_TEXT), _PLAIN_HTTP_TEXT)
)


class Handshake(HasDeadline, FirstReceiver):
    """One handshake in progress."""

    __slots__ = (
        "_acceptor",
        "_hello",
        "_incoming",
        "_outgoing",
        "_result",
        "_state",
        "_tls",
        "_transport",
        "_write_paused",
        "counted_address",
        "may_be_trusted",
        "peer",
        "port",
        "proxy_header",
    )

    _transport: Transport
    _tls: ssl.SSLObject
    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO

    def __init__(
        self,
        acceptor: "TlsAcceptor",
        peer: Any,
        proxy_header: bytes,
        port: int,
        counted_address: str,
        *,
        may_be_trusted: bool,
    ) -> None:
        """`peer`, `proxy_header`, `port` and `may_be_trusted` are kept for the connection, which
        uses them as without TLS. `counted_address`: the address that it counts for."""
        self.peer = peer
        self.proxy_header = proxy_header
        self.counted_address = counted_address
        self.port = port
        self.may_be_trusted = may_be_trusted
        self.deadline = NEVER
        self.bucket = NEVER
        self._acceptor = acceptor
        self._state = _WAITING_FOR_HELLO
        self._hello = b""
        self._result = ""
        """Why it failed: one of `metrics.HANDSHAKES`."""
        self._write_paused = False

    # -- called by the socket transport

    def connection_made(self, transport: Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._state == _WAITING_FOR_HELLO:
            self._hello += data
            self._read_client_hello()
        elif self._state == _HANDSHAKING:
            self._incoming.write(data)
            self._do_handshake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._acceptor.timers.disarm(self)
        self._acceptor.failed(self, self._result or "gone")

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False

    # -- the handshake

    def _read_client_hello(self) -> None:
        """If the ClientHello is complete, choose the context by its name and begin."""
        hello = self._hello
        try:
            name = client_hello.server_name(hello)
        except HelloError:
            if not client_hello.speaks_tls(hello):
                self._refuse_plaintext(hello)
                return
            # OpenSSL finds the fault again and answers with an alert.
            name = ""
        if name is None:
            return
        self._hello = b""
        self._state = _HANDSHAKING
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = self._acceptor.contexts.for_name(name)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(hello)
        self._do_handshake()

    def _do_handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            self._flush()
            self._refuse(_result_of(error.reason or ""))
        else:
            self._flush()
            self._complete()

    def _complete(self) -> None:
        transport, acceptor = self._transport, self._acceptor
        connection = TlsConnection(
            acceptor.loop,
            transport,
            self._tls,
            self._incoming,
            self._outgoing,
            write_paused=self._write_paused,
        )
        transport.set_protocol(connection)
        acceptor.completed(self, connection)
        # Data may have come with the last message of the handshake.
        connection.read()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    def _refuse_plaintext(self, hello: bytes) -> None:
        if hello[:1].isalpha():
            self._transport.write(self._acceptor.plain_http_answer)
        self._refuse("not_tls")

    def _refuse(self, result: str) -> None:
        """Close, but leave the client time to read what was sent, as `client_connection` does."""
        self._result = result
        self._state = _CLOSING
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._acceptor.timers.arm_in(self, _LINGER_S)

    def move_deadline(self, seconds: float) -> None:
        """The time for a handshake has changed by so many seconds."""
        if self._state != _CLOSING:
            self._acceptor.timers.arm(self, self.deadline + seconds)

    def evict(self) -> None:
        """Close this handshake, the oldest, to make room."""
        self._abort("displaced")

    # -- an overloaded service may end it for others, see `http.open_clients.ClientHandle`

    @property
    def idle_since(self) -> float:
        """Since when the client is connected; NEVER if it has been refused."""
        if self._state == _CLOSING:
            return NEVER
        return self.deadline - self._acceptor.timeout_s

    @property
    def is_kept_alive(self) -> bool:
        """Never: no request has come yet."""
        return False

    def end_idle(self, fault: Fault) -> bool:
        """Close it, because another client needs its place."""
        self.evict()
        return True

    def expired(self, now: float) -> None:
        self._abort("timeout")

    def _abort(self, result: str) -> None:
        self._result = self._result or result
        self._state = _CLOSING
        self._transport.abort()


_REASONS: Final = {
    "UNSUPPORTED_PROTOCOL": "version",
    "VERSION_TOO_LOW": "version",
    "WRONG_VERSION_NUMBER": "version",
    "NO_SHARED_CIPHER": "cipher",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "cipher",
    "NO_SUITABLE_KEY_SHARE": "cipher",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "client_certificate",
    "CERTIFICATE_VERIFY_FAILED": "client_certificate",
}


class TlsAcceptor:
    """The handshakes of one service."""

    contexts: Contexts
    """Set with the first set of certificates; nothing is accepted before."""
    has_certificates = False
    """`contexts` is set."""

    def __init__(
        self,
        service: ServiceContext,
        on_connection: Callable[[Handshake, TlsConnection], None],
    ) -> None:
        """`on_connection` is called with each handshake that has succeeded."""
        self._service = service
        self._on_connection = on_connection
        self._in_progress: dict[Handshake, None] = {}
        """As an ordered set, the oldest first."""
        self._limit = service.config.limits.handshakes
        self.timeout_s = service.timeouts.handshake
        """Of all in progress."""
        self._builder: ContextsBuilder | None = None
        self.plain_http_answer = _PLAIN_HTTP_ANSWER if service.config.mode == "http" else b""
        """For a client that speaks plain HTTP on this port."""

    def configure(self) -> None:
        """Act on the service's configuration as it is now, also for handshakes in progress."""
        before, self.timeout_s = self.timeout_s, self._service.timeouts.handshake
        self._limit = self._service.config.limits.handshakes
        slices = self._service.reactor.slices
        if before != self.timeout_s:
            # Those that begin meanwhile have the new time already.
            present = tuple(self._in_progress)
            slices.run(self._moving_deadlines(present, self.timeout_s - before))
        slices.run(self._evicting_beyond_limit())

    def _moving_deadlines(self, handshakes: Sequence[Handshake], seconds: float) -> Iterator[None]:
        for handshake in handshakes:
            if handshake in self._in_progress:
                handshake.move_deadline(seconds)
            yield

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._service.loop

    @property
    def timers(self) -> TimerWheel:
        return self._service.timers

    @property
    def in_progress(self) -> int:
        """How many handshakes are in progress."""
        return len(self._in_progress)

    @property
    def oldest_first(self) -> Iterable[Handshake]:
        """The handshakes in progress."""
        return self._in_progress

    def begin_certificates(self, message: dict[str, Any]) -> None:
        """A new set of certificates follows, one by one."""
        self._builder = ContextsBuilder(message)

    def add_certificate(self, message: dict[str, Any]) -> bool:
        """Load one of the set; with the last one the set is used for all new connections. True: it
        was the last. ssl.SSLError, OSError: it cannot be used, nor the others of its set."""
        builder, self._builder = self._builder, None
        if builder is None:
            return False
        contexts = builder.add(message)
        if contexts is None:
            self._builder = builder
            return False
        self.contexts = contexts
        self.has_certificates = True
        return True

    def accepted(
        self,
        stream: Stream,
        peer: Any,
        proxy_header: bytes,
        port: int,
        counted_address: str,
        *,
        may_be_trusted: bool,
    ) -> None:
        """A client has connected, and was counted for the address `counted_address`."""
        handshake = Handshake(
            self, peer, proxy_header, port, counted_address, may_be_trusted=may_be_trusted
        )
        self._in_progress[handshake] = None
        self.timers.arm_in(handshake, self.timeout_s)
        if len(self._in_progress) > self._limit:
            self._evict_oldest()
        adopt(self._service.reactor, handshake, stream, self._service.config.limits.buffer)

    def _evicting_beyond_limit(self) -> Iterator[None]:
        while len(self._in_progress) > self._limit:
            self._evict_oldest()
            yield

    def _evict_oldest(self) -> None:
        oldest = next(iter(self._in_progress))
        del self._in_progress[oldest]
        oldest.evict()

    def completed(self, handshake: Handshake, connection: TlsConnection) -> None:
        """The handshake has succeeded; the service owns the connection now."""
        self._in_progress.pop(handshake, None)
        self.timers.disarm(handshake)
        self._service.counters.handshakes["resumed" if connection.is_resumed else "ok"] += 1
        self._on_connection(handshake, connection)

    def failed(self, handshake: Handshake, result: str) -> None:
        """The handshake has failed, and its connection is closed."""
        self._in_progress.pop(handshake, None)
        self._service.counters.handshakes[result] += 1
        self._service.client_closed(handshake.counted_address)


def _result_of(reason: str) -> str:
    """OpenSSL's reason as one of `metrics.HANDSHAKES`; an alert means that the client refused."""
    return _REASONS.get(reason, "refused" if "ALERT" in reason else "failed")
