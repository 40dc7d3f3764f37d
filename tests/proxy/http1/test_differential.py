"""h11 and llhttp read what we accept in the same way, however it arrives.

Streams are built from valid messages and parts of known tricks, and changed by a byte or two.
`tests.fuzz.oracle` owns what must hold; the fuzzers there go further from valid messages.
"""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import oracle
from tests.support.proxy.readings import our_request

from penstock_proxy.errors import RejectedError


def mostly(good: list[bytes], bad: list[bytes]) -> st.SearchStrategy[bytes]:
    """One in fifteen is bad, or a stream of several would hardly ever be good."""
    return st.integers(0, 14).flatmap(lambda part: st.sampled_from(good if part else bad))


METHODS = mostly([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"x!"], [b"CONNECT", b"G T", b""])
TARGETS = mostly(
    [b"/", b"/a?b", b"http://a/b", b"HTTP://A", b"//a\\b|"], [b"*", b"http://b", b"a:1", b"/\xe4"]
)
VERSIONS = mostly([b"HTTP/1.1"], [b"HTTP/1.0", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b""])
FIELDS = st.lists(
    st.tuples(
        mostly(
            [b"X-A", b"TE", b"Upgrade", b"Content_Length", b"X-Forwarded-For", b"Trailer", b"X_Y"],
            [
                b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect",
                b"content-length ", b" Host", b"", b"X\x00",
            ],
        ),
        mostly([b": ", b":", b":\t"], [b" : ", b""]),
        mostly(
            [b"a", b"b/1", b"", b"3", b"chunked", b"close", b"upgrade", b"websocket", b"trailers"],
            [
                b"0", b"+3", b"3, 3", b"-1", b"0x3", b"03", b"3" * 19, b"3" * 21, b"chunked\t",
                b"xchunked", b"chunked, chunked", b"identity", b"chunked;q=1", b"keep-alive",
                b"100-continue", b"h2c", b"\x00", b"\x0b", b"\r", b"\n", b"\xff", b"a\r\n b",
                b"te, host",
            ],
        ),
        mostly([b"\r\n"], [b"\n", b"\r", b"\r\n "]),
    ).map(b"".join),
    max_size=3,
)  # fmt: skip
END = mostly([b"\r\n"], [b"\n", b"\r", b"\r\r\n", b"XX"])
EXTENSION = mostly(
    [b"", b";a", b";a=b", b';a="b;\\"c"'], [b";", b" ;a", b"; a", b";a\n", b';a="\r"', b";a=\x00"]
)
CHUNKS = st.lists(
    st.tuples(
        mostly([b"3", b"03"], [b"2", b"4", b"0x3", b"+3", b"3 ", b" 3", b"", b"f" * 16]),
        EXTENSION,
        END,
        st.sampled_from([b"abc", b"\r\n0"]),
        END,
    ).map(b"".join),
    max_size=3,
).map(b"".join)
LAST = st.tuples(
    mostly([b"0", b"000"], [b"", b"-0"]), EXTENSION, END, FIELDS.map(b"".join), END
).map(b"".join)
FRAMED = st.one_of(
    st.just((b"", b"")),
    st.binary(max_size=5).map(lambda body: (b"Content-Length: %d\r\n" % len(body), body)),
    st.tuples(CHUNKS, LAST).map(lambda parts: (b"Transfer-Encoding: chunked\r\n", b"".join(parts))),
)


BENDS = st.integers(0, 3).flatmap(
    lambda quarter: st.lists(
        st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=0 if quarter else 2
    )
)


@st.composite
def bent(draw: st.DrawFn, data: bytes) -> bytes:
    """With a byte or two of it changed now and then."""
    out = bytearray(data)
    for at, byte in draw(BENDS):
        out[at % len(out)] = byte
    return bytes(out)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        line = b" ".join(draw(st.tuples(METHODS, TARGETS, VERSIONS)))
        framing, body = draw(FRAMED)
        fields = draw(FIELDS)
        parts += [line, b"\r\nHost: a\r\n", framing, *fields, b"\r\n", body]
    data = b"".join(parts)
    return draw(bent(data))


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    starts = [b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.1 304 Not", b"HTTP/1.0 200 OK"]
    parts = [draw(st.sampled_from([b"%d" % mode for mode in range(8)]))]
    parts += draw(st.lists(st.just(b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n"), max_size=2))
    framing, body = draw(FRAMED)
    parts += [draw(st.sampled_from(starts)), b"\r\n", framing, *draw(FIELDS), b"\r\n", body]
    data = b"".join(parts)
    return draw(bent(data))


@pytest.fixture(scope="module")
def stage() -> Iterator[oracle.Stage]:
    stage = oracle.Stage()
    yield stage
    stage.close()


@given(requests())
@settings(max_examples=200)
def test_a_clients_bytes_are_read_in_one_way(stage: oracle.Stage, data: bytes) -> None:
    oracle.check_request(stage, data)


@given(responses())
@settings(max_examples=200)
def test_a_workers_bytes_are_read_in_one_way(stage: oracle.Stage, data: bytes) -> None:
    oracle.check_response(stage, data)


@given(requests(), st.lists(st.integers(0, 999), max_size=6))
def test_a_request_is_the_same_however_it_is_cut(
    stage: oracle.Stage, data: bytes, cuts: list[int]
) -> None:
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    whole, cut = oracle.serve(stage, [data]), oracle.serve(stage, pieces)
    assert (whole.received, whole.refused) == (cut.received, cut.refused)


def test_a_third_of_what_is_built_is_good() -> None:
    """If all streams were refused, the other parsers would read nothing."""
    good = []

    @given(requests())
    @settings(max_examples=400, database=None, derandomize=True)
    def build(data: bytes) -> None:
        try:
            good.append(our_request(data) is not None)
        except RejectedError:
            good.append(False)

    build()
    assert sum(good) * 3 > len(good)
