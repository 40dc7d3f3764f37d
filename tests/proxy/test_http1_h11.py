"""Another implementation agrees: what h11 refuses we refuse, what both accept is the same.

h11 is more liberal by design (bare LF, obs-fold, equal lengths repeated), so agreement is
asked for one way only. There is no exception: nothing is known that it refuses and we take.
"""

import h11
from hypothesis import example, given
from hypothesis import strategies as st

from penstock_proxy import http1
from penstock_proxy.errors import BAD_REQUEST, RejectedError
from penstock_proxy.http1 import Framing, RequestLine

METHODS = st.sampled_from([b"GET", b"POST", b"OPTIONS", b"PUT", b"x!", b"GE T", b"", b"G\x00"])
TARGETS = st.sampled_from([b"/", b"/a?b", b"*", b"http://a/b", b"http://b", b"a", b"/\xe4", b"/ "])
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b""])
NAMES = st.sampled_from(
    [
        b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"X-A",
        b"Content_Length", b"content-length ", b" Host", b"", b"X\x00",
    ]
)  # fmt: skip
VALUES = st.sampled_from(
    [
        b"a", b"b", b"0", b"3", b"+3", b"3, 3", b"-1", b"0x3", b"3" * 19, b"3" * 21, b"",
        b"chunked", b"Chunked", b"xchunked", b"chunked, chunked", b"identity", b"chunked;q=1",
        b"close", b"keep-alive", b"100-continue", b"\x00", b"\x0b", b"\r", b"\n", b"\xff",
        b"a\r\n b",
    ]
)  # fmt: skip
SEPARATORS = st.sampled_from([b": ", b":", b" : ", b":\t", b""])
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n "])
GOOD = st.sampled_from(
    [b"Host: a\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"]
)
FIELDS = st.lists(GOOD | st.tuples(NAMES, SEPARATORS, VALUES, ENDS).map(b"".join), max_size=4)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head near to a good one, with a byte or two of it changed now and then."""
    line = b" ".join(draw(st.tuples(METHODS, TARGETS, VERSIONS)))
    head = bytearray(line + b"\r\n" + b"".join(draw(FIELDS)) + b"\r\n")
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=2)):
        head[at % len(head)] = byte
    return bytes(head)


def ours(head: bytes) -> tuple[RequestLine, Framing] | None:
    try:
        line = http1.parse_request_line(head)
        framing = http1.parse_fields(head[line.end :], BAD_REQUEST)
        http1.check_request(line, framing)
    except RejectedError:
        return None
    return line, framing


def body_of(framing: Framing) -> tuple[bytes, bytes]:
    """A body as the framing asks for it: on the wire, and what is meant."""
    if framing.chunked:
        return b"3\r\nabc\r\n0\r\n\r\n", b"abc"
    meant = b"x" * max(0, framing.length)
    return meant, meant


@given(heads())
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n")
@example(b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nX: \x80\xff\t~\r\nHost: a\r\n\r\n")
@example(b"OPTIONS http://a?b HTTP/1.0\r\nX_Y: z\r\n\r\n")
def test_what_we_accept_another_reads_the_same_way(head: bytes) -> None:
    accepted = ours(head)
    if accepted is None:
        return
    line, framing = accepted
    if framing.length > 1000:
        return
    other = h11.Connection(h11.SERVER)
    wire, meant = body_of(framing)
    other.receive_data(head + wire + b"NEXT")
    request = other.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (line.method, line.target)
    assert request.http_version == b"1.%d" % line.minor
    # It writes the one coding that there is in lower case.
    assert list(request.headers) == [
        (name, value.lower() if name == b"transfer-encoding" else value)
        for name, value, _ in framing.lines
    ]
    payload = b""
    while isinstance(event := other.next_event(), h11.Data):
        payload += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (payload, other.trailing_data[0]) == (meant, b"NEXT")
