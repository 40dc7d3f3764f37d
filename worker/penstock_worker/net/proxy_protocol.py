"""The PROXY protocol, versions 1 and 2: the client of a proxy's connection.

Owns parsing and building of the header that a proxy sends before anything else
(proxy-protocol.txt of HAProxy, 2020/03/05). Must not know where bytes come from, nor whose
headers are trusted (`trusted_proxies`). No I/O, no clock.

The parser is strict: if two programs disagree where a header ends, they disagree where the first
request begins. An incomplete header is no error, though the specification allows that: TCP may
split it anywhere.
"""

import re
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

Endpoint = tuple[str, int] | str | None
"""An address and port, the path of a unix socket, or None: unknown."""

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
MAX_V1_LINE: Final = 107
"""The longest line of version 1, its CRLF included (§2.1)."""
MAX_V2_LENGTH: Final = 4 << 10
"""Bytes of addresses and extensions of version 2 together. The field allows 64 KiB; HAProxy sends
less than 1 KiB, even with all extensions about a client's certificate."""

_V1: Final = b"PROXY "
_SHORTEST: Final = len(b"PROXY UNKNOWN\r\n")
_FIXED: Final = 16
MAX_HEADER: Final = _FIXED + MAX_V2_LENGTH
_FIELDS: Final = struct.Struct(">12sBBH")
_TCP: Final = re.compile(
    rb"PROXY TCP(?:4 ([0-9.]{7,15}) ([0-9.]{7,15})|6 ([0-9A-Fa-f:.]{2,45}) ([0-9A-Fa-f:.]{2,45}))"
    rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n"
)
_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_LAST_PORT: Final = 0xFFFF
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_STREAM: Final = 1
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_SIZES: Final = {_UNSPEC: 0, _INET: 12, _INET6: 36, _UNIX: 216}
"""Bytes of both addresses and ports, by family."""
_PROTOCOLS: Final = 3
_CRC32C: Final = 0x03
_TLV: Final = struct.Struct(">BH")
_UNIX_PATH: Final = 108


class HeaderError(Exception):
    """Not a PROXY header, whatever bytes follow."""


class Header(NamedTuple):
    """The contents of a header."""

    size: int
    """Its length in bytes: what follows is the client's."""
    version: int
    local: bool
    """The connection is the proxy's own, such as a health check."""
    source: Endpoint
    """The client of the proxy; None: unknown, or the connection is the proxy's own."""
    destination: Endpoint
    """What that client connected to."""


def parse(data: bytes) -> Header | int:
    """Read the header at the start of `data`, whatever follows it. HeaderError: there is none.

    A number means that the header is incomplete: at least so many more bytes belong to it, and
    so does all of `data`.
    """
    if not data:
        return _SHORTEST
    if data[:1] == b"P":
        return _parse_v1(data)
    if not SIGNATURE.startswith(data[:12]):
        raise HeaderError("no PROXY header")
    if len(data) < _FIXED:
        return _FIXED - len(data)
    return _parse_v2(data)


def _parse_v1(data: bytes) -> Header | int:
    if not _V1.startswith(data[:6]):
        raise HeaderError("no PROXY header")
    end = data.find(b"\n", 0, MAX_V1_LINE) + 1
    if not end:
        if len(data) >= MAX_V1_LINE:
            raise HeaderError(f"a PROXY line beyond {MAX_V1_LINE} bytes")
        return 1
    line = data[:end]
    found = _TCP.fullmatch(line)
    if found is None:
        if _UNKNOWN.fullmatch(line) is None:
            raise HeaderError("a malformed PROXY line")
        return Header(end, 1, False, None, None)
    source, destination = found[1] or found[3], found[2] or found[4]
    kind = IPv4Address if found[1] else IPv6Address
    ports = int(found[5]), int(found[6])
    try:
        addresses = [_text(kind(address.decode())) for address in (source, destination)]
    except ValueError:
        raise HeaderError("a malformed address in a PROXY line") from None
    if max(ports) > _LAST_PORT:
        raise HeaderError("a port beyond 65535 in a PROXY line")
    return Header(end, 1, False, (addresses[0], ports[0]), (addresses[1], ports[1]))


