"""One client's TLS handshake, from its first byte until there is a connection or none.

Owns: the wait for the ClientHello, whose certificate is shown, the handshake, and how one
that failed is told why and ends. When it is done a `TlsConnection` takes its place on what
is below, and this is forgotten. Must not know: how many there may be, what becomes of
those that succeed (`handshakes`).

OpenSSL begins only when a whole ClientHello is there. So who connects and says nothing costs
no buffers, and what it begins with is the certificate that the hello asks for.
"""

import ssl
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy import client_hello
from penstock_proxy.client_hello import HelloError
from penstock_proxy.connection import Transport
from penstock_proxy.deadlines import NEVER
from penstock_proxy.tls_connection import TlsConnection

if TYPE_CHECKING:
    from penstock_proxy.handshakes import Handshakes

_LINGER_S: Final = 1.0
"""To read why it was refused."""

_HELLO: Final = 0
_SHAKING: Final = 1
_PARTING: Final = 2
"""Refused: told why, and about to be closed."""


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
        "deadline",
        "peer",
        "port",
        "preface",
    )

    _lower: Transport
    _tls: ssl.SSLObject
    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO

    def __init__(
        self, owner: "Handshakes", peer: Any, preface: bytes, port: int, *, believed: bool
    ) -> None:
        """`peer`, `preface`, `port` and `believed` are for whoever is carried, as without TLS."""
        self.peer = peer
        self.preface = preface
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
        self._owner.deadlines.disarm(self)
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
        """Let it read what it was told, as `client` does, and close."""
        self._result = result
        self._state = _PARTING
        if not self._lower.is_closing():
            self._lower.write_eof()
            self._owner.deadlines.arm_in(self, _LINGER_S)

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


def _why(reason: str) -> str:
    """OpenSSL's reason as one of `metrics.HANDSHAKES`; an alert is the client's refusal."""
    return _REASONS.get(reason, "refused" if "ALERT" in reason else "failed")
