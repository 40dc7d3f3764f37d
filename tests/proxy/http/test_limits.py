"""Whatever a client can make grow has a limit, and the client gets an error response.

The limits are those of `http/client_connection` and `http/worker_connection` too.
Covers `http1/request_body`.
"""

import pytest
from tests.proxy.conftest import Harness, Wire

from penstock_proxy.http1.parser import is_target_longer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
TIMEOUT_S = 30.0
"""`timeouts.body`."""


def post(*fields: str) -> bytes:
    lines = ("POST / HTTP/1.1", "Host: a", *fields, "", "")
    return "\r\n".join(lines).encode()


def status(wire: Wire) -> int:
    """The status of the only response, which must say `Connection: close`."""
    data = wire.received()
    assert data.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in data
    return int(data.split(b" ", 2)[1])


def has_ended(wire: Wire) -> bool:
    return wire.ended or wire.lost


# -- target


@pytest.mark.parametrize("whole", [True, False], ids=["whole head", "part of one"])
@pytest.mark.parametrize("size", [256, 257])
def test_a_target_may_be_as_long_as_its_limit(harness: Harness, size: int, whole: bool) -> None:
    harness.build(target=256)
    client = harness.client()
    target = b"/" + b"a" * (size - 1)
    client.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n" + b"\r\n" * whole)
    if size > 256:
        assert status(client) == 414
        assert harness.service.counters.errors["target_too_long"] == 1
    elif whole:
        assert harness.worker.received().startswith(b"GET " + target)
    else:
        assert client.received() == b""


def test_an_endless_target_is_refused_before_the_head_is_complete(harness: Harness) -> None:
    harness.build(target=256)
    client = harness.client()
    client.send(b"GET /")
    for _ in range(26):
        client.send(b"0123456789")
    assert status(client) == 414


@pytest.mark.parametrize(
    ("data", "beyond"),
    [
        (b"", False),
        (b"GET", False),
        (b"GET " + b"/" * 8, False),
        (b"GET " + b"/" * 9, True),
        (b"GET " + b"/" * 8 + b" HTTP/1.1\r\n", False),
        (b"GET /\r\nHost: a\r\n", False),
        (b"A" * 40, False),
    ],
)
def test_only_the_target_counts_for_the_limit_of_a_target(data: bytes, beyond: bool) -> None:
    assert is_target_longer(data, 8) == beyond


# -- head


def test_a_head_that_drips_times_out(harness: Harness) -> None:
    client = harness.client()
    for byte in b"GET / HTT":
        client.send(bytes([byte]))
        harness.advance(1.0)
    assert client.received() == b""
    client.send(b"P")
    harness.advance(1.5)
    assert status(client) == 408
    assert has_ended(client)


def test_endless_empty_lines_are_refused(harness: Harness) -> None:
    client = harness.client()
    for _ in range(128):
        client.send(b"\r\n" * 4)
    assert client.received() == b""
    client.send(b"\r\n")
    assert status(client) == 400
    assert has_ended(client)


def test_a_megabyte_of_empty_lines_is_refused_and_not_kept(harness: Harness) -> None:
    client = harness.client()
    client.send(b"\r\n" * (1 << 19))
    assert status(client) == 400
    (connection,) = harness.connections
    assert connection.buffer == b""


# -- body


def test_a_content_length_above_the_limit_is_refused_and_reaches_no_worker(
    harness: Harness,
) -> None:
    harness.build(body=10)
    client = harness.client()
    client.send(post("Content-Length: 11", "Expect: 100-continue"))
    assert status(client) == 413
    assert client.ended
    assert harness.network.wires == []
    assert harness.service.counters.requests == {("POST", 413, None): 1}
    assert harness.service.counters.errors["body_too_large"] == 1


def test_bytes_of_a_refused_body_are_not_read_as_a_request(harness: Harness) -> None:
    harness.build(body=10)
    client = harness.client()
    client.send(post("Content-Length: 100") + GET)
    client.send(GET)
    assert status(client) == 413
    assert harness.network.wires == []


@pytest.mark.parametrize("size", [10, 0], ids=["at the limit", "without a limit"])
def test_a_body_may_be_as_large_as_its_limit(harness: Harness, size: int) -> None:
    harness.build(body=size)
    client = harness.client()
    client.send(post("Content-Length: 10") + b"0123456789")
    harness.worker.send(OK)
    assert client.received() == OK


def test_a_body_in_chunks_is_cut_at_its_limit_for_the_worker_as_well(harness: Harness) -> None:
    harness.build(body=10)
    client = harness.client()
    client.send(post("Transfer-Encoding: chunked") + b"5\r\n01234\r\n")
    assert harness.worker.received().endswith(b"5\r\n01234\r\n")
    client.send(b"5\r\n56789\r\n")
    assert client.received() == b""
    client.send(b"1\r\na\r\n0\r\n\r\n")
    assert status(client) == 413
    assert harness.worker.received() == b"5\r\n56789\r\n"
    assert harness.worker.lost
    assert client.ended


