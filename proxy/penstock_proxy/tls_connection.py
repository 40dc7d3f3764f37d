"""TLS between a client's socket and whoever reads the client, as a transport of its own.

Owns one connection's TLS: the wait for the ClientHello, the handshake and how it failed, and
from then on the way of every byte through OpenSSL, which sees buffers and no socket. To the
event loop it is a protocol; to `client` and `pump` it is the transport that they know. Must
not know: what the bytes mean, how many handshakes there may be (`handshakes`).

Why not the event loop's own TLS: it cannot end one direction and go on with the other, takes
a buffer of 256 KiB and two timers for each connection, begins with OpenSSL before a client
has said a word, and has one way to end where three are needed:

    close      all is said: close_notify, then the end
    write_eof  close_notify, and read on (RFC 8446 §6.1 allows it)
    break_off  what was written goes out, and then the end without close_notify: to the
               client the answer is cut, whatever its framing

The other way round, an end of the socket without close_notify is a connection that broke.
"""

import asyncio
import ssl
from base64 import b64encode
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy import client_hello
from penstock_proxy.client_hello import HelloError
from penstock_proxy.deadlines import NEVER

if TYPE_CHECKING:
    from penstock_proxy.handshakes import Handshakes

_RECORD: Final = 16 << 10
"""A record is read as a whole: nothing is ever left over inside OpenSSL."""
_SLICE: Final = 64 << 10
"""Most that goes into a buffer of OpenSSL's at a time. They never shrink again."""
_LINGER_S: Final = 1.0
"""To read why it was refused."""

_HELLO: Final = 0
_SHAKING: Final = 1
_PARTING: Final = 2
"""Refused: told why, and about to be closed."""
_OPEN: Final = 3
_DEAF: Final = 4
"""The client has said its last word; what comes after that is nobody's."""
_MOST_UNSENT: Final = 1 << 20
"""Bytes that a client does not take. What it is sent by us ends far below; only the answers
to a flood of its own (key updates, renegotiations) get there."""


