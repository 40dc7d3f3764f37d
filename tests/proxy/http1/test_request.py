"""Hop-by-hop fields are dropped, and a worker gets no forwarding field that a client made up.

Covers `http1/fields`, together with `test_response`.
"""

import pytest

from penstock_proxy.config import Forwarding
from penstock_proxy.errors import HEAD_TOO_LARGE, RejectedError
from penstock_proxy.http1 import parser, request
from penstock_proxy.http1.request import HeaderRewriter, PreparedRequest
from penstock_proxy.http1.request_body import RequestBody


def plain(*trusted: str, most: int = 100) -> HeaderRewriter:
    """Without Via, which has tests of its own."""
    return HeaderRewriter(trusted, most, forwarding=Forwarding(via=""))


def prepare(
    head: bytes, *, trusted: bool = False, using: HeaderRewriter | None = None
) -> PreparedRequest:
    line = parser.parse_request_line(head)
    return (using or plain()).prepare(line, head[line.end :], trusted=trusted)


def sent(fields: bytes, *, trusted: bool = False, start: bytes = b"GET / HTTP/1.1") -> bytes:
    """What a worker gets to see of these fields, without what every request has."""
    out = prepare(start + b"\r\nHost: a\r\n" + fields + b"\r\n", trusted=trusted).fields
    first, _, rest = out.partition(b"\r\n")
    assert first == b"Host: a"
    assert rest.endswith(b"X-Forwarded-For: ")
    return rest.removesuffix(b"X-Forwarded-For: ")


OURS = b"X-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n"

# -- requests


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"A:  b \r\na: c\r\nCookie: d\r\n",
        b"Content-Length: 3\r\n",
        b"Expect: 100-continue\r\n",
        b"XForwarded-For: b\r\n",
    ],
)
def test_end_to_end_fields_reach_the_worker_unchanged(fields: bytes) -> None:
    assert sent(fields) == fields + OURS


@pytest.mark.parametrize(
    "fields",
    [
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n",
        b"Connection: X-Mine\r\nX-Mine: 1\r\nx-mine: 2\r\n",
        b"X-Mine: 1\r\nConnection: a, x-mine\r\n",
        b"Proxy-Connection: keep-alive\r\n",
        b"Proxy-Authorization: Basic eDp5\r\n",
        b"TE: gzip\r\n",
        b"TE: x-trailers, trailers;q=0\r\n",
        b"Expect: ,\r\n",
        b"Upgrade: websocket\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"HTTP2-Settings: AAMAAABk\r\n",
        b"Proxy: http://elsewhere/\r\n",
    ],
)
def test_hop_by_hop_fields_are_dropped(fields: bytes) -> None:
    assert sent(fields) == OURS


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "name", [b"X-Forwarded-For", b"x-forwarded-proto", b"X-Forwarded-Host", b"X-Request-ID"]
)
def test_connection_cannot_remove_what_the_proxy_sets(name: bytes, *, trusted: bool) -> None:
    assert sent(b"Connection: close, " + name + b"\r\n", trusted=trusted) == OURS


@pytest.mark.parametrize("spelling", ["{}", "{}-more", "more-{}"])
def test_connection_removes_only_fields_of_the_whole_name(spelling: str) -> None:
    field = spelling.format("X-Mine").encode() + b": 1\r\n"
    expected = OURS if spelling == "{}" else field + OURS
    assert sent(b"Connection: x-mine\r\n" + field) == expected


def test_te_trailers_is_forwarded() -> None:
    asked = b"TE: trailers\r\nConnection: TE\r\n"
    assert sent(b"TE: gzip, Trailers\r\n") == asked + OURS
    assert sent(b"TE: gzip\r\nTE: trailers\r\nConnection: te\r\n") == asked + OURS


def test_an_upgrade_is_requested_with_fields_of_the_proxys_own() -> None:
    fields = b"Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\nTE: trailers\r\n"
    assert sent(fields) == b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + OURS
    assert sent(fields, start=b"GET / HTTP/1.0") == b"TE: trailers\r\nConnection: TE\r\n" + OURS


