"""A PROXY header is parsed exactly as specified, and only listed peers are trusted.

Covers `net/trusted_proxies`.
"""

import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_worker.net.proxy_protocol import (
    MAX_HEADER,
    MAX_V1_LINE,
    SIGNATURE,
    Header,
    HeaderError,
    build,
    build_local,
    crc32c,
    parse,
)
from penstock_worker.net.trusted_proxies import TrustedProxies, peer_address

V4 = "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
V6 = "PROXY TCP6 2001:db8::1 2001:DB8::2 0 65535\r\n"


def v2(command: int, family: int, body: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big") + body


INET = bytes((203, 0, 113, 7, 10, 0, 0, 1)) + (40000).to_bytes(2, "big") + (443).to_bytes(2, "big")


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def checked(header: bytes, at: int) -> bytes:
    """`header` with its checksum, which is the extension at `at`."""
    return header[: at + 3] + crc32c(header).to_bytes(4, "big") + header[at + 7 :]


GOOD: list[tuple[bytes, tuple[object, object, bool]]] = [
    (V4.encode(), (("192.168.0.1", 56324), ("192.168.0.11", 443), False)),
    (V6.encode(), (("2001:db8::1", 0), ("2001:db8::2", 65535), False)),
    (
        b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:cb00:7108 1 2\r\n",
        (("203.0.113.7", 1), ("203.0.113.8", 2), False),
    ),
    (b"PROXY UNKNOWN\r\n", (None, None, False)),
    (b"PROXY UNKNOWN ffff:f 1 anything \x00\xff\r\n", (None, None, False)),
    (b"PROXY UNKNOWN " + b"x" * (MAX_V1_LINE - 16) + b"\r\n", (None, None, False)),
    (v2(0x21, 0x11, INET), (("203.0.113.7", 40000), ("10.0.0.1", 443), False)),
    (v2(0x21, 0x11, INET + tlv(4, b"")), (("203.0.113.7", 40000), ("10.0.0.1", 443), False)),
    (
        v2(0x21, 0x21, bytes(15) + b"\1" + bytes(15) + b"\2" + b"\0\1\0\2"),
        (("::1", 1), ("::2", 2), False),
    ),
    (
        v2(0x21, 0x31, b"/run/a".ljust(108, b"\0") + b"b" * 108),
        ("/run/a", "b" * 108, False),
    ),
    (v2(0x20, 0x00), (None, None, True)),
    (v2(0x20, 0xFF, b"whatever it says"), (None, None, True)),
    (v2(0x21, 0x00, b"any bytes"), (None, None, False)),
    (v2(0x21, 0x12, INET), (None, None, False)),
    (v2(0x21, 0x10, INET), (None, None, False)),
    (checked(v2(0x21, 0x11, INET + tlv(3, bytes(4))), 28), (("203.0.113.7", 40000),
     ("10.0.0.1", 443), False)),
]  # fmt: skip

BAD = [
    b"\0", b"G", b"PRO\r", b"PROXY\r\n", b"PROXYTCP4 ", b"proxy TCP4", b"PROXY  TCP4\r\n",
    b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n", b"PROXY TCP4 1.1.1.1  1.1.1.1 1 1\r\n",
    b"PROXY TCP4 1.1.1.1\t1.1.1.1 1 1\r\n", b"PROXY TCP4 01.1.1.1 1.1.1.1 1 1\r\n",
    b"PROXY TCP4 1.1.1 1.1.1.1 1 1\r\n", b"PROXY TCP4 1.1.1.256 1.1.1.1 1 1\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.1 1 -1\r\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\r\n", b"PROXY TCP4 ::1 ::1 1 1\r\n",
    b"PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n", b"PROXY TCP6 ::1%eth0 ::1 1 1\r\n",
    b"PROXY TCP6 1::2::3 ::1 1 1\r\n", b"PROXY TCP6 00000::1 ::1 1 1\r\n",
    "PROXY TCP4 \u0661.1.1.1 1.1.1.1 1 1\r\n".encode(), b"PROXY UNKNOWNS\r\n",
    b"PROXY UNKNOWN\n", b"PROXY UNKNOWN a\rb\r\n", b"PROXY UNKNOWN " + b"x" * 93,
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    SIGNATURE[:-1] + b"\r", v2(0x11, 0x11, INET), v2(0x31, 0x11, INET), v2(0x22, 0x11, INET),
    v2(0x21, 0x41, INET), v2(0x21, 0x13, INET), v2(0x21, 0x11, INET[:-1]),
    v2(0x21, 0x21, INET), v2(0x21, 0x31, INET), v2(0x21, 0x11, b"", 4097),
    v2(0x20, 0x00, b"", 0xFFFF), v2(0x21, 0x11, INET + b"\4"),
    v2(0x21, 0x11, INET + b"\4\0"), v2(0x21, 0x11, INET + b"\4\0\1"),
    v2(0x21, 0x11, INET + tlv(3, bytes(4))), v2(0x21, 0x11, INET + tlv(3, b"")),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), GOOD)
