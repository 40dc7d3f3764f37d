"""TLS as a transport, on top of a socket transport.

Owns: one connection from the end of its handshake (`handshake`), the encryption of its bytes by
OpenSSL, which works on buffers and not on the socket, and how it is closed. For the socket
transport it is the receiver; for `client_connection` and `duplex` it is the transport. Must not
know: what the bytes mean, how the handshake went.

The event loop's own TLS is not used. It cannot close one direction and go on with the other,
needs a buffer of 256 KiB and two timers for each connection, starts OpenSSL before a client has
sent anything, and has one way to close where three are needed:

    close      send close_notify, then close
    write_eof  send close_notify, and go on reading (RFC 8446 §6.1 allows it)
    break_off  send what was written, then close without close_notify: the client sees a truncated
               answer, however it is framed

In the other direction, a socket that ends without close_notify is a broken connection.

See docs/decisions/0003-tls-over-memory-buffers.md.
"""

import asyncio
import ssl
from base64 import b64encode
from contextlib import suppress
from socket import SocketType
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.net.transport import FirstReceiver, Receiver, Transport
from penstock_worker.telemetry.access_log import tls_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

_RECORD_SIZE: Final = 16 << 10
"""The largest record. A read of this size leaves no decrypted bytes inside OpenSSL."""
_MAX_BIO: Final = 64 << 10
"""Bytes that are put into a buffer of OpenSSL at a time. These buffers never shrink."""
_WRITE_SIZE: Final = 32 << 10
"""Bytes that are encrypted and sent at a time. OpenSSL would take any number at once, into a buffer
that grows to their size and never shrinks, and what was encrypted first would have left the cache
when it is sent (10 MB took 15.9 ms of CPU in pieces of 256 KiB, and 10.6 in these)."""
_MAX_UNSENT: Final = 1 << 20
"""Bytes that may wait for a client that does not read. Our own data stays far below; only the
answers to a flood of its own (key updates, renegotiations) get there."""


_ANONYMOUS: Final[dict[tuple[str, str, bool], str]] = {}
"""Fields of the access log for clients without a certificate, by what was agreed on. To make them
took longer than all else that is done here at the end of a handshake."""


