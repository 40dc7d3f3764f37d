"""However its bytes arrive, an exchange has the same result; a retry never does a request twice.

The tests run a whole `runtime/service`.
The fixture `harness` checks at the end of each test that nothing is left open or counted.
Covers `http/upstream_request`, `http/retried_request`, `http/ended_request`.
Covers `http/upstream_connection`, `http/worker_connection`, `http/context`, `http/downstream`.
"""

from typing import NamedTuple

import pytest
from tests.proxy.conftest import Harness

from penstock_proxy.config import Retries
from penstock_proxy.errors import BAD_REQUEST
from penstock_proxy.http1.chunked import Chunked

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
PUT = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class Message(NamedTuple):
    """A message without its framing."""

    head: bytes
    body: bytes
    trailers: bytes = b""
    rest: bytes = b""
    """Bytes after the last chunk."""


def meaning(data: bytes) -> Message:
    head, end, body = data.partition(b"\r\n\r\n")
    assert end
    if b"\r\nTransfer-Encoding: chunked" not in head:
        return Message(head, body)
    chunked = Chunked(BAD_REQUEST)
    payload = b"".join(chunked.feed(body))
    assert chunked.done
    return Message(head, payload, chunked.trailers, chunked.rest)


def splits(data: bytes) -> list[list[bytes]]:
    """In two pieces at every offset, and byte by byte."""
    two = [[data[:at], data[at:]] for at in range(1, len(data))]
    return [[data], *two, [data[at : at + 1] for at in range(len(data))]]


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


# -- however it arrives


@pytest.mark.parametrize(
    ("request_", "body", "trailers"),
    [
        (GET, b"", b""),
        (b"\r\n" + GET, b"", b""),
        (b"\r\n\r\n\r\n" + GET, b"", b""),
        (POST + b"abc", b"abc", b""),
        (b"GET http://b/c?d HTTP/1.0\r\n\r\n", b"", b""),
        (CHUNKED + b"1;x\r\na\r\n3\r\nbcd\r\n0\r\nA: b\r\nHost: b\r\n\r\n", b"abcd", b"A: b\r\n"),
    ],
)
def test_a_request_may_be_cut_anywhere(
    harness: Harness, request_: bytes, body: bytes, trailers: bytes
) -> None:
    seen = set()
    for pieces in splits(request_):
        harness.build()
        client = harness.client()
        for piece in pieces:
            client.send(piece)
        assert len(harness.network.wires) == 1
        seen.add(meaning(harness.worker.received()))
        harness.worker.send(OK)
        assert meaning(client.received()).body == b"ok"
        client.reset()
    assert {(one.body, one.trailers, one.rest) for one in seen} == {(body, trailers, b"")}
    assert len(seen) == 1


