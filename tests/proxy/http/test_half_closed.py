"""A client that ends its side behind its requests gets all of its answers, and then the end.

The fixture `harness` checks at the end of each test that nothing is left open or counted.
"""

import pytest
from tests.proxy.conftest import Harness, Wire

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"


def kinds(harness: Harness) -> dict[str, int]:
    return {kind: count for kind, count in harness.service.counters.errors.items() if count}


def requests(harness: Harness) -> dict[int, int]:
    """How many were counted, by status."""
    counted: dict[int, int] = {}
    for (_, status, _), count in harness.service.counters.requests.items():
        counted[status] = counted.get(status, 0) + count
    return counted


def ended(client: Wire) -> bool:
    """Is it closed, with all that was written to it?"""
    return client.lost and client.get_write_buffer_size() == 0


@pytest.mark.parametrize(
    "pieces",
    [
        (GET,),
        (POST + b"abc",),
        (POST, b"abc"),
        (CHUNKED + b"1\r\na\r\n0\r\n\r\n",),
        (b"GET / HTTP/1.0\r\n\r\n",),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",),
    ],
)
def test_a_whole_request_is_answered_and_the_connection_closed(
    harness: Harness, pieces: tuple[bytes, ...]
) -> None:
    client = harness.client()
    for piece in pieces:
        client.send(piece)
    client.send_eof()
    assert not harness.worker.lost
    harness.worker.send(OK)
    assert client.received() == OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert ended(client)
    assert (kinds(harness), requests(harness)) == ({}, {200: 1})


@pytest.mark.parametrize(
    "part", [b"GET / HT", POST, POST + b"ab", CHUNKED + b"1\r\na\r\n", b"\r\n"]
)
def test_a_request_that_will_never_be_whole_is_dropped(harness: Harness, part: bytes) -> None:
    client = harness.client()
    client.send(part)
    client.send_eof()
    assert client.lost
    assert client.received() == b""
    assert all(wire.lost for wire in harness.network.wires)


def test_an_idle_connection_is_closed_at_once(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK)
    client.send_eof()
    assert client.lost
    assert kinds(harness) == {}


@pytest.mark.parametrize("rest", [b"", b"GET / HT", POST + b"ab"])
def test_all_pipelined_requests_are_answered(harness: Harness, rest: bytes) -> None:
    client = harness.client()
    client.send(GET + POST + b"abc" + GET + rest)
    client.send_eof()
    for _ in range(3):
        assert not client.lost
        harness.worker.send(OK)
    assert client.lost
    received = client.received()
    assert received.count(b"HTTP/1.1 200 OK") == 3
    # That the connection is closed can be said only in front of the end.
    assert received.count(b"Connection: close") == (not rest)
    assert requests(harness) == {200: 3} | ({0: 1} if rest.startswith(b"POST") else {})


def test_pipelined_requests_after_one_that_is_refused_are_answered(harness: Harness) -> None:
    harness.build(body=2)
    client = harness.client()
    client.send(GET + POST + b"abc" + GET)
    client.send_eof()
    harness.worker.send(OK)
    # 413 to a request whose body is not read ends the connection, as without an end of file.
    assert client.received().count(b"HTTP/1.1 ") == 2
    assert ended(client)


def test_an_end_in_the_middle_of_an_answer_ends_the_connection_after_it(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK[:-1])
    client.send_eof()
    assert not client.lost
    harness.worker.send(OK[-1:])
    assert client.received() == OK
    assert ended(client)


def test_a_client_that_reads_slowly_gets_the_answers_to_all_it_has_sent(harness: Harness) -> None:
    client = harness.client()
    client.full = True
    client.send(GET)
    harness.worker.send(OK)
    client.send(GET)
    assert client.received() == b""
    client.send_eof()
    assert not client.lost
    client.unstall()
    harness.worker.send(OK)
    assert client.received().count(b"HTTP/1.1 200 OK") == 2
    assert ended(client)


def test_a_client_that_takes_no_answer_does_not_stay(harness: Harness) -> None:
    client = harness.client()
    client.full = True
    client.send(GET)
    harness.worker.send(OK)
    client.send(GET)
    client.send_eof()
    harness.advance(31.0)
    assert client.lost


def test_what_waits_for_a_worker_is_answered(harness: Harness) -> None:
    harness.build(queue=20.0)
    harness.service.pool.leave(0)
    client = harness.client()
    client.send(GET)
    client.send_eof()
    assert len(harness.service.queue) == 1
    harness.advance(21.0)
    assert client.received().startswith(b"HTTP/1.1 503 ")
    assert ended(client)


def test_what_is_tried_again_is_answered(harness: Harness) -> None:
    harness.build(2)
    client = harness.client()
    client.send(GET)
    client.send_eof()
    harness.worker.reset()
    assert len(harness.network.wires) == 2
    harness.worker.send(OK)
    assert client.received().startswith(b"HTTP/1.1 200 ")
    assert ended(client)


def test_a_client_that_is_reset_while_it_waits_has_left(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    client.send_eof()
    client.reset()
    assert harness.worker.lost
    assert kinds(harness) == {"client_gone": 1}


def test_an_end_behind_an_upgrade_goes_to_the_worker(harness: Harness) -> None:
    client = harness.client()
    client.send(UPGRADE + b"early")
    client.send_eof()
    harness.worker.received()
    harness.worker.send(SWITCH)
    assert harness.worker.received() == b"early"
    assert harness.worker.ended
    harness.worker.send(b"late")
    assert client.received() == SWITCH + b"late"
    harness.worker.send_eof()
    assert (client.lost, harness.worker.lost) == (True, True)
    assert kinds(harness) == {}


def test_a_client_of_a_service_that_stops_is_answered(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    client.send_eof()
    harness.service.drain()
    harness.worker.send(OK)
    assert client.received().startswith(b"HTTP/1.1 200 ")
    assert ended(client)
