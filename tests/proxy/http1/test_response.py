"""Hop-by-hop fields are dropped from a response, and decide whether its connection is reused."""

import pytest

from penstock_proxy.errors import BAD_RESPONSE, RejectedError
from penstock_proxy.http1.parser import NO_LENGTH
from penstock_proxy.http1.response import (
    Response,
    ResponseHeads,
    keep_response_trailers,
    parse_response,
)


def test_a_response_keeps_all_but_hop_by_hop_fields() -> None:
    head = (
        b"HTTP/1.0 203 Fine\xe4\r\nServer: x\r\nConnection: X-Mine, keep-alive\r\nx-mine: 1\r\n"
        b"Keep-Alive: timeout=5\r\nContent-Length: 3\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
        b"Proxy-Authenticate: Basic\r\nUpgrade: h2\r\nTrailer: A\r\n\r\n"
    )
    for_client = (
        b"HTTP/1.1 203 Fine\xe4\r\nServer: x\r\nContent-Length: 3\r\n"
        b"Set-Cookie: a\r\nSet-Cookie: b\r\nTrailer: A\r\n"
    )
    assert parse_response(head) == Response(
        status=203,
        minor=0,
        length=3,
        chunked=False,
        close=False,
        max_idle_s=5.0,
        upgrade=b"",
        head=for_client,
        is_simple=True,
        kept=for_client + b"\r\n",
        connection=frozenset({b"x-mine", b"keep-alive"}),
    )


@pytest.mark.parametrize(
    ("field", "max_idle_s"),
    [
        (b"", 60.0),
        (b"Keep-Alive: timeout=5\r\n", 5.0),
        (b"keep-alive: max=7, Timeout = 7\r\n", 7.0),
        (b"Keep-Alive: timeout=0\r\n", 0.001),
        (b"Keep-Alive: timeout=600\r\n", 60.0),
        (b"Keep-Alive: max=5\r\n", 60.0),
        (b"Keep-Alive: notimeout=5\r\n", 60.0),
        (b"Keep-Alive: timeout=5\r\nConnection: close\r\n", 0.0),
    ],
)
def test_keep_alive_limits_how_long_a_connection_may_be_idle(
    field: bytes, max_idle_s: float
) -> None:
    assert parse_response(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n").max_idle_s == max_idle_s


@pytest.mark.parametrize(
    ("head", "close"),
    [
        (b"HTTP/1.1 200 OK\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive, Close\r\n", True),
        (b"HTTP/1.0 200 OK\r\n", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive; x\r\n", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n", True),
    ],
)
def test_connection_decides_whether_a_connection_may_be_reused(head: bytes, *, close: bool) -> None:
    assert parse_response(head + b"\r\n").close is close


def test_transfer_encoding_is_dropped() -> None:
    read = parse_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (read.chunked, read.length, read.head) == (True, NO_LENGTH, b"HTTP/1.1 200 OK\r\n")


def test_a_101_names_its_protocol() -> None:
    head = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    read = parse_response(head)
    assert (read.status, read.upgrade, read.head) == (
        101,
        b"websocket",
        b"HTTP/1.1 101 Switching\r\n",
    )


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\n",
        b"<html>\r\n\r\n",
    ],
)
def test_a_doubtful_response_is_the_workers_fault(head: bytes) -> None:
    responses = ResponseHeads()
    for _ in range(2):
        with pytest.raises(RejectedError) as rejected:
            responses.read(head)
        assert rejected.value.fault is BAD_RESPONSE


@pytest.mark.parametrize("field", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_204_that_announces_a_body_loses_the_field_and_the_connection(field: bytes) -> None:
    answer = parse_response(b"HTTP/1.1 204 No Content\r\n" + field + b"\r\nETag: x\r\n\r\n")

    assert answer.head == b"HTTP/1.1 204 No Content\r\nETag: x\r\n"
    assert answer.close


def test_response_heads_are_cached_within_bounds() -> None:
    responses = ResponseHeads()
    head = b"HTTP/1.1 200 OK\r\nX: %b\r\n\r\n"
    first = responses.read(head % b"0")
    assert responses.read(head % b"0") is first
    for number in range(256):
        responses.read(head % b"%d" % (number + 1))
    assert responses.read(head % b"0") == first
    assert responses.read(head % b"0") is not first
    long = responses.read(head % (b"x" * 5000))
    assert responses.read(head % (b"x" * 5000)) is not long


@pytest.mark.parametrize(
    ("block", "kept"),
    [
        (b"", b""),
        (b"A: b\r\nX-Checksum: 1\r\n", b"A: b\r\nX-Checksum: 1\r\n"),
        (
            b"content-length: 1\r\nTransfer-Encoding: chunked\r\nHost: a\r\nSet-Cookie: b\r\n",
            b"",
        ),
        (
            b"Authorization: c\r\nCookie: d\r\nTrailer: f\r\nConnection: g\r\nHost: h\r\n",
            b"",
        ),
    ],
)
def test_fields_that_belong_into_a_head_are_dropped_from_trailers(
    block: bytes, kept: bytes
) -> None:
    assert keep_response_trailers(block, frozenset()) == kept


def test_a_trailer_that_connection_names_is_dropped() -> None:
    block = b"X-Mine: a\r\nDigest: b\r\n"
    assert keep_response_trailers(block, frozenset({b"x-mine"})) == b"Digest: b\r\n"


@pytest.mark.parametrize(
    ("status", "fields", "kept"),
    [
        (426, b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        (
            426,
            b"Connection: upgrade\r\nUpgrade: a\r\nUpgrade: b/1,\tc\r\n",
            b"Connection: Upgrade\r\nUpgrade: a, b/1,\tc\r\n",
        ),
        (426, b'Upgrade: "a"\r\n', b""),
        (426, b"", b""),
        (200, b"Connection: upgrade\r\nUpgrade: websocket\r\n", b""),
        (401, b"Connection: upgrade\r\nUpgrade: websocket\r\n", b""),
    ],
)
def test_only_a_426_says_what_it_requires(status: int, fields: bytes, kept: bytes) -> None:
    line = b"HTTP/1.1 %d X\r\n" % status
    assert parse_response(line + fields + b"\r\n").head == line + kept


@pytest.mark.parametrize("line", [b"HTTP/1.1 200", b"HTTP/1.0 200 ", b"HTTP/1.4 200"])
def test_the_space_behind_a_status_is_written(line: bytes) -> None:
    assert parse_response(line + b"\r\n\r\n").head == b"HTTP/1.1 200 \r\n"


def test_an_interim_response_says_nothing_of_the_connection() -> None:
    read = parse_response(b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n")
    assert read.head == b"HTTP/1.1 100 Continue\r\n"
