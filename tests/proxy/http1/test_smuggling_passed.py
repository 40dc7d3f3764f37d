"""What is forwarded is exactly one request in every reading, without fields of untrusted clients.

h11 and llhttp read it as a worker would: with the intended body, with the fields that the proxy
sets, and with what follows as a request of its own.
"""

import pytest
from tests.proxy.conftest import Harness
from tests.support.proxy.readings import Reading, h11_request, llhttp_request

CLIENT = "192.0.2.1"
EVIL = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
END = b"0\r\n\r\n"


def head(fields: bytes = b"", start: bytes = b"POST / HTTP/1.1") -> bytes:
    return start + b"\r\nHost: a\r\n" + fields + b"\r\n"


CHUNKED = head(b"Transfer-Encoding: chunked\r\n")
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
PASSED = {
    # name: (sent, method and target, body, trailers)
    "a request for a body": (
        head(b"Content-Length: %d\r\n" % len(SMUGGLED)) + SMUGGLED, b"POST /", SMUGGLED, b"",
    ),
    "a request for chunks": (
        CHUNKED + b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n" + END, b"POST /", SMUGGLED, b"",
    ),
    "chunks for a body": (head(b"Content-Length: 5\r\n") + END, b"POST /", END, b""),
    "chunks in chunks": (CHUNKED + b"5\r\n" + END + b"\r\n" + END, b"POST /", END, b""),
    "GET with a body": (
        head(b"Content-Length: 3\r\n", b"GET / HTTP/1.1") + b"abc", b"GET /", b"abc", b"",
    ),
    "HEAD with a body": (
        head(b"Content-Length: 3\r\n", b"HEAD / HTTP/1.1") + b"abc", b"HEAD /", b"abc", b"",
    ),
    "OPTIONS with a body": (
        head(b"Content-Length: 3\r\n", b"OPTIONS * HTTP/1.1") + b"abc", b"OPTIONS *", b"abc", b"",
    ),
    "DELETE with chunks": (
        head(b"Transfer-Encoding: chunked\r\n", b"DELETE /a HTTP/1.1") + b"1\r\na\r\n" + END,
        b"DELETE /a", b"a", b"",
    ),
    "POST without a word of a body": (head(), b"POST /", b"", b""),
    "no body, and the next at once": (head(b"Content-Length: 0\r\n"), b"POST /", b"", b""),
    "an empty line before it": (b"\r\n" + head(), b"POST /", b"", b""),
    "coding in capitals": (
        head(b"TRANSFER-ENCODING:CHUNKED\r\n") + b"1\r\na\r\n" + END, b"POST /", b"a", b"",
    ),
    "coding between blanks": (
        head(b"Transfer-Encoding:  chunked  \r\n") + b"1\r\na\r\n" + END, b"POST /", b"a", b"",
    ),
    "length behind blanks": (
        head(b"Content-Length:  1  \r\n") + b"a", b"POST /", b"a", b"",
    ),
    "size with zeros": (CHUNKED + b"0001\r\na\r\n000\r\n\r\n", b"POST /", b"a", b""),
    "extensions": (
        CHUNKED + b'1;a;b=c;d="e;\\"\\r\x80"\r\na\r\n0;f\r\n\r\n', b"POST /", b"a", b"",
    ),
    "trailers": (
        CHUNKED + b"1\r\na\r\n0\r\nDigest: x\r\nX-Forwarded-For: b\r\n"
        b"Host: b\r\nX_Y: z\r\nCookie: c\r\n\r\n",
        b"POST /", b"a", b"Digest: x",
    ),
    "names that only look like framing": (
        head(
            b"Content_Length: 9\r\nTransfer_Encoding: chunked\r\nXTransfer-Encoding: chunked\r\n"
            b"Content-Length-: 9\r\nContent-Length0" + b"a" * 256 + b": 9\r\nContent-Length: 1\r\n"
        ) + b"a",  # HAProxy CVE-2021-40346 cut the name that is too long
        b"POST /", b"a", b"",
    ),
    "absolute-form": (
        b"POST http://a/b?c HTTP/1.1\r\nHost: A\r\nContent-Length: 1\r\n\r\na",
        b"POST /b?c", b"a", b"",
    ),
    "absolute-form of https": (
        b"GET https://a?b HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /?b", b"", b"",
    ),
    "absolute-form and asterisk": (
        b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS *", b"", b"",
    ),
    "a target of two slashes": (
        head(start=b"GET //b/@c HTTP/1.1"), b"GET //b/@c", b"", b"",
    ),
    "a target with escaped ends": (
        head(start=b"GET /%0d%0aHost:%20b%00 HTTP/1.1"), b"GET /%0d%0aHost:%20b%00", b"", b"",
    ),
    "HTTP/1.0 kept alive": (
        head(b"Connection: keep-alive\r\nContent-Length: 1\r\n", b"POST / HTTP/1.0") + b"a",
        b"POST /", b"a", b"",
    ),
    "an expectation without a body": (
        head(b"Expect: 100-continue\r\n", b"GET / HTTP/1.1"), b"GET /", b"", b"",
    ),  # Kettle 2025
    "an offer of HTTP/2": (
        head(
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n", b"GET / HTTP/1.1",
        ),
        b"GET /", b"", b"",
    ),  # h2c smuggling, Bishop Fox 2020
}  # fmt: skip


