"""A disconnect is noticed, back-pressure reaches the other side, and each fault is counted once.

The fixture `harness` checks at the end of each test that nothing is left open or counted.
Covers the end of an exchange (`http/exchange`), and the lines of the access log.
Covers `service/error_log`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.proxy.conftest import Harness, Wire

from penstock_worker.telemetry.access_log import open_log

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


def errors(harness: Harness) -> dict[str, int]:
    return {kind: count for kind, count in harness.service.counters.errors.items() if count}


# -- back-pressure


@pytest.mark.parametrize("early", [b"a", b"ab"])
def test_a_body_is_not_read_on_while_a_new_connection_takes_nothing(
    harness: Harness, early: bytes
) -> None:
    harness.network.unresponsive = {1}
    client = harness.client()
    client.send(POST + early)
    harness.network.full = True
    harness.network.pending_connects[0].answer()
    assert not client.is_reading()
    harness.worker.unstall()
    assert client.is_reading()
    client.send(b"abc"[len(early) :])
    assert harness.worker.received().endswith(b"\r\n\r\nabc")
    client.reset()


def test_a_body_is_not_read_on_while_a_reused_connection_takes_nothing(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK)
    harness.worker.full = True
    client.send(POST + b"a")
    assert not client.is_reading()
    # A 1xx does not mean that the worker reads again.
    harness.worker.send(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert not client.is_reading()
    harness.worker.unstall()
    assert client.is_reading()
    client.reset()


# -- disconnects


def connect_hangs(harness: Harness) -> None:
    """The connect hangs."""
    harness.network.unresponsive = {1}


def request_is_queued(harness: Harness) -> None:
    """The request waits in the queue."""
    harness.service.pool.leave(0)


def worker_is_silent(_harness: Harness) -> None:
    """The worker has the whole request and does not respond yet."""


@pytest.mark.parametrize("situation", [connect_hangs, request_is_queued, worker_is_silent])
@pytest.mark.parametrize(
    "pieces",
    [(GET,), (POST + b"abc",), (POST, b"abc"), (CHUNKED + b"1\r\na\r\n0\r\n\r\n",)],
)
@pytest.mark.parametrize("resets", [False, True])
def test_a_client_that_disconnects_after_its_whole_request_is_noticed(
    harness: Harness,
    situation: Callable[[Harness], None],
    pieces: tuple[bytes, ...],
    *,
    resets: bool,
) -> None:
    # A plain end of its side is enough only where the service says so.
    harness.build(queue=5.0, abort_on_close=not resets)
    situation(harness)
    client = harness.client()
    for piece in pieces:
        client.send(piece)
    # A disconnect is only seen while the client is read.
    assert client.is_reading()
    client.reset() if resets else client.send_eof()
    assert errors(harness) == {"client_gone": 1}
    assert not harness.network.pending_connects
    assert not harness.service.queue
    assert all(wire.lost for wire in harness.network.wires)


# -- how it is counted


def refuses(harness: Harness, client: Wire) -> None:
    harness.network.refusing = {1}
    client.send(GET)


def hangs(harness: Harness, client: Wire) -> None:
    harness.network.unresponsive = {1}
    client.send(GET)
    harness.advance(6.0)


def hangs_until_the_client_leaves(harness: Harness, client: Wire) -> None:
    harness.network.unresponsive = {1}
    client.send(GET)
    client.reset()


def breaks_off(harness: Harness, client: Wire) -> None:
    client.send(POST + b"abc")
    harness.worker.reset()


def breaks_off_in_an_answer(harness: Harness, client: Wire) -> None:
    client.send(GET)
    harness.worker.send(OK[:-1])
    harness.worker.send_eof()


def sends_no_http(harness: Harness, client: Wire) -> None:
    client.send(GET)
    harness.worker.send(b"hello\r\n\r\n")


def is_silent(harness: Harness, client: Wire) -> None:
    client.send(GET)
    harness.advance(61.0)


def is_not_sent_the_body(harness: Harness, client: Wire) -> None:
    client.send(POST)
    harness.advance(31.0)


def is_sent_no_chunks(_harness: Harness, client: Wire) -> None:
    client.send(CHUNKED + b"zz\r\n")


def is_not_read_by_the_client(harness: Harness, client: Wire) -> None:
    client.send(GET)
    harness.worker.send(OK[:-1])
    client.stall()
    harness.advance(31.0)
    harness.advance(31.0)


def loses_its_client(_harness: Harness, client: Wire) -> None:
    client.send(GET)
    client.reset()


def is_out_of_the_rotation(harness: Harness, client: Wire) -> None:
    harness.service.pool.leave(0)
    client.send(GET)


@pytest.mark.parametrize(
    ("worker", "kind"),
    [
        (refuses, "connect_failed"),
        (hangs, "connect_timeout"),
        (hangs_until_the_client_leaves, "client_gone"),
        (breaks_off, "worker_reset"),
        (breaks_off_in_an_answer, "worker_closed"),
        (sends_no_http, "bad_response"),
        (is_silent, "response_timeout"),
        (is_not_sent_the_body, "body_timeout"),
        (is_sent_no_chunks, "bad_request"),
        (is_not_read_by_the_client, "send_timeout"),
        (loses_its_client, "client_gone"),
        (is_out_of_the_rotation, "no_worker"),
    ],
)
def test_a_fault_is_counted_once(
    harness: Harness, worker: Callable[[Harness, Wire], None], kind: str
) -> None:
    worker(harness, harness.client())
    assert errors(harness) == {kind: 1}
    assert sum(harness.service.counters.requests.values()) == 1


def test_the_log_of_a_response_that_is_cut_names_no_status_of_ours(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    breaks_off_in_an_answer(harness, harness.client())
    (message,) = caplog.messages
    assert "GET / from " in message
    assert "response cut off: the worker closed the connection" in message


@pytest.mark.parametrize("queue", [0.0, 2.0])
def test_each_attempt_is_counted_once_and_the_last_failure_is_no_further_fault(
    harness: Harness, queue: float
) -> None:
    harness.build(2, queue=queue)
    harness.network.refusing = {1, 2}
    client = harness.client()
    client.send(GET)
    for _ in range(12):
        harness.advance(0.25)
    tries = len(harness.network.dialed)
    assert status(client.received()) == 502
    assert errors(harness) == {"connect_failed": tries}
    assert not any(harness.service.counters.rejected.values())


# -- the access log


@pytest.mark.parametrize(
    ("ends", "expected"), [("refused", 502), ("no_worker", 503), ("answered", 200), ("gone", 0)]
)
def test_every_exchange_has_one_line_in_the_log_however_it_ends(
    harness: Harness, tmp_path: Path, ends: str, expected: int
) -> None:
    path = tmp_path / "access.log"
    log = harness.service.error_log.access_log = open_log("web", str(path), "json")
    assert log is not None
    if ends == "refused":
        harness.network.refusing.add(1)
    if ends == "no_worker":
        harness.service.pool.leave(0)
    client = harness.client()
    client.send(GET)
    if ends == "answered":
        harness.worker.send(OK)
    if ends == "gone":
        client.reset()
    log.close()
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["status"] == expected


@pytest.mark.parametrize(
    ("begun", "said"),
    [(b"", "503 shutting down"), (OK[:-1], "response cut off: shutting down")],
)
def test_the_log_names_a_status_only_if_the_client_was_sent_it(
    harness: Harness, caplog: pytest.LogCaptureFixture, begun: bytes, said: str
) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(begun)
    (connection,) = harness.service.clients
    connection.cut()
    assert said in caplog.text
    # With a status it is a request that failed, and nothing was broken off.
    assert harness.service.counters.broken_off == bool(begun)
    client.reset()
