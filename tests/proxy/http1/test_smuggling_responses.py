"""A worker's bytes are read in one way, and a client never takes a cut response for a whole one.

h11 reads the client's side, so "looks cut" means that another implementation reports it.
"""

import pytest
from tests.proxy.conftest import Harness, Wire
from tests.support.proxy.readings import Reading, ReadingDiffersError, h11_response
from tests.support.smuggling.chunks import BODIES
from tests.support.smuggling.responses import CHUNKED, FORGED, OK, REFUSED

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
GOOD = OK + b"Content-Length: 4\r\n\r\ngood"


def final_response(client: Wire, method: bytes = b"GET") -> Reading:
    """The final response in all that a client got until its connection ended."""
    assert client.lost
    data = client.received()
    return h11_response(data, method, ended=True)


def respond(harness: Harness, request: bytes, response: list[bytes]) -> Wire:
    client = harness.client()
    client.send(request)
    for piece in response:
        harness.worker.send(piece)
    return client


def split(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def serves_another(harness: Harness) -> None:
    """Whatever the worker sent, the next client gets its own response, over a new connection."""
    wires = len(harness.network.wires)
    client = harness.client()
    client.send(GET)
    assert len(harness.network.wires) == wires + 1
    harness.worker.send(GOOD)
    data = client.received()
    assert h11_response(data).body == b"good"


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(("response", "why"), REFUSED.values(), ids=REFUSED)
def test_a_response_of_two_readings_is_a_bad_gateway(
    harness: Harness, response: bytes, why: str, *, bytewise: bool
) -> None:
    client = respond(
        harness, GET, split(response) if bytewise and len(response) < 9999 else [response]
    )
    data = client.received()
    reading = h11_response(data)
    assert (reading.start[0], reading.end) == (b"502", len(data)), why
    assert b"forged" not in data
    assert harness.worker.lost
    serves_another(harness)


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(("body", "why"), BODIES.values(), ids=BODIES)
def test_chunks_of_two_readings_look_cut_to_the_client(
    harness: Harness, body: bytes, why: str, *, bytewise: bool
) -> None:
    client = respond(harness, GET, [CHUNKED, *(split(body) if bytewise else [body])])
    with pytest.raises(ReadingDiffersError, match="peer closed"):
        final_response(client)
    assert harness.worker.lost, why
    serves_another(harness)


REASONS = [b"the worker closed the connection\n", b"the worker broke off\n"]
WHOLE = {
    "length": (GET, GOOD, b"good"),
    "no body": (GET, OK + b"Content-Length: 0\r\n\r\n", b""),
    "chunks": (GET, CHUNKED + b"2;x=y\r\ngo\r\n2\r\nod\r\n0\r\n\r\n", b"good"),
    "chunks and trailers": (GET, CHUNKED + b"4\r\ngood\r\n0\r\nDigest: x\r\n\r\n", b"good"),
    "204": (GET, b"HTTP/1.1 204 No Content\r\nETag: x\r\n\r\n", b""),
    "304": (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
    "HEAD": (HEAD, GOOD[:-4], b""),
    "interim": (GET, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + GOOD, b"good"),
    "HTTP/1.0": (GET, GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), b"good"),
}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(("request_", "response", "body"), WHOLE.values(), ids=WHOLE)
def test_a_response_that_is_cut_anywhere_is_an_error_or_looks_cut(
    harness: Harness, request_: bytes, response: bytes, body: bytes, *, reset: bool
) -> None:
    for at in range(len(response) + 1):
        harness.build()
        # POST: nothing is tried again.
        client = respond(harness, request_.replace(b"GET", b"POST"), [response[:at]] if at else [])
        harness.worker.reset() if reset else harness.worker.send_eof()
        data = client.received()
        method = request_.split(b" ")[0]
        if at < len(response) and b" 502 " not in data:
            assert client.lost
            with pytest.raises(ReadingDiffersError, match="peer closed"):
                h11_response(data, method, ended=True)
        else:
            reading = h11_response(data, method)
            if at < len(response) and method != b"HEAD":
                assert reading.body == REASONS[reset]
            else:
                assert reading.body == body
        client.reset()


def test_a_response_until_close_ends_with_a_last_chunk(harness: Harness) -> None:
    client = respond(harness, GET, [OK + b"\r\ngo", b"od"])
    harness.worker.send_eof()
    data = client.received()
    assert h11_response(data).body == b"good"


def test_a_response_until_close_looks_cut_after_a_reset(
    harness: Harness,
) -> None:
    client = respond(harness, GET, [OK + b"\r\ngo"])
    harness.worker.reset()
    with pytest.raises(ReadingDiffersError, match="peer closed"):
        final_response(client)


TOO_MUCH = {
    "behind a length": (GET, GOOD, False),
    "behind no body": (GET, OK + b"Content-Length: 0\r\n\r\n", False),
    "behind chunks": (GET, CHUNKED + b"4\r\ngood\r\n0\r\n\r\n", False),
    "behind HEAD with a length": (HEAD, GOOD[:-4], False),
    "behind HEAD with chunks": (HEAD, CHUNKED, True),
    "behind HEAD without a word": (HEAD, OK + b"\r\n", False),
    "behind 204": (GET, b"HTTP/1.1 204 No Content\r\n\r\n", False),
    "behind 204 with a length": (
        GET, b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n", True,
    ),
    "behind 204 with chunks": (
        GET, b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", True,
    ),
    "behind 304 with a length": (
        GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", False,
    ),
    "behind 304 with chunks": (
        GET, b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", True,
    ),
    "behind a worker that closes": (
        GET, OK + b"Connection: close\r\nContent-Length: 4\r\n\r\ngood", True,
    ),
    "behind chunks in HTTP/1.0": (
        GET,
        CHUNKED.replace(b"1.1 200 OK", b"1.0 200 OK\r\nConnection: keep-alive")
        + b"4\r\ngood\r\n0\r\n\r\n",
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "response", "never"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_bytes_after_a_response_reach_no_client(
    harness: Harness, request_: bytes, response: bytes, *, never: bool
) -> None:
    """`never`: the connection is given up before anything that follows has even come."""
    method = request_.split(b" ")[0]
    everything = response + FORGED
    for at in range(1, len(everything)):
        harness.build()
        client = respond(harness, request_, [everything[:at]])
        if at >= len(response) and never:
            assert harness.worker.lost
        harness.worker.send(everything[at:])
        assert harness.worker.lost
        data = client.received()
        reading = h11_response(data, method)
        assert reading.end == len(data)
        assert reading.body in (b"", b"good")
        assert b"forged" not in data
        serves_another(harness)


@pytest.mark.parametrize("number", [1, 16])
def test_a_few_interim_responses_get_through(harness: Harness, number: int) -> None:
    client = respond(harness, GET, [b"HTTP/1.1 100 Continue\r\n\r\n" * number + GOOD])
    data = client.received()
    assert data.count(b"HTTP/1.1 100 Continue\r\n\r\n") == number
    assert h11_response(data).body == b"good"


def test_an_interim_response_with_content_length_0_loses_the_field(harness: Harness) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\nLink: x\r\n\r\n"
    client = respond(harness, GET, [early + GOOD])
    assert client.received().startswith(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK"
    )


def test_a_response_before_its_request_answers_no_request(harness: Harness) -> None:
    client = respond(harness, GET, [GOOD])
    client.received()
    harness.worker.send(FORGED)
    client.send(GET)
    assert len(harness.network.wires) == 2
    assert client.received() == b""


def test_a_client_that_did_not_offer_anything_is_not_switched(harness: Harness) -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    offer = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n"
    for request_, response, status in (
        (GET, switch + b"\r\n", b"502"),
        (offer, switch.replace(b"websocket", b"h2c") + b"\r\n", b"502"),
        (offer, switch.replace(b"websocket", b"websocket, h2c") + b"\r\n", b"502"),
        (offer, switch + b"Content-Length: 5\r\n\r\n", b"502"),
        (offer, switch + b"Transfer-Encoding: chunked\r\n\r\n", b"502"),
        (offer.replace(b"1.1", b"1.0"), switch + b"\r\n", b"502"),
        (offer, switch + b"Content-Length: 0\r\n\r\n", b"101"),
    ):
        harness.build()
        client = respond(harness, request_, [response])
        assert client.received().split(b" ")[1] == status
        client.reset()


def test_every_refused_response_names_its_source() -> None:
    assert all(why for _, why in REFUSED.values())
    assert len(REFUSED) > 50