@pytest.mark.parametrize("minor", [b"0", b"1"])
@pytest.mark.parametrize(
    ("method", "response", "body"),
    [
        (b"GET", OK, b"ok"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (
            b"GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n",
            b"ok",
        ),
        (b"GET", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"ok"),
        (b"GET", b"HTTP/1.0 200 OK\r\n\r\nok until the end", b"ok until the end"),
    ],
)
def test_a_response_may_be_cut_anywhere(
    harness: Harness, method: bytes, minor: bytes, response: bytes, body: bytes
) -> None:
    seen = set()
    for pieces in splits(response):
        harness.build()
        client = harness.client()
        client.send(method + b" / HTTP/1." + minor + b"\r\nHost: a\r\n\r\n")
        for piece in pieces:
            harness.worker.send(piece)
        harness.worker.send_eof()
        data = client.received()
        if b" 103 " in response and minor == b"1":
            hints, _, data = data.partition(b"\r\n\r\n")
            assert hints == b"HTTP/1.1 103 Early Hints\r\nLink: x"
        seen.add((meaning(data), client.lost))
        client.reset()
    ((message, closed),) = seen
    assert (message.body, message.rest) == (body, b"")
    assert closed == (minor == b"0")
    assert (b"Connection: close" in message.head) == closed


# -- retries


class Attempt(NamedTuple):
    """A request, the first worker's response to it, and the client's result."""

    request: bytes
    response: bytes
    """Before it resets the connection."""
    status: int
    attempts: int


ATTEMPTS = {
    "GET, no response": Attempt(GET, b"", 200, 2),
    "GET, half a head": Attempt(GET, b"HTTP/1.1 200 O", 200, 2),
    "PUT, no response, its body is kept": Attempt(
        POST.replace(b"POST", b"PUT") + b"abc", b"", 200, 2
    ),
    "GET, after a 1xx": Attempt(GET, b"HTTP/1.1 103 Early\r\n\r\n", 103, 1),
    "GET, in the middle of a response": Attempt(GET, OK[:-1], 200, 1),
    "POST, no response": Attempt(POST + b"abc", b"", 502, 1),
    "PATCH, no response": Attempt(GET.replace(b"GET", b"PATCH"), b"", 502, 1),
    "POST, half a head": Attempt(POST + b"abc", b"HTTP/1.1 200 O", 502, 1),
}


@pytest.mark.parametrize("case", ATTEMPTS.values(), ids=ATTEMPTS)
def test_a_request_on_a_broken_connection_is_retried_if_that_is_safe(
    harness: Harness, case: Attempt
) -> None:
    harness.build(2)
    client = harness.client()
    client.send(case.request)
    asked = harness.worker.received()
    harness.worker.send(case.response)
    harness.worker.reset()
    assert harness.network.dialed == [1, 2][: case.attempts]
    if case.attempts == 2:
        assert harness.worker.received() == asked
        harness.worker.send(OK)
        assert client.received().endswith(b"ok")
    assert status(client.received() or b"- %d" % case.status) == case.status


@pytest.mark.parametrize("kind", ["nonsense", "silence", "a switch"])
@pytest.mark.parametrize(("request_", "dialed"), [(GET, [1, 2]), (POST + b"abc", [1])])
def test_a_bad_response_is_retried_with_another_worker_if_that_is_safe(
    harness: Harness, kind: str, request_: bytes, dialed: list[int]
) -> None:
    harness.build(2, retries=Retries(on=("reset", "timeout")))
    client = harness.client()
    client.send(request_)
    first, asked = harness.worker, harness.worker.received()
    if kind == "silence":
        harness.advance(61.0)
    elif kind == "nonsense":
        first.send(b"SSH-2.0-OpenSSH\r\n\r\n")
    else:
        first.send(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
    assert first.lost
    assert harness.network.dialed == dialed
    assert harness.service.pool.members[0].consecutive_failures == 1
    if len(dialed) == 1:
        assert status(client.received()) == (504 if kind == "silence" else 502)
        return
    assert harness.worker.received() == asked
    harness.worker.send(OK)
    assert client.received() == OK


def test_a_body_beyond_the_replay_buffer_is_not_sent_again(harness: Harness) -> None:
    harness.build(2)
    client = harness.client()
    client.send(PUT % 200_000)
    client.send(b"a" * 100_000)
    harness.worker.reset()
    assert status(client.received()) == 502
    assert client.ended
    assert harness.network.dialed == [1]


@pytest.mark.parametrize("pieces", [[b"a"], [b"a", b"b"], [b"a" * 60_000, b"b"]])
def test_the_beginning_of_a_body_is_kept_to_be_sent_again(
    harness: Harness, pieces: list[bytes]
) -> None:
    harness.build(2)
    client = harness.client()
    client.send(PUT % 65_000)
    for piece in pieces:
        client.send(piece)
    harness.worker.reset()
    assert harness.network.dialed == [1, 2]
    assert harness.worker.received().endswith(b"\r\n\r\n" + b"".join(pieces))
    client.send(b"c" * (65_000 - len(b"".join(pieces))))
    harness.worker.send(OK)
    assert client.received() == OK


def test_many_small_pieces_are_not_kept_to_be_sent_again(harness: Harness) -> None:
    harness.build(2)
    client = harness.client()
    client.send(PUT % 1000)
    for _ in range(100):
        client.send(b"a")
    harness.worker.reset()
    assert status(client.received()) == 502
    assert harness.network.dialed == [1]


@pytest.mark.parametrize("request_", [GET, POST + b"abc", POST])
def test_a_refused_connect_is_retried_with_another_worker_whatever_the_request(
    harness: Harness, request_: bytes
) -> None:
    harness.build(3)
    harness.network.refusing = {1, 2}
    client = harness.client()
    client.send(request_)
    assert harness.network.dialed == [1, 2, 3]
    assert harness.worker.received()
    client.reset()


def test_a_connect_that_all_workers_refuse_is_a_bad_gateway(harness: Harness) -> None:
    harness.build(2)
    harness.network.refusing = {1, 2}
    client = harness.client()
    client.send(GET)
    assert harness.network.dialed == [1, 2]
    assert status(client.received()) == 502
    client.send(GET)
    assert status(client.received()) == 502


def test_a_connection_that_was_closed_while_idle_is_not_a_failure(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK)
    client.received()
    client.send(GET)
    assert len(harness.network.wires) == 1
    harness.worker.reset()
    assert len(harness.network.wires) == 2
    harness.worker.send(OK)
    assert status(client.received()) == 200
    assert harness.service.pool.members[0].consecutive_failures == 0


def test_a_connect_after_a_refusal_is_cancelled_with_its_client(harness: Harness) -> None:
    harness.build(2)
    harness.network.refusing, harness.network.unresponsive = {1}, {2}
    client = harness.client()
    client.send(GET)
    assert harness.network.dialed == [1, 2]
    client.reset()
    assert not harness.network.pending_connects


# -- bad responses


@pytest.mark.parametrize(
    "response",
    [
        b"hello\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17,
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000,
    ],
)
def test_a_response_that_is_not_http_is_a_bad_gateway(harness: Harness, response: bytes) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(response)
    assert b"HTTP/1.1 502 Bad Gateway\r\n" in client.received()
    assert harness.worker.lost


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabX",
    ],
)
def test_a_response_that_breaks_off_never_looks_complete(harness: Harness, response: bytes) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(response)
    harness.worker.send_eof()
    data = client.received()
    assert not data.endswith(b"0\r\n\r\n")
    assert b"502" not in data
    assert client.lost


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "response",
    [OK, b"HTTP/1.1 204 No\r\n\r\n", OK.replace(b"Content-Length: 2", b"Connection: close")],
)
def test_a_connection_with_bytes_left_over_is_not_reused(
    harness: Harness, response: bytes, *, late: bool
) -> None:
    client = harness.client()
    client.send(GET)
    if late:
        harness.worker.send(response)
        harness.worker.send(b"HTTP/1.1 200 OK\r\n\r\nsmuggled")
    else:
        harness.worker.send(response + b"HTTP/1.1 200 OK\r\n\r\nsmuggled")
    if b"close" not in response:
        assert harness.worker.lost
        assert b"smuggled" not in client.received()
        client.send(GET)
        assert len(harness.network.wires) == 2


# -- bad requests, and disconnects


def test_a_malformed_chunk_closes_both_connections(harness: Harness) -> None:
    client = harness.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    client.send(b"zz\r\n")
    assert status(client.received()) == 400
    assert harness.worker.lost
    assert client.ended


def test_a_client_that_disconnects_aborts_its_exchange(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    client.reset()
    assert harness.worker.lost


def test_a_client_that_disconnects_during_the_connect_aborts_it(
    harness: Harness,
) -> None:
    harness.network.unresponsive = {1}
    client = harness.client()
    client.send(GET)
    assert harness.fd_budget.upstreams == 1
    client.reset()
    assert not harness.network.pending_connects
    assert harness.fd_budget.upstreams == 0
