"""No known trick of request smuggling gets past the proxy, however its bytes arrive.

What is refused gets one response, reaches no worker whole, and its connection ends: nothing
behind it is ever read as a request.
"""

from collections.abc import Callable

import h11
import pytest
from tests.proxy.conftest import Harness
from tests.support.smuggling.requests import CHUNKS, EVIL, HEADS, REQUESTS, Trick

GET = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answers(data: bytes, *methods: bytes) -> list[int]:
    """The statuses in what a client got, read by another's parser to the very end."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(data)
    statuses = []
    for method in methods:
        client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                statuses.append(event.status_code)
            else:
                assert isinstance(event, h11.Data)
        if client.our_state is h11.DONE and client.their_state is h11.DONE:
            client.start_next_cycle()
    assert client.trailing_data[0] == b""
    return statuses


def is_refused(harness: Harness, trick: Trick, pieces: list[bytes]) -> None:
    client = harness.client()
    for piece in pieces:
        client.send(piece)
    assert answers(client.received(), b"GET") == [trick.status]
    assert client.ended
    # Nothing that comes behind is a request any more.
    client.send(EVIL)
    assert client.received() == b""
    harness.advance(6.0)
    assert client.lost


def split(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("trick", HEADS.values(), ids=HEADS)
def test_a_head_of_two_readings_reaches_no_worker(
    harness: Harness, trick: Trick, *, bytewise: bool
) -> None:
    is_refused(harness, trick, split(trick.data) if bytewise else [trick.data])
    assert harness.network.dialed == []


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("trick", CHUNKS.values(), ids=CHUNKS)
def test_a_body_of_two_readings_looks_cut_to_the_worker(
    harness: Harness, trick: Trick, *, bytewise: bool
) -> None:
    is_refused(harness, trick, split(trick.data) if bytewise else [trick.data])
    assert len(harness.network.wires) == 1
    assert harness.worker.lost
    if not harness.worker.written:
        return  # refused before the worker's connection stood
    worker = h11.Connection(h11.SERVER)
    worker.receive_data(bytes(harness.worker.written))
    worker.receive_data(b"")
    assert isinstance(worker.next_event(), h11.Request)
    with pytest.raises(h11.RemoteProtocolError, match="incomplete"):
        list(iter(worker.next_event, None))


@pytest.mark.parametrize("trick", REQUESTS.values(), ids=REQUESTS)
def test_behind_a_good_request_it_is_refused_and_the_good_one_answered(
    harness: Harness, trick: Trick
) -> None:
    client = harness.client()
    client.send(GET + trick.data)
    assert harness.worker.received().startswith(b"GET /good HTTP/1.1\r\n")
    harness.worker.send(OK)
    assert answers(client.received(), b"GET", b"GET") == [200, trick.status]
    assert client.ended
    assert b"evil HTTP" not in b"".join(bytes(wire.written) for wire in harness.network.wires)


def worker_answers(harness: Harness) -> None:
    harness.worker.send(OK)


def worker_breaks_off(harness: Harness) -> None:
    harness.worker.reset()


def body_takes_too_long(harness: Harness) -> None:
    harness.advance(harness.service.timeouts.body + 1)
    harness.advance(harness.service.timeouts.body + 1)


EARLY = {
    "the worker answers": (worker_answers, 200),
    "the worker breaks off": (worker_breaks_off, 502),
    "the body takes too long": (body_takes_too_long, 408),
    "no worker": (lambda harness: None, 502),
}


@pytest.mark.parametrize("part", [0, 1, len(EVIL) - 1])
@pytest.mark.parametrize(("happens", "status"), EARLY.values(), ids=EARLY)
def test_a_body_that_was_answered_before_its_end_is_never_a_request(
    harness: Harness, happens: Callable[[Harness], None], status: int, part: int
) -> None:
    """CL.0 and pause-based desync (Kettle 2022), client-side desync: the rest is no request."""
    if status == 502 and happens is not worker_breaks_off:
        harness.network.refusing = {1}
    client = harness.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(EVIL))
    if part:
        client.send(EVIL[:part])
    happens(harness)
    assert answers(client.received(), b"POST") == [status]
    client.send(EVIL[part:])
    assert client.received() == b""
    assert len(harness.network.dialed) == 1
    assert all(wire.lost for wire in harness.network.wires)
    # What follows the body is a request only of a client that was told that it may send one.
    client.send(EVIL)
    assert client.received() == b""
    assert len(harness.network.dialed) == 1 + (status == 200)
    if status == 200:
        assert harness.worker.received().startswith(EVIL.partition(b" HTTP/")[0])
        client.reset()
        return
    heads = [bytes(wire.written).count(b"\r\nX-Request-ID: ") for wire in harness.network.wires]
    assert sum(heads) <= 1


def test_a_refused_head_gets_no_body(harness: Harness) -> None:
    client = harness.client()
    client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n")
    assert answers(client.received(), b"HEAD") == [400]


def test_every_trick_names_its_source() -> None:
    assert all(trick.source for trick in REQUESTS.values())
    assert len(REQUESTS) > 200