def test_a_response_that_has_started_is_cut_if_the_body_is_too_large(harness: Harness) -> None:
    harness.build(body=10)
    client = harness.client()
    client.send(post("Transfer-Encoding: chunked") + b"1\r\na\r\n")
    harness.worker.send(OK[:-1])
    client.send(b"a\r\n0123456789\r\n")
    assert client.received() == OK[:-1].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert client.lost
    assert harness.worker.lost


# -- rate


def drip(harness: Harness, client: Wire, seconds: int, each: bytes) -> None:
    for _ in range(seconds):
        client.send(each)
        harness.advance(1.0)


def test_a_body_that_drips_times_out_after_its_grace(harness: Harness) -> None:
    harness.build(min_rate=100)
    client = harness.client()
    client.send(post("Content-Length: 100000"))
    drip(harness, client, 29, b"x")
    assert client.received() == b""
    drip(harness, client, 3, b"x")
    assert status(client) == 408
    assert harness.worker.lost
    assert harness.service.counters.errors["body_timeout"] == 1


def test_a_body_at_the_minimum_rate_may_take_long(harness: Harness) -> None:
    harness.build(min_rate=100)
    client = harness.client()
    client.send(post("Content-Length: 20000"))
    drip(harness, client, 200, b"x" * 100)
    harness.worker.send(OK)
    assert client.received() == OK


def test_a_pause_is_allowed_if_the_average_is_high_enough(harness: Harness) -> None:
    harness.build(min_rate=100)
    client = harness.client()
    client.send(post("Content-Length: 20000"))
    drip(harness, client, 10, b"x" * 1000)
    harness.advance(TIMEOUT_S - 2)
    client.send(b"x" * 9999)
    harness.advance(TIMEOUT_S - 2)
    client.send(b"x")
    harness.worker.send(OK)
    assert client.received() == OK


def test_time_in_which_the_worker_does_not_read_is_not_counted(harness: Harness) -> None:
    harness.build(min_rate=100)
    client = harness.client()
    client.send(post("Content-Length: 100000"))
    drip(harness, client, 20, b"x")
    harness.worker.stall()
    harness.advance(8.0)
    harness.worker.unstall()
    drip(harness, client, 20, b"x")
    assert client.received() == b""
    drip(harness, client, 12, b"x")
    assert status(client) == 408


def test_without_a_minimum_rate_only_silence_ends_a_body(harness: Harness) -> None:
    harness.build(min_rate=0)
    client = harness.client()
    client.send(post("Content-Length: 100000"))
    drip(harness, client, 120, b"x")
    assert client.received() == b""
    harness.advance(TIMEOUT_S + 1)
    assert status(client) == 408


# -- requests on one connection


def test_the_response_to_the_last_request_says_close_and_no_other_is_read(harness: Harness) -> None:
    harness.build(requests=3)
    client = harness.client()
    for _ in range(2):
        client.send(GET)
        harness.worker.send(OK)
        assert client.received() == OK
    harness.worker.received()
    client.send(GET + GET)
    harness.worker.send(OK)
    assert status(client) == 200
    assert client.ended
    assert harness.worker.received().count(b"GET / ") == 1


def test_without_a_limit_of_requests_a_connection_stays_open(harness: Harness) -> None:
    harness.build(requests=0)
    client = harness.client()
    for _ in range(100):
        client.send(GET)
        harness.worker.send(OK)
        assert client.received() == OK


# -- responses


@pytest.mark.parametrize("fits", [True, False])
def test_a_response_head_may_be_as_long_as_its_limit(harness: Harness, fits: bool) -> None:
    harness.build(response_head=1024)
    client = harness.client()
    client.send(GET)
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: "
    head = start + b"x" * (1020 + (not fits) - len(start)) + b"\r\n\r\n"
    harness.worker.send(head[:500])
    harness.worker.send(head[500:] + b"ok")
    if fits:
        assert client.received() == head + b"ok"
    else:
        assert client.received().startswith(b"HTTP/1.1 502 ")
        assert harness.worker.lost


def test_a_response_head_without_an_end_is_refused(harness: Harness) -> None:
    harness.build(response_head=1024)
    client = harness.client()
    client.send(GET)
    harness.worker.send(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200)
    assert client.received().startswith(b"HTTP/1.1 502 ")
    assert harness.worker.lost


# -- clients that do not read


def test_a_client_that_pipelines_without_end_is_read_no_further(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    for _ in range(100):
        client.send(GET)
    assert not client.is_reading()
    (connection,) = harness.connections
    assert len(connection.buffer) <= 1024 + len(GET)
    assert len(harness.network.wires) == 1


def test_a_client_that_never_reads_a_response_is_cut_off(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    client.stall()
    harness.worker.send(b"x" * 1000)
    harness.advance(TIMEOUT_S + 1)
    harness.advance(1)
    assert client.lost
    assert harness.worker.lost
    assert harness.service.counters.errors["send_timeout"] == 1