def received(harness: Harness) -> Reading:
    """The one request that a worker got, as two others read it."""
    data = bytes(harness.worker.written)
    first, second = h11_request(data), llhttp_request(data, len(data))
    assert first.end == len(data)
    assert first == second
    return first


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(("sent", "start", "body", "trailers"), PASSED.values(), ids=PASSED)
def test_a_worker_gets_one_request_and_what_follows_as_another(
    harness: Harness, sent: bytes, start: bytes, body: bytes, trailers: bytes, *, bytewise: bool
) -> None:
    client = harness.client()
    stream = sent + EVIL
    for piece in [stream[at : at + 1] for at in range(len(stream))] if bytewise else [stream]:
        client.send(piece)
    got = received(harness)
    assert (b" ".join(got.start[:2]), got.start[2]) == (start, 1)
    assert got.body == body
    assert (
        b"".join(name + b": " + value for name, value in got.trailers).lower() == trailers.lower()
    )
    names = [name for name, _ in got.fields]
    assert names.count(b"host") == 1
    assert not {b"upgrade", b"http2-settings", b"proxy-connection"} & {*names}
    harness.worker.written.clear()
    harness.worker.send(OK)
    assert received(harness).start == (b"GET", b"/next", 1)
    assert b"smuggled HTTP" not in b"".join(bytes(wire.written) for wire in harness.network.wires)


def test_connection_cannot_remove_what_the_proxy_sets(harness: Harness) -> None:
    """Apache CVE-2022-31813; hop-by-hop abuse (Davison, 2019)."""
    plain = harness.client()
    plain.send(head(start=b"GET / HTTP/1.1"))
    ours = dict(received(harness).fields)
    assert {b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-request-id"} <= {*ours}
    for name in {*ours, b"via", b"forwarded", b"x-real-ip", b"x-forwarded-host"} - {b"host"}:
        harness.build()
        client = harness.client()
        options = b"Connection: close, %b\r\n%b: forged\r\n" % (name.upper(), name)
        client.send(head(options, b"GET / HTTP/1.1"))
        got = received(harness).fields
        assert {key for key, _ in got} == {*ours}
        assert b"forged" not in b"".join(value for _, value in got)
        client.reset()


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"Transfer-Encoding", b"Expect"])
def test_connection_cannot_remove_framing(harness: Harness, name: bytes) -> None:
    client = harness.client()
    client.send(head(b"Connection: " + name + b"\r\nContent-Length: 1\r\n") + b"a")
    assert client.received().startswith(b"HTTP/1.1 400 ")
    assert harness.network.dialed == []
