"""The server name in a TLS ClientHello, read before OpenSSL gets the bytes.

Owns: finding the `server_name` extension (RFC 6066 §3), by which connections are routed and
certificates chosen. It judges nothing else: a ClientHello that OpenSSL refuses for other reasons
has a name here all the same.

The input is hostile. Every length is checked against the bytes that are there. Records (RFC 8446
§5.1) may split the message anywhere, but their number is bounded. The only exception is
`HelloError`. Unknown extensions, groups and versions (GREASE, RFC 8701) are skipped. No I/O, no
clock.
"""

from typing import Final

MAX_HELLO: Final = 16 << 10
"""Bytes of records. With post-quantum keys and a ticket a ClientHello has about 2 KiB."""
_MAX_RECORDS: Final = 32
"""Of one ClientHello. A client may use a few to hide the name; thousands only cost time."""
_MAX_RECORD: Final = 1 << 14
_MAX_NAME: Final = 255

_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0


class HelloError(ValueError):
    """The bytes are not a valid ClientHello; the message says why."""


def speaks_tls(data: bytes) -> bool:
    """Could this be the beginning of a handshake? True for no bytes at all."""
    return data[:1] in (b"", b"\x16") and data[1:2] in (b"", b"\x03")


def server_name(data: bytes) -> str | None:
    """The name that the client asks for, in lower case; empty if there is none.

    None while the ClientHello is incomplete: call again with more, at most MAX_HELLO bytes.
    HelloError: the bytes cannot become a valid ClientHello.
    """
    message = _whole_message(data) or _handshake_body(data)
    if message is None:
        return None
    return _name(_extensions(message))


def _whole_message(data: bytes) -> bytes:
    """The body of a handshake message that is alone in one record, as nearly everybody sends it;
    empty for all else."""
    size = len(data) - 5
    if (
        4 < size <= _MAX_RECORD
        and data[0] == _HANDSHAKE
        and data[1] == 3
        and (data[3] << 8 | data[4]) == size
        and data[5] == _CLIENT_HELLO
        and (data[6] << 16 | data[7] << 8 | data[8]) == size - 4
    ):
        return data[9:]
    return b""


def _handshake_body(data: bytes) -> bytes | None:
    """The body of the handshake message in the records; None if they are not all there."""
    parts: list[bytes] = []
    received = offset = 0
    while len(parts) < _MAX_RECORDS:
        head = data[offset : offset + 5]
        if not speaks_tls(head):
            raise HelloError("not a TLS record")
        if len(head) < 5:
            break
        size = head[3] << 8 | head[4]
        if not 0 < size <= _MAX_RECORD:
            raise HelloError("a record without content, or with too much")
        part = data[offset + 5 : offset + 5 + size]
        parts.append(part)
        received += len(part)
        length = _message_length(parts) if received >= 4 else MAX_HELLO
        if received >= length:
            return b"".join(parts)[4:length]
        if len(part) < size:
            break
        offset += 5 + size
    else:
        raise HelloError("too many records")
    if len(data) >= MAX_HELLO:
        raise HelloError("too large")
    return None


def _message_length(parts: list[bytes]) -> int:
    """The length of the message with its header, which the parts hold already."""
    head = parts[0][:4] if len(parts[0]) >= 4 else b"".join(parts)[:4]
    if head[0] != _CLIENT_HELLO:
        raise HelloError("not a ClientHello")
    size = head[1] << 16 | head[2] << 8 | head[3]
    if size > MAX_HELLO:
        raise HelloError("too large")
    return 4 + size


def _extensions(message: bytes) -> bytes:
    """The extensions of a ClientHello (RFC 8446 §4.1.2); old clients send none."""
    end = len(message)
    at = 2 + 32  # version and random
    size = message[at] if at < end else _MAX_RECORD
    if size > 32 or at + 1 + size + 2 > end:
        raise HelloError("a session ID that is too long")
    at += 1 + size
    size = message[at] << 8 | message[at + 1]
    at += 2 + size
    if size < 2 or size % 2 or at >= end:
        raise HelloError("a list of cipher suites that is none")
    size = message[at]
    at += 1 + size
    if not size or at > end:
        raise HelloError("no compression method")
    if at == end:
        return b""
    if at + 2 > end or (message[at] << 8 | message[at + 1]) != end - at - 2:
        raise HelloError("not as many bytes of extensions as announced")
    return message[at + 2 :]


def _name(extensions: bytes) -> str:
    end = len(extensions)
    at = 0
    seen: set[int] = set()
    name = ""
    # One step for each of up to a dozen extensions, of each connection: written for speed.
    while at < end:
        if at + 4 > end:
            raise HelloError("a length beyond the end")
        kind = extensions[at] << 8 | extensions[at + 1]
        body = at + 4
        at = body + (extensions[at + 2] << 8 | extensions[at + 3])
        if at > end:
            raise HelloError("a length beyond the end")
        if kind in seen:
            # RFC 8446 §4.2. Of two names, one program would take the first, another the last.
            raise HelloError("an extension that comes twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _host_name(extensions[body:at])
    return name


class _ByteReader:
    """Bytes, read from the front. HelloError if fewer are left than asked for."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._end = len(data)

    def __bool__(self) -> bool:
        return self._at < self._end

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def vector(self, size: int) -> bytes:
        """The bytes that follow their length, which is a number of `size` bytes."""
        return self._take(self.number(size))

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > self._end:
            raise HelloError("a length beyond the end")
        taken = self._data[self._at : end]
        self._at = end
        return taken


def _host_name(body: bytes) -> str:
    """The `host_name` entry of the server_name list; at most one is allowed (RFC 6066 §3)."""
    reader = _ByteReader(body)
    names = _ByteReader(reader.vector(2))
    if reader or not names:
        raise HelloError("a list of names that is none")
    found: bytes | None = None
    while names:
        kind = names.number(1)
        name = names.vector(2)
        if kind != _HOST_NAME:
            continue
        if found is not None or not 0 < len(name) <= _MAX_NAME:
            raise HelloError("two names, or one without end")
        found = name
    return _normalized(found or b"")


def _normalized(name: bytes) -> str:
    """The form in which names are compared: lower case, without the root's dot."""
    if not name.isascii() or b"\0" in name:
        raise HelloError("a name that is no name")
    return name.decode().lower().removesuffix(".")
