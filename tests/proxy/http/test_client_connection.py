"""Requests of one connection are served in order, and a closing connection loses no response.

The fixture `harness` checks at the end of each test that nothing is left open or counted.
`test_limits` proves the limits of a client connection.
Covers `http/client_control`.
"""

from collections.abc import Iterator

import pytest
from tests.proxy.conftest import Harness

from penstock_proxy.listener.listeners import Listeners
from penstock_worker.net.stream import Stream

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"


def splits(data: bytes) -> list[list[bytes]]:
    """In two pieces at every offset, and byte by byte."""
    two = [[data[:at], data[at:]] for at in range(1, len(data))]
    return [[data], *two, [data[at : at + 1] for at in range(len(data))]]


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


def errors(harness: Harness) -> dict[str, int]:
    return {kind: count for kind, count in harness.service.counters.errors.items() if count}


def test_pipelined_requests_are_answered_in_order_one_at_a_time(harness: Harness) -> None:
    ahead = b"".join(
        (
            b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            b"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET /4 HTTP/1.1\r\nHost: a\r\n\r\n",
        )
    )
    for pieces in splits(ahead):
        harness.build()
        client = harness.client()
        for piece in pieces:
            client.send(piece)
        for turn in (b"1", b"2", b"3", b"4"):
            asked = harness.worker.received()
            assert asked.split(b" ")[1] == b"/" + turn
            assert asked.count(b" HTTP/1.1\r\n") == 1
            harness.worker.send(OK.replace(b"ok", b"o" + turn))
            assert client.received().endswith(b"o" + turn)
        assert len(harness.network.wires) == 1
        client.reset()


def test_pipelined_requests_stay_in_the_kernel_beyond_the_size_of_a_head(harness: Harness) -> None:
    client = harness.client()
    for _ in range(100):
        client.send(GET)
    assert not client.is_reading()
    for _ in range(100):
        harness.worker.send(OK)
    assert client.is_reading()
    assert client.received().count(b"200 OK") == 100


def test_empty_lines_are_skipped_up_to_the_size_of_a_head(harness: Harness) -> None:
    client = harness.client()
    client.send(b"\r\n" * 512 + GET)
    harness.worker.send(OK)
    assert status(client.received()) == 200


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/1.1\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1024, 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (GET.replace(b"\r\n\r\n", b"\r\nExpect: x\r\n\r\n"), 417),
    ],
)
def test_what_is_refused_reaches_no_worker(harness: Harness, sent: bytes, expected: int) -> None:
    client = harness.client()
    client.send(sent)
    assert status(client.received()) == expected
    assert client.ended
    client.send(GET)
    assert client.received() == b""
    assert harness.network.dialed == []
    client.send_eof()
    assert client.lost


def test_a_client_that_reads_no_error_responses_gets_no_more_of_them(harness: Harness) -> None:
    harness.service.pool.leave(0)
    client = harness.client()
    (protocol,) = harness.connections
    client.full = True
    for _ in range(1000):
        client.send(GET)
    assert errors(harness) == {"no_worker": 1}
    assert not client.is_reading()
    assert len(protocol.buffer) < 1024 + len(GET)
    client.unstall()
    assert client.is_reading()
    assert errors(harness) == {"no_worker": 1000}


class Queue(Listeners):
    """A listener with one client in its accept queue, which is accepted during the drain."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def resume(self) -> None:
        pass

    def look(self, *_: object) -> int:
        return 0

    def draining(self) -> Iterator[None]:
        yield
        self._harness.service.filter_chain.first_filter(Stream(-1, 0), ("192.0.2.1", 5000))


@pytest.mark.parametrize("speaks", [False, True])
def test_a_client_that_is_accepted_during_a_drain_must_send_at_once(
    harness: Harness, *, speaks: bool
) -> None:
    harness.service.listeners = Queue(harness)
    harness.service.drain()
    harness.loop.run()
    (client,) = harness.network.wires
    if speaks:
        client.send(GET)
    harness.advance(1.75)
    assert client.lost is not speaks
    if speaks:
        harness.worker.send(OK)
        assert b"Connection: close\r\n" in client.received()


def test_a_client_that_pipelines_and_does_not_read_is_not_read_any_more(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    client.stall()
    harness.worker.send(OK)
    (asking,) = harness.connections
    for _ in range(200):
        client.send(GET)
    assert len(asking.buffer) < 1024 + len(GET)
    assert not client.is_reading()
    harness.worker.received()
    client.unstall()
    assert harness.worker.received().startswith(b"GET / ")


def test_an_incomplete_head_times_out(harness: Harness) -> None:
    client = harness.client()
    client.send(b"GET / HT")
    harness.advance(9.0)
    client.send(b"TP/1.1\r\n")
    harness.advance(2.0)
    assert status(client.received()) == 408
    assert client.ended


@pytest.mark.parametrize("served", [False, True])
def test_an_idle_client_is_closed_without_a_response(harness: Harness, *, served: bool) -> None:
    client = harness.client()
    if served:
        client.send(GET)
        harness.worker.send(OK)
        client.received()
    harness.advance(76.0)
    assert client.received() == b""
    assert client.lost


def test_a_draining_proxy_lets_exchanges_finish_and_closes_idle_connections(
    harness: Harness,
) -> None:
    idle, busy, new = harness.client(), harness.client(), harness.client()
    idle.send(GET)
    harness.worker.send(OK)
    busy.send(GET)
    harness.service.drain()
    harness.loop.run()
    assert (idle.lost, busy.lost, new.lost) == (True, False, False)
    harness.worker.send(OK)
    assert b"Connection: close\r\n" in busy.received()
    harness.advance(1.5)
    assert (idle.lost, busy.lost, new.lost) == (True, True, True)
    assert harness.worker.lost


def test_a_client_that_does_not_take_the_end_of_its_answer_is_cut_in_time(
    harness: Harness,
) -> None:
    client = harness.client()
    client.send(GET)
    client.full = True
    harness.worker.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert harness.connections[0].exchange is None
    harness.advance(29.0)
    assert not client.lost
    harness.advance(2.0)
    assert client.lost


def test_a_client_that_takes_the_end_of_its_answer_late_is_kept_alive(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    client.full = True
    harness.worker.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    harness.advance(20.0)
    client.unstall()
    harness.advance(74.0)
    assert not client.lost
    harness.advance(2.0)
    assert client.lost