class TlsConnection(asyncio.Protocol, asyncio.Transport):
    """One connection from a client."""

    __slots__ = (
        "_blocked",
        "_closing",
        "_early",
        "_error",
        "_finished",
        "_incoming",
        "_lost",
        "_lower",
        "_outgoing",
        "_owner",
        "_paused",
        "_protocol",
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

    _lower: asyncio.Transport
    _tls: ssl.SSLObject
    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO

    def __init__(
        self, owner: "Handshakes", peer: Any, preface: bytes, port: int, *, believed: bool
    ) -> None:
        """`peer`, `preface`, `port` and `believed` are for whoever is carried, as without TLS."""
        super().__init__()
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
        self._protocol: asyncio.Protocol | None = None
        self._error: Exception | None = None
        self._paused = False
        self._blocked = False
        self._closing = False
        """Nothing goes out any more."""
        self._finished = False
        """We have sent close_notify."""
        self._lost = False

    # -- from the socket, until the handshake is done

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lower = transport

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == _OPEN:
            if len(data) <= _SLICE:
                self._incoming.write(data)
                self._read()
            else:
                self._read_slices(data)
        elif state == _HELLO:
            self._early += data
            self._hear()
        elif state == _SHAKING:
            self._incoming.write(data)
            self._shake()

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
            self._state = _OPEN
            self._owner.done(self)
            self._read()

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

    # -- from the socket, afterwards

    def certificate_field(self) -> bytes:
        """What the worker is told of the client's certificate, as a line of a header block
        (RFC 9440 §2.2); empty without one. It was verified, or we would not be here."""
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None:
            return b""
        return b"Client-Cert: :%b:\r\n" % b64encode(certificate)

    def carry(self, protocol: asyncio.Protocol) -> None:
        """The handshake is done: from now on this is the transport of `protocol`."""
        self._protocol = protocol
        protocol.connection_made(self)
        if self._blocked:
            protocol.pause_writing()
        if self._lost:
            protocol.connection_lost(self._error)
        else:
            self.resume_reading()

    def _read_slices(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(view), _SLICE):
            self._incoming.write(view[at : at + _SLICE])
            self._read()

    def _read(self) -> None:
        """Pass on what there is."""
        incoming, tls = self._incoming, self._tls
        try:
            # Asking first is cheaper than an exception for each time that there is no more.
            while incoming.pending and self._state == _OPEN and not (self._paused or self._closing):
                data = tls.read(_RECORD)
                if data:
                    self._protocol.data_received(data)  # type: ignore[union-attr]
                else:
                    self._notified()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._notified()
        except ssl.SSLError as error:
            self._broken(error)
            return
        if self._outgoing.pending:
            self._flush()
            if self._blocked and self._lower.get_write_buffer_size() > _MOST_UNSENT:
                self.abort()

    def _read_on(self) -> None:
        if not (self._paused or self._lost):
            self._read()
            if not (self._paused or self._closing):
                self._lower.resume_reading()

    def _notified(self) -> None:
        """The client has said all that it will."""
        self._state = _DEAF
        assert self._protocol is not None
        if not self._protocol.eof_received():
            self.close()

    def _broken(self, error: Exception) -> None:
        """A record that is none, or was tampered with: OpenSSL has an alert for that."""
        self._error = self._error or ConnectionResetError(str(error))
        self._closing = True
        self._flush()
        self._lower.close()

    def eof_received(self) -> bool:
        if self._state == _DEAF:
            # It said so before; whether we go on is already decided.
            return not self._closing
        self._error = ConnectionResetError("the client broke off")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = self._closing = True
        self._owner.deadlines.disarm(self)
        protocol, self._protocol = self._protocol, None
        if self._state < _OPEN:
            self._owner.failed(self, self._result or "gone")
        elif protocol is not None:
            protocol.connection_lost(error or self._error)
        else:
            self._error = error or self._error

    def pause_writing(self) -> None:
        self._blocked = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._blocked = False
        if self._protocol is not None:
            self._protocol.resume_writing()

    # -- to the client

    def write(self, data: Any) -> None:
        if self._closing or self._finished or not data:
            return
        tls, outgoing = self._tls, self._outgoing
        try:
            sent = tls.write(data)
            if sent < len(data):
                # A record at a time, and no more in OpenSSL's memory than a few of them.
                view = memoryview(data)
                while sent < len(view) and not self._closing:
                    if outgoing.pending >= _SLICE:
                        self._lower.write(outgoing.read())
                    sent += tls.write(view[sent:])
        except ssl.SSLError as error:
            self._broken(error)
            return
        self._lower.write(outgoing.read())

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._lower.write(self._outgoing.read())

    def _notify(self) -> None:
        """Send close_notify. What has come and was not read stays readable."""
        if self._finished:
            return
        self._finished = True
        # Python's `unwrap` also tries to read the client's, and would take data for an error.
        unread = self._incoming.read()
        with suppress(ssl.SSLError):  # usually that it waits for the client's
            self._tls.unwrap()
        self._incoming.write(unread)
        self._flush()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not (self._closing or self._finished):
            self._notify()
            self._lower.write_eof()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._notify()
            self._lower.close()

    def break_off(self) -> None:
        """End it when all is sent, so that the client sees that this was not all."""
        if not self._closing:
            self._closing = True
            self._lower.close()

    def abort(self) -> None:
        self._closing = True
        self._lower.abort()

    # -- as any transport

    def is_closing(self) -> bool:
        return self._closing or self._lower.is_closing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def pause_reading(self) -> None:
        if not (self._paused or self._closing):
            self._paused = True
            self._lower.pause_reading()

    def resume_reading(self) -> None:
        if not self._paused or self._closing:
            return
        self._paused = False
        if self._incoming.pending:
            # Not at once: whoever resumes does not expect data before this returns.
            self._owner.loop.call_soon(self._read_on)
        else:
            self._lower.resume_reading()

    def is_reading(self) -> bool:
        return not (self._paused or self._closing)

    def get_write_buffer_size(self) -> int:
        return self._lower.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._lower.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._lower.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._lower.get_extra_info(name, default)


def end(transport: asyncio.Transport, *, cut: bool) -> None:
    """Close it when all is sent; `cut`: who speaks TLS with us sees that more was to come."""
    if cut and isinstance(transport, TlsConnection):
        transport.break_off()
    else:
        transport.close()


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