def _parse_v2(data: bytes) -> Header | int:
    command, family, length = data[12], data[13], int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise HeaderError(f"version and command {command:#04x} of a PROXY header are unknown")
    if length > MAX_V2_LENGTH:
        raise HeaderError(f"a PROXY header beyond {MAX_HEADER} bytes")
    # What LOCAL says of a family is ignored (§2.2).
    if command == _PROXY and (family >> 4 not in _SIZES or family & 15 >= _PROTOCOLS):
        raise HeaderError(f"family and protocol {family:#04x} of a PROXY header are unknown")
    size = _FIXED + length
    if len(data) < size:
        return size - len(data)
    if command == _LOCAL:
        return Header(size, 2, True, None, None)
    family, protocol = family >> 4, family & 15
    addresses_size = _SIZES[family] if protocol else 0
    if length < addresses_size:
        raise HeaderError("a PROXY header too short for its addresses")
    if addresses_size:
        # For an unspecified family the rest need not be extensions.
        _check_extensions(data[:size], _FIXED + addresses_size)
    source, destination = _endpoints(data, family) if protocol == _STREAM else (None, None)
    return Header(size, 2, False, source, destination)


def _endpoints(data: bytes, family: int) -> tuple[Endpoint, Endpoint]:
    if family == _UNSPEC:
        return None, None
    if family == _UNIX:
        paths = struct.unpack_from(f"{_UNIX_PATH}s{_UNIX_PATH}s", data, _FIXED)
        source, destination = (path.split(b"\0", 1)[0].decode(errors="replace") for path in paths)
        return source, destination
    kind, size = (IPv4Address, 4) if family == _INET else (IPv6Address, 16)
    source_host, destination_host, *ports = struct.unpack_from(f">{size}s{size}sHH", data, _FIXED)
    return (_text(kind(source_host)), ports[0]), (_text(kind(destination_host)), ports[1])


def _text(address: IPv4Address | IPv6Address) -> str:
    """IPv4 in IPv6 as IPv4: a client is named alike, whatever family carried it."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _check_extensions(header: bytes, at: int) -> None:
    """Walk the TLVs. Only the checksum is used; the others must be well-formed."""
    size = len(header)
    while at < size:
        value = at + _TLV.size
        if value > size:
            raise HeaderError("a cut extension in a PROXY header")
        kind, length = _TLV.unpack_from(header, at)
        at = value + length
        if at > size:
            raise HeaderError("an extension beyond the end of a PROXY header")
        if kind == _CRC32C:
            blank = header[:value] + bytes(length) + header[at:]
            if length != 4 or crc32c(blank) != int.from_bytes(header[value:at], "big"):
                raise HeaderError("the checksum of a PROXY header is wrong")


def build(version: int, source: Endpoint = None, destination: Endpoint = None) -> bytes:
    """The header of a connection that is relayed for `source`; None: the client is unknown."""
    family, ends = _same_family(source, destination)
    if version == 1:
        if family in (_UNSPEC, _UNIX):
            return b"PROXY UNKNOWN\r\n"
        (source_host, source_port), (destination_host, destination_port) = ends
        name = 4 if family == _INET else 6
        hosts, ports = f"{source_host} {destination_host}", f"{source_port} {destination_port}"
        return f"PROXY TCP{name} {hosts} {ports}\r\n".encode()
    packed = b"".join(address.packed for address, _ in ends)
    packed += b"".join(port.to_bytes(2, "big") for _, port in ends)
    if family == _UNIX:
        paths = (path.encode() if isinstance(path, str) else b"" for path in (source, destination))
        packed = struct.pack(f"{_UNIX_PATH}s{_UNIX_PATH}s", *paths)
    kind = family << 4 | _STREAM if family else 0
    return _FIELDS.pack(SIGNATURE, _PROXY, kind, len(packed)) + packed


def build_local() -> bytes:
    """The version 2 header of a connection of the proxy's own. Version 1 has no such header: it
    recommends to send the connection's own addresses (§2.1)."""
    return _FIELDS.pack(SIGNATURE, _LOCAL, 0, 0)


_End = tuple[IPv4Address | IPv6Address, int]


def _same_family(source: Endpoint, destination: Endpoint) -> tuple[int, tuple[_End, ...]]:
    """The family of both, and both as addresses of that family."""
    if isinstance(source, str) and isinstance(destination, str | None):
        return _UNIX, ()
    if not isinstance(source, tuple) or not isinstance(destination, tuple):
        return _UNSPEC, ()
    # A scope (`%eth0`) has no meaning on another host.
    hosts = [
        ip_address(_text(ip_address(end[0].partition("%")[0]))) for end in (source, destination)
    ]
    if hosts[0].version != hosts[1].version:
        # As HAProxy does: there is no header for a client and a target of two families.
        hosts = [host if host.version == 6 else ip_address(f"::ffff:{host}") for host in hosts]
    family = _INET if hosts[0].version == 4 else _INET6
    return family, ((hosts[0], source[1]), (hosts[1], destination[1]))


def _crc_table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_CRC_TABLE: Final = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), of RFC 4960, appendix B. zlib has only the other one."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