@pytest.mark.parametrize(
    ("offers", "left"),
    [
        (b"Upgrade: websocket, h2c\r\n", b"websocket"),
        (b"Upgrade: H2C,websocket\r\n", b"websocket"),
        (b"Upgrade: a ,\t,h2c , b\r\n", b"a, b"),
        (b"Upgrade: h2c\r\nUpgrade: a\r\n", b"a"),
        (b"Upgrade: HTTP/2.0, TLS/1.2, h2, h2c/1, http, a/2\r\n", b"a/2"),
    ],
)
def test_no_list_of_offers_smuggles_http_2(offers: bytes, left: bytes) -> None:
    expected = b"Connection: Upgrade\r\nUpgrade: " + left + b"\r\n" + OURS
    assert sent(b"Connection: upgrade\r\n" + offers) == expected


def test_transfer_encoding_is_written_by_the_proxy_itself() -> None:
    chunked = b"Transfer-Encoding: chunked\r\n"
    assert sent(b"transfer-encoding: CHUNKED\r\n", start=b"PUT / HTTP/1.1") == chunked + OURS


def test_an_expectation_is_written_by_the_proxy_itself() -> None:
    for value in (b"100-Continue", b"\t100-continue , 100-continue", b"100-continue,"):
        assert sent(b"expect:" + value + b"\r\n") == b"Expect: 100-continue\r\n" + OURS


def test_http_1_0_cannot_expect() -> None:
    assert sent(b"Expect: 100-continue\r\n", start=b"GET / HTTP/1.0") == OURS


@pytest.mark.parametrize(
    ("head", "host", "start"),
    [
        (b"GET / HTTP/1.0\r\n", b"", b"Host: localhost\r\nX-Forwarded-Proto: http\r\n"),
        (b"GET http://b:1/ HTTP/1.0\r\n", b"b:1", b"Host: b:1\r\nX-Forwarded-Proto: http\r\n"),
    ],
)
def test_a_worker_always_gets_a_host(head: bytes, host: bytes, start: bytes) -> None:
    prepared = prepare(head + b"\r\n")
    assert prepared.host == host
    assert prepared.fields.startswith(start)
    assert (b"X-Forwarded-Host: " in prepared.fields) == bool(host)


def test_close_and_keep_alive_are_noted() -> None:
    def noted(options: bytes) -> tuple[bool, bool]:
        prepared = prepare(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + options + b"\r\n\r\n")
        return prepared.close, prepared.keep_alive

    assert noted(b"") == (False, False)
    assert noted(b"Close") == (True, False)
    assert noted(b"x, Keep-Alive") == (False, True)
    assert noted(b"Keep-Alive, close") == (True, False)


# -- which forwarding fields are trusted

