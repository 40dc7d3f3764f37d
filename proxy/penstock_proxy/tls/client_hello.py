"""The first words of a TLS client, read before TLS is spoken: which name does it ask for?

Owns one question about bytes that are still in the kernel or about to be given to OpenSSL:
the `server_name` of a ClientHello (RFC 6066 §3), for whoever routes by it or chooses a
certificate by it. Nothing is decided about the handshake itself; a hello that OpenSSL would
refuse for other reasons has a name here all the same.

Everything is a stranger's: every length is checked against what is really there, records
(RFC 8446 §5.1) may cut the message anywhere but not without end, and the only error that
leaves is `HelloError`. Extensions, groups and versions that are not known (GREASE, RFC 8701)
are stepped over unread. No I/O, no clock.
"""

from typing import Final

MAX_HELLO: Final = 16 << 10
"""Bytes of records. With post-quantum keys and a ticket a hello has about 2 KiB."""
_MAX_RECORDS: Final = 32
"""Of one hello: a few hide a name from those who look; thousands only cost time."""
_MAX_RECORD: Final = 1 << 14
_MAX_NAME: Final = 255

_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0


class HelloError(ValueError):
    """These are not the first bytes of a TLS connection; the message says why."""


def speaks_tls(data: bytes) -> bool:
    """Could this be the beginning of a handshake? True for nothing at all."""
    return data[:1] in (b"", b"\x16") and data[1:2] in (b"", b"\x03")


def server_name(data: bytes) -> str | None:
    """The name that is asked for, in lower case; empty if there is none.

    None while the hello is not complete: ask again with more, at most MAX_HELLO bytes.
    HelloError: what is there cannot become a ClientHello any more.
    """
    message = _unwrapped(data)
    if message is None:
        return None
    return _name(_extensions(message))


def _unwrapped(data: bytes) -> bytes | None:
    """The body of the handshake message in the records; None if they are not all there."""
    parts: list[bytes] = []
    have = at = 0
    while len(parts) < _MAX_RECORDS:
        head = data[at : at + 5]
        if not speaks_tls(head):
            raise HelloError("not a TLS record")
        if len(head) < 5:
            break
        size = head[3] << 8 | head[4]
        if not 0 < size <= _MAX_RECORD:
            raise HelloError("a record without content, or with too much")
        part = data[at + 5 : at + 5 + size]
        parts.append(part)
        have += len(part)
        wanted = _wanted(parts) if have >= 4 else MAX_HELLO
        if have >= wanted:
            return b"".join(parts)[4:wanted]
        if len(part) < size:
            break
        at += 5 + size
    else:
        raise HelloError("too many records")
    if len(data) >= MAX_HELLO:
        raise HelloError("too large")
    return None


def _wanted(parts: list[bytes]) -> int:
    """Bytes of the message with its head, which the parts have."""
    head = parts[0][:4] if len(parts[0]) >= 4 else b"".join(parts)[:4]
    if head[0] != _CLIENT_HELLO:
        raise HelloError("not a ClientHello")
    size = head[1] << 16 | head[2] << 8 | head[3]
    if size > MAX_HELLO:
        raise HelloError("too large")
    return 4 + size


class _Reader:
    """Bytes, taken from the proxy. HelloError if there are less than asked for."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._end = len(data)

    def __bool__(self) -> bool:
        return self._at < self._end

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > self._end:
            raise HelloError("a length beyond the end")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Bytes behind their length, a number of `size` bytes."""
        return self.take(self.number(size))


def _extensions(message: bytes) -> bytes:
    """RFC 8446 §4.1.2, and older ones that end without extensions."""
    reader = _Reader(message)
    reader.take(2 + 32)  # version and random
    if len(reader.vector(1)) > 32:
        raise HelloError("a session ID that is too long")
    suites = reader.vector(2)
    if len(suites) < 2 or len(suites) % 2:
        raise HelloError("a list of cipher suites that is none")
    if not reader.vector(1):
        raise HelloError("no compression method")
    if not reader:
        return b""
    extensions = reader.vector(2)
    if reader:
        raise HelloError("bytes behind the extensions")
    return extensions


def _name(extensions: bytes) -> str:
    reader = _Reader(extensions)
    seen: set[int] = set()
    name = ""
    while reader:
        kind = reader.number(2)
        body = reader.vector(2)
        if kind in seen:
            # RFC 8446 §4.2. Two names would be read by one as the first, by another as the last.
            raise HelloError("an extension that comes twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _host_name(body)
    return name


def _host_name(body: bytes) -> str:
    """The only host name of a list of names; RFC 6066 §3 allows one of a kind."""
    reader = _Reader(body)
    names = _Reader(reader.vector(2))
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
    return _normal(found or b"")


def _normal(name: bytes) -> str:
    """As names are compared: lower case, no root dot. Nothing is found for what is no name."""
    if not name.isascii() or b"\0" in name:
        raise HelloError("a name that is no name")
    return name.decode().lower().removesuffix(".")
