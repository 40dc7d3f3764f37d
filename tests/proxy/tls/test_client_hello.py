"""The name in a ClientHello is found however it is split; hostile bytes raise only HelloError."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.tls.client_hello import MAX_HELLO, HelloError, server_name, speaks_tls


def hello_of(name: str | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """What OpenSSL really sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def names(*entries: tuple[int, bytes]) -> bytes:
    return vector(2, b"".join(bytes([kind]) + vector(2, name) for kind, name in entries))


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, body)


def message(*extensions: bytes, tail: bytes = b"", kind: int = 1) -> bytes:
    """A handshake message with these extensions; none at all is the oldest form."""
    body = b"\x03\x03" + bytes(32) + vector(1, bytes(32)) + vector(2, b"\x13\x01") + b"\x01\x00"
    if extensions:
        body += vector(2, b"".join(extensions))
    body += tail
    return bytes([kind]) + vector(3, body)


def records(data: bytes, size: int = 1 << 14) -> bytes:
    return b"".join(
        b"\x16\x03\x01" + vector(2, data[at : at + size]) for at in range(0, len(data), size)
    )


SNI = extension(0, names((0, b"www.example.org")))
GREASE = extension(0x0A0A, b"\x00") + extension(0xFAFA, b"")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_name_is_found_in_what_openssl_sends(version: ssl.TLSVersion) -> None:
    assert server_name(hello_of("Shop.Example.ORG", version)) == "shop.example.org"
    assert server_name(hello_of(None, version)) == ""


def test_an_international_name_is_found_as_it_is_on_the_wire() -> None:
    assert server_name(hello_of("bücher.example")) == "xn--bcher-kva.example"


def test_a_hello_is_not_answered_before_it_is_whole() -> None:
    hello = hello_of("a.example")
    assert {server_name(hello[:size]) for size in range(len(hello))} == {None}
    assert server_name(hello + b"whatever follows") == "a.example"


@pytest.mark.parametrize("size", [30, 50, 100, 500])
def test_a_hello_may_be_cut_into_records(size: int) -> None:
    assert server_name(records(message(GREASE, SNI), size)) == "www.example.org"


@pytest.mark.parametrize(
    ("extensions", "name"),
    [
        ((), ""),
        ((b"",), ""),
        ((GREASE,), ""),
        ((GREASE, SNI, extension(16, b"\x00\x03\x02h2")), "www.example.org"),
        ((extension(0, names((0, b"WWW.Example.org."))),), "www.example.org"),
        ((extension(0, names((7, b"?"), (0, b"a.example"))),), "a.example"),
        ((extension(0, names((7, b"?"))),), ""),
    ],
)
def test_a_valid_hello_gives_its_name(extensions: tuple[bytes, ...], name: str) -> None:
    assert server_name(records(message(*extensions))) == name


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x03\x01",  # SSL 2
        b"\x16\x02\x00\x00\x05",
        b"\x15\x03\x03\x00\x02\x01\x00",  # an alert
        b"\x16\x03\x01\x00\x00",  # a record of nothing
        b"\x16\x03\x01\x40\x01",  # a record that is too long
        records(message(SNI, kind=2)),
        records(message(SNI, tail=b"!")),
        records(message(SNI, SNI)),
        records(b"\x01\xff\xff\xff" + bytes(100)),
        records(message(SNI), 1),  # too many records
        records(message(extension(0, b""))),
        records(message(extension(0, b"\x00\x00"))),
        records(message(extension(0, names((0, b""))))),
        records(message(extension(0, names((0, b"a" * 256))))),
        records(message(extension(0, names((0, b"a"), (0, b"b"))))),
        records(message(extension(0, names((0, b"a")) + b"!"))),
        records(message(extension(0, names((0, b"a\0b"))))),
        records(message(extension(0, names((0, b"b\xc3\xbccher"))))),
        records(message(b"\x00\x00\xff\xff")),
        records(b"\x01\x00\x00\x02\x03\x03"),
        records(b"\x01" + vector(3, bytes(34) + vector(1, bytes(33)))),
        records(b"\x01" + vector(3, bytes(35) + vector(2, b"\x13"))),
        records(b"\x01" + vector(3, bytes(35) + vector(2, b"\x13\x01") + b"\x00")),
        b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xff" + bytes(MAX_HELLO),
    ],
)
def test_what_is_no_valid_hello_is_an_error(data: bytes) -> None:
    with pytest.raises(HelloError):
        server_name(data)


def test_a_hello_that_never_ends_is_given_up() -> None:
    endless = b"\x16\x03\x01\x20\x00\x01\x00\x40\x00" + bytes((8 << 10) - 4)
    endless += b"\x16\x03\x01\x40\x00" + bytes(8 << 10)
    assert server_name(endless[: MAX_HELLO - 1]) is None
    with pytest.raises(HelloError):
        server_name(endless[:MAX_HELLO])


@pytest.mark.parametrize(
    ("data", "is_tls"),
    [(b"", True), (b"\x16", True), (b"\x16\x03", True), (b"\x16\x04", False), (b"G", False)],
)
def test_tls_is_known_by_its_first_bytes(data: bytes, is_tls: bool) -> None:
    assert speaks_tls(data) is is_tls


@given(st.binary(max_size=600))
def test_any_bytes_give_a_name_or_none_or_a_hello_error(data: bytes) -> None:
    for wrapped in (data, records(data), records(b"\x01" + vector(3, data))):
        try:
            name = server_name(wrapped)
        except HelloError:
            continue
        assert name is None or name.isascii()


@given(
    st.integers(0, 1 << 16),
    st.integers(0, 255),
    st.integers(1, 700),
    st.sampled_from([hello_of("a.example"), records(message(GREASE, SNI))]),
)
def test_a_damaged_hello_does_no_harm(place: int, byte: int, size: int, hello: bytes) -> None:
    place %= len(hello)
    damaged = hello[:place] + bytes([byte]) + hello[place + 1 :]
    for data in (damaged, damaged[:size]):
        try:
            name = server_name(data)
        except HelloError:
            continue
        assert name is None or name.isascii()


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_however_records_split_it_the_name_is_the_same(cuts: list[int]) -> None:
    whole = message(GREASE, SNI)
    pieces, at = [], 0
    for cut in cuts:
        if at < len(whole):
            pieces.append(whole[at : at + cut])
            at += cut
    pieces.append(whole[at:])
    data = b"".join(records(piece) for piece in pieces)
    assert server_name(data) == "www.example.org"