class TlsConnection(Transport, Receiver):
    """One connection from a client."""

    __slots__ = (
        "_closing",
        "_error",
        "_incoming",
        "_loop",
        "_lost",
        "_notify_sent",
        "_outgoing",
        "_paused",
        "_protocol",
        "_read_closed",
        "_tls",
        "_transport",
        "_write_paused",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *,
        write_paused: bool,
    ) -> None:
        """`tls` has finished its handshake over both buffers. `write_paused`: `transport` has told
        its receiver to pause writing."""
        self._loop = loop
        self._transport = transport
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._write_paused = write_paused
        self._protocol: Receiver | None = None
        self._error: Exception | None = None
        self._paused = False
        self._read_closed = False
        """The client has sent close_notify; bytes after it are ignored."""
        self._closing = False
        """Nothing is written any more."""
        self._notify_sent = False
        """We have sent close_notify."""
        self._lost = False

    # -- for the receiver

    @property
    def is_resumed(self) -> bool:
        """The client has resumed an earlier session by its ticket."""
        return bool(self._tls.session_reused)

    def client_cert_field(self) -> bytes:
        """The Client-Cert field for the worker (RFC 9440 §2.2), as a line of a header block.

        Empty if the client has no certificate. A certificate that is here has been verified.
        """
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None:
            return b""
        return b"Client-Cert: :%b:\r\n" % b64encode(certificate)

    def log_fields(self, max_field: int) -> str:
        """The TLS fields of the access log; `max_field`: characters of one field."""
        tls = self._tls
        cipher = tls.cipher()
        agreed = (tls.version() or "", cipher[0] if cipher else "", self.is_resumed)
        fields = _ANONYMOUS.get(agreed)
        if fields is None:
            fields = _ANONYMOUS[agreed] = tls_fields(*agreed[:2], "", resumed=agreed[2])
        if tls.getpeercert(binary_form=True) is None:
            return fields
        # Empty for a certificate that was not verified.
        certificate: Mapping[str, Any] = tls.getpeercert() or {}
        names = [pair for group in certificate.get("subject", ()) for pair in group]
        return tls_fields(
            *agreed[:2],
            ", ".join(f"{name}={value}" for name, value in names),
            resumed=self.is_resumed,
            max_field=max_field,
        )

    def attach(self, protocol: FirstReceiver) -> None:
        """Make this the transport of `protocol`. Called once, after the handshake."""
        self._protocol = protocol
        protocol.connection_made(self)
        if self._write_paused:
            protocol.pause_writing()
        if self._lost:
            protocol.connection_lost(self._error)
        else:
            self.resume_reading()

    # -- called by the socket transport

    def data_received(self, data: bytes) -> None:
        if self._read_closed:
            return
        if len(data) <= _MAX_BIO:
            self._incoming.write(data)
            self.read()
        else:
            self._read_slices(data)

    def _read_slices(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(view), _MAX_BIO):
            self._incoming.write(view[at : at + _MAX_BIO])
            self.read()

    def read(self) -> None:
        """Decrypt what has come, and pass it on."""
        incoming, tls = self._incoming, self._tls
        try:
            # To ask first is cheaper than an exception each time that nothing is left.
            while incoming.pending and not (self._paused or self._closing or self._read_closed):
                data = tls.read(_RECORD_SIZE)
                if data:
                    self._protocol.data_received(data)  # type: ignore[union-attr]
                else:
                    self._peer_closed()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._peer_closed()
        except ssl.SSLError as error:
            self._fail(error)
            return
        if self._outgoing.pending:
            self._flush()
            if self._write_paused and self._transport.get_write_buffer_size() > _MAX_UNSENT:
                self.abort()

    def _resume_read(self) -> None:
        if not (self._paused or self._lost):
            self.read()
            if not (self._paused or self._closing):
                self._transport.resume_reading()

    def _peer_closed(self) -> None:
        """The client has sent close_notify."""
        self._read_closed = True
        assert self._protocol is not None
        if not self._protocol.eof_received():
            self.close()

    def _fail(self, error: Exception) -> None:
        """A record is invalid or was tampered with: send OpenSSL's alert and close."""
        self._error = self._error or ConnectionResetError(str(error))
        self._closing = True
        self._flush()
        self._transport.close()

    def eof_received(self) -> bool:
        if self._read_closed:
            # close_notify came before, and the receiver has decided then whether to go on.
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
        self._write_paused = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._protocol is not None:
            self._protocol.resume_writing()

    # -- writing

    def write(self, data: bytes) -> None:
        if self._closing or self._notify_sent or not data:
            return
        try:
            if len(data) <= _WRITE_SIZE:
                self._tls.write(data)
            else:
                self._write_slices(data)
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._transport.write(self._outgoing.read())

    def _write_slices(self, data: bytes) -> None:
        """Encrypt all of `data`, and send all but the last slice."""
        tls, outgoing = self._tls, self._outgoing
        view = memoryview(data)
        for at in range(0, len(view), _WRITE_SIZE):
            if at:
                self._transport.write(outgoing.read())
                if self._closing:
                    return
            tls.write(view[at : at + _WRITE_SIZE])

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    def _send_close_notify(self) -> None:
        """Send close_notify. What has come and was not read can still be read."""
        if self._notify_sent:
            return
        self._notify_sent = True
        # `unwrap` also tries to read the client's close_notify, and fails if it finds data.
        unread = self._incoming.read()
        with suppress(ssl.SSLError):  # usually that the client's has not come yet
            self._tls.unwrap()
        self._incoming.write(unread)
        self._flush()

    def write_eof(self) -> None:
        if not (self._closing or self._notify_sent):
            self._send_close_notify()
            self._transport.write_eof()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._send_close_notify()
            self._transport.close()

    def break_off(self) -> None:
        """Close when all is written, without close_notify: the client sees a truncation."""
        if not self._closing:
            self._closing = True
            self._transport.close()

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    # -- the rest of `Transport`

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def set_protocol(self, protocol: Receiver) -> None:
        self._protocol = protocol

    def pause_reading(self) -> None:
        if not (self._paused or self._closing):
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._paused or self._closing:
            return
        self._paused = False
        if self._incoming.pending:
            # Not at once: the caller does not expect data before this returns.
            self._loop.call_soon(self._resume_read)
        else:
            self._transport.resume_reading()

    def is_reading(self) -> bool:
        return not (self._paused or self._closing)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def borrow(self) -> SocketType | None:
        return self._transport.borrow()