def test_a_valid_header_yields_its_source_and_destination(
    data: bytes, expected: tuple[object, object, bool]
) -> None:
    header = parse(data)
    assert isinstance(header, Header)
    assert (header.source, header.destination, header.local) == expected
    assert header.size == len(data)
    assert parse(data + b"GET / HTTP/1.1\r\n") == header


@pytest.mark.parametrize("data", BAD)
def test_an_invalid_header_is_refused(data: bytes) -> None:
    with pytest.raises(HeaderError):
        parse(data)


@pytest.mark.parametrize("data", [data for data, _ in GOOD])
def test_a_part_of_a_header_asks_for_no_more_than_is_missing(data: bytes) -> None:
    for size in range(len(data)):
        missing = parse(data[:size])
        assert isinstance(missing, int)
        assert 0 < missing <= len(data) - size


def test_the_checksum_is_crc32c() -> None:
    # RFC 3720, B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"123456789") == 0xE3069283


V4S, V6S, PORTS = st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 65535)


@st.composite
def ends(draw: st.DrawFn) -> tuple[str, int]:
    return str(draw(st.one_of(V4S, V6S))), draw(PORTS)


def _mapped(text: str) -> str:
    """An address as a header carries it beside one of the other family."""
    return text if ":" in text else f"::ffff:{text}"


@given(st.sampled_from((1, 2)), ends(), ends())
def test_a_header_that_was_built_is_parsed_back(
    version: int, source: tuple[str, int], destination: tuple[str, int]
) -> None:
    data = build(version, source, destination)
    header = parse(data)
    assert isinstance(header, Header)
    assert (header.size, header.version, header.local) == (len(data), version, False)
    for actual, expected in ((header.source, source), (header.destination, destination)):
        assert isinstance(actual, tuple)
        assert socket.inet_pton(socket.AF_INET6, _mapped(actual[0])) == socket.inet_pton(
            socket.AF_INET6, _mapped(expected[0])
        )
        assert actual[1] == expected[1]
    assert version == 2 or len(data) <= MAX_V1_LINE


@pytest.mark.parametrize("version", [1, 2])
def test_a_client_without_an_address_is_passed_on_as_unknown(version: int) -> None:
    header = parse(build(version, None, None))
    assert isinstance(header, Header)
    assert (header.source, header.local) == (None, False)
    assert parse(build(version, ("1.2.3.4", 5), "/run/x")) == header


def test_version_2_carries_unix_paths_and_the_local_command() -> None:
    header = parse(build(2, "/run/a", "/run/b"))
    assert isinstance(header, Header)
    assert (header.source, header.destination) == ("/run/a", "/run/b")
    local = parse(build_local())
    assert isinstance(local, Header)
    assert local.local


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda rest: SIGNATURE + rest),
        st.binary(max_size=300).map(lambda rest: SIGNATURE + b"\x21\x11\0\x40" + rest),
        st.from_regex(re.compile(rb"PROXY (TCP4|TCP6|UNKNOWN)[ 0-9a-f.:]*\r?\n?", re.DOTALL)),
    )
)
def test_arbitrary_bytes_are_a_header_a_part_of_one_or_refused(data: bytes) -> None:
    try:
        found = parse(data)
    except HeaderError:
        return
    if isinstance(found, Header):
        assert 0 < found.size <= min(len(data), MAX_HEADER)
        # What follows the header changes nothing.
        assert parse(data[: found.size]) == found
        assert parse(data[: found.size] + b"\n" * 9) == found
    else:
        assert 0 < found <= MAX_HEADER


@given(st.sampled_from([data for data, _ in GOOD]), st.data())
def test_a_refusal_does_not_depend_on_how_the_bytes_are_split(
    data: bytes, draw: st.DataObject
) -> None:
    spoiled = bytearray(data)
    spoiled[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    whole = _outcome(bytes(spoiled))
    if isinstance(whole, int):
        return
    parts = {_outcome(bytes(spoiled[:size])) for size in range(len(spoiled))}
    assert {part for part in parts if not isinstance(part, int)} <= {whole, None}
    assert None not in parts or whole is None


def _outcome(data: bytes) -> Header | int | None:
    try:
        return parse(data)
    except HeaderError:
        return None


@pytest.mark.parametrize(
    ("texts", "address", "trusted"),
    [
        ((), "", False),
        ((), "10.0.0.1", False),
        (("unix",), "", True),
        (("unix",), "10.0.0.1", False),
        (("10.0.0.0/8",), "", False),
        (("10.0.0.0/8",), "10.255.0.1", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.0/8",), "::1", False),
        (("::1/128", "unix"), "::1", True),
        (("fe80::/10",), "fe80::1%eth0", True),
    ],
)
def test_only_listed_addresses_and_networks_are_trusted(
    texts: tuple[str, ...], address: str, *, trusted: bool
) -> None:
    assert (address in TrustedProxies(texts)) is trusted


def test_an_ipv4_peer_has_one_address_on_ipv4_and_ipv6_sockets() -> None:
    assert peer_address(("::ffff:10.0.0.1", 1, 0, 0)) == peer_address(("10.0.0.1", 1)) == "10.0.0.1"
    assert peer_address("") == peer_address(None) == ""
