"""A chunked body is the same however it arrives, and it has only one reading."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.errors import BAD_REQUEST, BAD_RESPONSE, Fault, RejectedError
from penstock_proxy.http1.chunked import MAX_CHUNK_LINE, MAX_TRAILERS, Chunked

END = b"0\r\n\r\n"
Outcome = tuple[bytes, bool, bytes, bytes] | str


def decode(pieces: list[bytes], fault: Fault = BAD_REQUEST) -> Outcome:
    """Payload, whether it is done, trailers and rest; or the reason of the refusal."""
    chunked = Chunked(fault)
    payload = b""
    try:
        for at, piece in enumerate(pieces):
            payload += b"".join(chunked.feed(piece))
            if chunked.done:
                rest = chunked.rest + b"".join(pieces[at + 1 :])
                return payload, True, chunked.trailers, rest
    except RejectedError as rejected:
        return rejected.reason
    return payload, False, b"", b""


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    ("data", "payload", "trailers", "rest"),
    [
        (END, b"", b"", b""),
        (b"3\r\nabc\r\n" + END, b"abc", b"", b""),
        (b"3\r\nabc\r\n" + END + b"GET /", b"abc", b"", b"GET /"),
        (b"00A\r\n0123456789\r\n000\r\n\r\n", b"0123456789", b"", b""),
        (b'1;a;b=c;d="e;\\"\x80";f=g\r\nx\r\n' + END, b"x", b"", b""),
        (b"1\r\nx\r\n0;last\r\n\r\n", b"x", b"", b""),
        (b"2\r\n\r\n\r\n" + END, b"\r\n", b"", b""),
        (b'1 ;\ta\t= b ; c = "; d" ;e\r\nx\r\n' + END, b"x", b"", b""),
        (b"0" * 5 + b"0" * 14 + b"1\r\nx\r\n" + END, b"x", b"", b""),
        (b"0\r\nA: b\r\nC: d\r\n\r\nrest", b"", b"A: b\r\nC: d\r\n", b"rest"),
        (b"1" + b";" + b"x" * (MAX_CHUNK_LINE - 4) + b"\r\nx\r\n" + END, b"x", b"", b""),
    ],
)
def test_a_body_is_decoded(data: bytes, payload: bytes, trailers: bytes, rest: bytes) -> None:
    expected = (payload, True, trailers, rest)
    assert decode([data]) == expected
    assert decode([data[at : at + 1] for at in range(len(data))]) == expected
    for at in range(len(data) + 1):
        assert decode([data[:at], data[at:]]) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\nx\r\n",
        b"0x1\r\nx\r\n",
        b"1_0\r\n",
        b" 1\r\nx\r\n",
        b"1 \r\nx\r\n",
        b"1\nx\r\n",
        b"1\rx\r\n",
        b"1\r\r\nx\r\n",
        b"1;\r\nx\r\n",
        b"1;a=\r\nx\r\n",
        b"1 ;\r\nx\r\n",
        b"1;a b\r\nx\r\n",
        b"1;a = \r\nx\r\n",
        b"1\x0b;a\r\nx\r\n",
        b"1;a=b \r\nx\r\n",
        b"1;a\x00\r\nx\r\n",
        b'1;a="b\r\nx\r\n',
        b"1 a\r\nx\r\n",
        b"f" * 16 + b"\r\n",
        b"0" * 21 + b"\r\n\r\n",
        b"00000" + b"f" * 16 + b"\r\n",
        b"0\r\nA: b\r\n c\r\n\r\n",
        b"0\r\nContent-Length: 1\r\n\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\n",
        b"1\r\nx\rx",
        b"1\r\nx0\r\n\r\n",
        b"1;" + b"x" * (MAX_CHUNK_LINE - 3) + b"\r\nx\r\n",
        b"1;" + b"x" * MAX_CHUNK_LINE,
        b"0\r\nA : b\r\n\r\n",
        b"0\r\n A: b\r\n\r\n",
        b"0\r\nA: b\n\r\n\r\n",
        b"0\r\nA\r\n\r\n",
        b"0\r\n\rA: b\r\n\r\n",
    ],
)
def test_a_body_is_refused_however_it_arrives(data: bytes) -> None:
    reason = decode([data])
    assert isinstance(reason, str)
    for at in range(len(data)):
        assert decode([data[:at], data[at:]]) == reason
    assert decode([data[at : at + 1] for at in range(len(data))]) == reason


@pytest.mark.parametrize(
    ("data", "payload", "trailers"),
    [
        (b"1 \t\r\nx\r\n0 \r\n\r\n", b"x", b""),
        (b"1;a \r\nx\r\n" + END, b"x", b""),
        (
            b"0\r\nA : b\r\n c\r\nContent-Length: 1\r\n\r\n",
            b"",
            b"A: b c\r\nContent-Length: 1\r\n",
        ),
    ],
)
def test_a_workers_body_may_be_padded_and_its_trailers_are_repaired(
    data: bytes, payload: bytes, trailers: bytes
) -> None:
    expected = (payload, True, trailers, b"rest")
    for at in range(len(data) + 1):
        assert decode([data[:at], data[at:] + b"rest"], BAD_RESPONSE) == expected
    assert isinstance(decode([data]), str)


@pytest.mark.parametrize("missing", range(-2, 3))
def test_trailers_end_at_the_same_byte_in_one_piece_and_in_many(missing: int) -> None:
    line = b"A: " + b"b" * (MAX_TRAILERS - 3 - missing)
    data = b"0\r\n" + line + b"\r\n\r\n"
    whole = decode([data])
    assert (whole == "trailers too large") == (missing < 0)
    for at in range(len(data) - 8, len(data) + 1):
        assert decode([data[:at], data[at:]]) == whole


@given(
    st.lists(st.binary(min_size=1, max_size=40)),
    st.lists(st.integers(0, 1000), max_size=8),
    st.sampled_from([b"", b"A: b\r\n"]),
    st.binary(max_size=10),
)
def test_what_was_encoded_is_decoded_again(
    chunks: list[bytes], cuts: list[int], trailers: bytes, rest: bytes
) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    data = body + b"0\r\n" + trailers + b"\r\n" + rest
    assert decode(split(data, cuts)) == (b"".join(chunks), True, trailers, rest)


FRAGMENTS = st.sampled_from(
    [b"0", b"1", b"a", b"f", b"\r\n", b"\r", b"\n", b";", b"=", b'"', b"x", b" ", b"A: b\r\n", END]
)


@given(st.lists(FRAGMENTS, max_size=20).map(b"".join), st.lists(st.integers(0, 200), max_size=6))
def test_pieces_mean_what_the_whole_means(data: bytes, cuts: list[int]) -> None:
    assert decode(split(data, cuts)) == decode([data])


@pytest.mark.parametrize(
    "start",
    [b"Z", b"0x", b"+", b" ", b"1 a", b"1\n", b"1\rx", b"1;\x00", b"0\r\nA: b\n", b"0\r\n A"],
)
def test_what_can_never_become_a_body_is_refused_before_its_line_ends(start: bytes) -> None:
    assert isinstance(decode([start]), str)
