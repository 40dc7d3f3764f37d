"""TLS handshakes of one service: clients that have connected and are not served yet.

Owns: the contexts that handshakes begin with, how many may be unfinished at once, each handshake
from its first byte until there is a connection or none, and how one that failed is told why and
ends. Must not know: what is done with those that succeed. A `TlsConnection` takes the place of
the handshake on the transport below, and the handshake is forgotten.

OpenSSL begins only when a whole ClientHello is there. So who connects and says nothing costs
no buffers, and what it begins with is the certificate that the hello asks for.

Strangers are bounded without closing the port to everybody: beyond `limits.handshakes` the
oldest unfinished one makes room. A client that wants to be served needs a few round trips; who
holds the place longest is who never will.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final

from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.net.timer_wheel import NEVER, TimerWheel
from penstock_proxy.net.transport import Transport
from penstock_proxy.service.context import ServiceContext
from penstock_proxy.tls import client_hello
from penstock_proxy.tls.client_hello import HelloError
from penstock_proxy.tls.contexts import Contexts, Inbox
from penstock_proxy.tls.transport import TlsConnection
from penstock_worker.net.stream import Stream

_LINGER_S: Final = 1.0
"""To read why it was refused."""

_HELLO: Final = 0
_SHAKING: Final = 1
_PARTING: Final = 2
"""Refused: told why, and about to be closed."""


_TEXT: Final = b"this port speaks TLS: ask for https://\n"
_PLAIN: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_TEXT), _TEXT)
)


class Handshake:
    """One client that wants to come in."""

    __slots__ = (
        "_blocked",
        "_early",
        "_incoming",
        "_lower",
        "_outgoing",
        "_owner",
        "_result",
        "_state",
        "_tls",
        "believed",
        "bucket",
        "counted_as",
        "deadline",
        "peer",
        "port",
        "proxy_header",
    )

    _lower: Transport
    _tls: ssl.SSLObject
    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO

    def __init__(
        self,
        owner: "TlsAcceptor",
        peer: Any,
        proxy_header: bytes,
        port: int,
        counted_as: str,
        *,
        believed: bool,
    ) -> None:
        """`peer`, `proxy_header`, `port` and `believed` are for whoever is carried, as without
        TLS; `counted_as` is the address that it counts for."""
        self.peer = peer
        self.proxy_header = proxy_header
        self.counted_as = counted_as
        self.port = port
        self.believed = believed
        self.deadline = NEVER
        self.bucket = NEVER
        self._owner = owner
        self._state = _HELLO
        self._early = b""
        self._result = ""
        """Why there will be no connection."""
        self._blocked = False

    # -- from below

    def connection_made(self, transport: Transport) -> None:
        self._lower = transport

    def data_received(self, data: bytes) -> None:
        if self._state == _HELLO:
            self._early += data
            self._hear()
        elif self._state == _SHAKING:
            self._incoming.write(data)
            self._shake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.timers.disarm(self)
        self._owner.failed(self, self._result or "gone")

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False

    # -- until it is done

    def _hear(self) -> None:
        """Is the ClientHello complete? Whose certificate does it ask for?"""
        early = self._early
        try:
            name = client_hello.server_name(early)
        except HelloError:
            if not client_hello.speaks_tls(early):
                self._refuse_plain(early)
                return
            # What is wrong with it is for OpenSSL to say, in an alert.
            name = ""
        if name is None:
            return
        self._early = b""
        self._state = _SHAKING
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = self._owner.contexts.of(name)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(early)
        self._shake()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            self._flush()
            self._refuse(_why(error.reason or ""))
        else:
            self._flush()
            self._open()

    def _open(self) -> None:
        lower, owner = self._lower, self._owner
        connection = TlsConnection(
            owner.loop, lower, self._tls, self._incoming, self._outgoing, blocked=self._blocked
        )
        lower.set_protocol(connection)
        owner.done(self, connection)
        # What came with the last of the handshake.
        connection.read()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._lower.write(self._outgoing.read())

    def _refuse_plain(self, early: bytes) -> None:
        if early[:1].isalpha():
            self._lower.write(self._owner.plain_answer)
        self._refuse("not_tls")

    def _refuse(self, result: str) -> None:
        """Let it read what it was told, as `client_connection` does, and close."""
        self._result = result
        self._state = _PARTING
        if not self._lower.is_closing():
            self._lower.write_eof()
            self._owner.timers.arm_in(self, _LINGER_S)

    def displace(self) -> None:
        """Others want to come in, and this one has not in all its time."""
        self._give_up("displaced")

    def expired(self, now: float) -> None:
        self._give_up("timeout")

    def _give_up(self, result: str) -> None:
        self._result = self._result or result
        self._state = _PARTING
        self._lower.abort()


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
    """Those of one service."""

    contexts: Contexts
    """Not there before the first set has come; nobody is accepted before."""
    ready = False
    """They are there."""

    def __init__(
        self,
        service: ServiceContext,
        secured: Callable[[Handshake, TlsConnection], None],
    ) -> None:
        """`secured` is given each one that has become a connection."""
        self._service = service
        self._secured = secured
        self._pending: dict[Handshake, None] = {}
        """The oldest first."""
        self._limit = service.config.limits.handshakes
        self._inbox: Inbox | None = None
        self.plain_answer = _PLAIN if service.config.mode == "http" else b""
        """To who forgot the s of https."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._service.loop

    @property
    def timers(self) -> TimerWheel:
        return self._service.timers

    @property
    def pending(self) -> int:
        """How many are unfinished."""
        return len(self._pending)

    def begin(self, order: dict[str, Any]) -> None:
        """A new set of certificates follows."""
        self._inbox = Inbox(order)

    def add(self, order: dict[str, Any]) -> None:
        """One of the set; the last one makes it valid for whoever connects from now on."""
        if self._inbox is not None and (contexts := self._inbox.add(order)) is not None:
            self._inbox = None
            self.contexts = contexts
            self.ready = True

    def accepted(
        self,
        stream: Stream,
        peer: Any,
        proxy_header: bytes,
        port: int,
        counted_as: str,
        *,
        believed: bool,
    ) -> None:
        """Somebody has connected, and was counted for the address `counted_as`."""
        handshake = Handshake(self, peer, proxy_header, port, counted_as, believed=believed)
        self._pending[handshake] = None
        self.timers.arm_in(handshake, self._service.timeouts.handshake)
        if len(self._pending) > self._limit:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.displace()
        adopt(self._service.reactor, handshake, stream, self._service.config.limits.buffer)

    def done(self, handshake: Handshake, connection: TlsConnection) -> None:
        """It has become a connection: the service has it now."""
        self._pending.pop(handshake, None)
        self.timers.disarm(handshake)
        self._service.counters.handshakes["resumed" if connection.is_resumed else "ok"] += 1
        self._secured(handshake, connection)

    def failed(self, handshake: Handshake, result: str) -> None:
        """It is gone, and never became one."""
        self._pending.pop(handshake, None)
        self._service.counters.handshakes[result] += 1
        self._service.client_closed(handshake.counted_as)


def _why(reason: str) -> str:
    """OpenSSL's reason as one of `metrics.HANDSHAKES`; an alert is the client's refusal."""
    return _REASONS.get(reason, "refused" if "ALERT" in reason else "failed")