CLAIMS = [
    b"X-Forwarded-For", b"x-forwarded-proto", b"X-FORWARDED-HOST", b"X-Forwarded-Port",
    b"X-Forwarded-Prefix", b"Forwarded", b"X-Real-IP", b"X-Client-IP", b"True-Client-IP",
    b"X-Forwarded", b"X-Cluster-Client-IP", b"Client-IP", b"CF-Connecting-IP", b"X-Request-ID",
]  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
def test_forwarding_fields_of_an_untrusted_client_are_dropped_in_any_spelling(name: bytes) -> None:
    spellings = {name, name.replace(b"-", b"_"), name.replace(b"-", b"_", 1), name.lower()}
    fields = b"".join(spelling + b": claim\r\n" for spelling in spellings)
    assert sent(fields) == OURS
    assert prepare(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n").request_id == b""


@pytest.mark.parametrize("name", [name for name in CLAIMS if b"-" in name])
def test_other_spellings_of_trusted_fields_are_dropped_from_a_trusted_proxy_too(
    name: bytes,
) -> None:
    assert sent(name.replace(b"-", b"_") + b": claim\r\n", trusted=True) == OURS


def test_a_field_that_connection_removes_is_dropped_from_trailers_too() -> None:
    fields = b"Host: a\r\nTransfer-Encoding: chunked\r\nConnection: x-mine\r\n\r\n"
    body = RequestBody(prepare(b"PUT / HTTP/1.1\r\n" + fields).framing)
    sent_on, _ = body.take(b"0\r\nX-Mine: 1\r\nX-Real-IP: 2\r\nDigest: b\r\n\r\n")
    assert sent_on == b"0\r\nDigest: b\r\n\r\n"


def test_forwarding_fields_of_a_trusted_proxy_are_continued() -> None:
    fields = (
        b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For:\r\n"
        b"X-Forwarded-For: 192.0.2.2, 192.0.2.3\r\n"
        b"X-Forwarded-Proto: http\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: public\r\nX-Forwarded-Host:\r\n"
        b"X-Forwarded-Port: 443\r\nForwarded: for=x\r\nX-Request-ID: abc\r\nA_B: c\r\n"
    )
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n"
    prepared = prepare(head, trusted=True, using=plain("192.0.2.2/31"))
    assert prepared.request_id == b"abc"
    assert prepared.client == "192.0.2.1"
    assert prepared.fields == (
        b"Host: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public\r\n"
        b"X-Forwarded-Port: 443\r\nX-Forwarded-For: 192.0.2.1, 192.0.2.2, 192.0.2.3, "
    )


def test_an_endless_request_id_is_not_taken_over() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: %b\r\n\r\n"
    assert prepare(head % (b"x" * 128), trusted=True).request_id == b"x" * 128
    assert prepare(head % (b"x" * 129), trusted=True).request_id == b""


@pytest.mark.parametrize(
    ("client", "trusted"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("2001:db8::1", True),
        ("fe80::1%eth0", True),
        ("::1", False),
        ("", False),
    ],
)
def test_a_client_is_trusted_by_its_network(client: str, *, trusted: bool) -> None:
    assert plain("10.0.0.0/8", "2001:db8::/32", "fe80::/10").trusts(client) is trusted
    assert not plain().trusts(client)


# -- the cache


def test_a_cached_block_is_used_only_for_clients_of_the_same_trust() -> None:
    using = plain("10.0.0.0/8")
    head = b"GET /%b HTTP/1.1\r\nHost: a\r\nX-Request-ID: b\r\n\r\n"
    first = prepare(head % b"1", using=using)
    assert prepare(head % b"2", using=using) is first
    trusted_first = prepare(head % b"1", using=using, trusted=True)
    assert (trusted_first.request_id, first.request_id) == (b"b", b"")
    assert prepare(head % b"1", using=using) is first


@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.0", b"GET http://a/ HTTP/1.1", b"OPTIONS * HTTP/1.1"],
)
def test_an_unusual_request_is_not_cached(start: bytes) -> None:
    using = plain()
    usual = prepare(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", using=using)
    assert prepare(start + b"\r\nHost: a\r\n\r\n", using=using) is not usual
    with pytest.raises(RejectedError):
        prepare(b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", using=using)


def test_the_cache_is_bounded() -> None:
    using = plain()
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n"
    first = prepare(head % b"0", using=using)
    for number in range(256):
        prepare(head % b"%d" % (number + 1), using=using)
    assert prepare(head % b"0", using=using) == first
    assert prepare(head % b"0", using=using) is not first
    long = prepare(head % (b"x" * 5000), using=using)
    assert prepare(head % (b"x" * 5000), using=using) is not long


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(RejectedError) as rejected:
        prepare(b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n", using=plain(most=1))
    assert rejected.value.fault is HEAD_TOO_LARGE


@pytest.mark.parametrize(
    "name",
    [b"X-Real-IP", b"X_Forwarded_For", b"Forwarded", b"X-Forwarded-Port", b"X-Mine", b"Host"],
)
def test_trailers_may_not_carry_what_fields_may_not(name: bytes) -> None:
    block = name + b": a\r\nDigest: b\r\n"
    assert request.request_trailers(block, frozenset({b"x-mine"})) == b"Digest: b\r\n"


@pytest.mark.parametrize(
    "name", [b"SCRIPT_NAME", b"X_Request_ID", b"X-Forwarded", b"Client-IP", b"CF-Connecting-IP"]
)
def test_an_untrusted_client_sets_neither_its_address_nor_a_variable(name: bytes) -> None:
    assert sent(name + b": a\r\n") == OURS
