"""TLS between a client's socket and whoever reads the client, as a transport of its own.

Owns one connection from the end of its handshake (`handshake`): the way of every byte
through OpenSSL, which sees buffers and no socket, and how it ends. To what is below it is a
protocol; to `client_connection` and `duplex` it is the transport that they know. Must not know:
what the bytes mean, how the handshake went.

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
import socket
import ssl
from base64 import b64encode
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.net.transport import Adopter, Receiver, Transport
from penstock_worker.telemetry.access_log import tls_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

_RECORD: Final = 16 << 10
"""A record is read as a whole: nothing is ever left over inside OpenSSL."""
_SLICE: Final = 64 << 10
"""Most that goes into a buffer of OpenSSL's at a time. They never shrink again."""
_MOST_UNSENT: Final = 1 << 20
"""Bytes that a client does not take. What it is sent by us ends far below; only the answers
to a flood of its own (key updates, renegotiations) get there."""


class TlsConnection(Transport):
    """One connection from a client."""

    __slots__ = (
        "_blocked",
        "_closing",
        "_deaf",
        "_error",
        "_finished",
        "_incoming",
        "_loop",
        "_lost",
        "_lower",
        "_outgoing",
        "_paused",
        "_protocol",
        "_tls",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lower: Transport,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *,
        blocked: bool,
    ) -> None:
        """`tls` has shaken hands over both buffers; `blocked`: `lower` takes no more for now."""
        self._loop = loop
        self._lower = lower
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._blocked = blocked
        self._protocol: Receiver | None = None
        self._error: Exception | None = None
        self._paused = False
        self._deaf = False
        """The client has said its last word; what comes after that is nobody's."""
        self._closing = False
        """Nothing goes out any more."""
        self._finished = False
        """We have sent close_notify."""
        self._lost = False

    # -- to whoever is carried

    @property
    def is_resumed(self) -> bool:
        """The client had spoken with us before, and showed its ticket."""
        return bool(self._tls.session_reused)

    def certificate_field(self) -> bytes:
        """What the worker is told of the client's certificate, as a line of a header block
        (RFC 9440 §2.2); empty without one. It was verified, or we would not be here."""
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None:
            return b""
        return b"Client-Cert: :%b:\r\n" % b64encode(certificate)

    def facts(self, most: int) -> str:
        """What the access log says of it; `most`: characters of one field."""
        tls = self._tls
        cipher = tls.cipher()
        # Of what is not verified there is none.
        certificate: Mapping[str, Any] = tls.getpeercert() or {}
        names = [pair for group in certificate.get("subject", ()) for pair in group]
        return tls_fields(
            tls.version() or "",
            cipher[0] if cipher else "",
            ", ".join(f"{name}={value}" for name, value in names),
            resumed=self.is_resumed,
            max_field=most,
        )

    def carry(self, protocol: Adopter) -> None:
        """The handshake is done: from now on this is the transport of `protocol`."""
        self._protocol = protocol
        protocol.connection_made(self)
        if self._blocked:
            protocol.pause_writing()
        if self._lost:
            protocol.connection_lost(self._error)
        else:
            self.resume_reading()

    # -- from below

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if len(data) <= _SLICE:
            self._incoming.write(data)
            self.read()
        else:
            self._read_slices(data)

    def _read_slices(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(view), _SLICE):
            self._incoming.write(view[at : at + _SLICE])
            self.read()

    def read(self) -> None:
        """Pass on what there is."""
        incoming, tls = self._incoming, self._tls
        try:
            # Asking first is cheaper than an exception for each time that there is no more.
            while incoming.pending and not (self._paused or self._closing or self._deaf):
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
            self.read()
            if not (self._paused or self._closing):
                self._lower.resume_reading()

    def _notified(self) -> None:
        """The client has said all that it will."""
        self._deaf = True
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
        if self._deaf:
            # It said so before; whether we go on is already decided.
            return not self._closing
        self._error = ConnectionResetError("the client broke off")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = self._closing = True
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
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

    def write(self, data: bytes) -> None:
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

    def set_protocol(self, protocol: Receiver) -> None:
        self._protocol = protocol

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
            self._loop.call_soon(self._read_on)
        else:
            self._lower.resume_reading()

    def is_reading(self) -> bool:
        return not (self._paused or self._closing)

    def get_write_buffer_size(self) -> int:
        return self._lower.get_write_buffer_size()

    def borrow(self) -> socket.socket | None:
        return self._lower.borrow()
