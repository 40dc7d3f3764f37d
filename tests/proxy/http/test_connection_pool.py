"""A request gets an idle connection only if that is safe, and no closed one stays in the pool."""

import pytest
from tests.proxy.conftest import Harness, Wire

from penstock_proxy.http.worker_connection import WorkerConnection
from penstock_proxy.net.tcp_info import CLOSED

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
LARGE = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
KEEPS = OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5\r\n\r\n")


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


def served(harness: Harness, client: Wire, request: bytes, answer: bytes = OK) -> int:
    """Send one request; returns the number of connections so far."""
    client.send(request)
    assert harness.worker.received().endswith(request[-3:])
    harness.worker.send(answer)
    assert client.received().startswith(b"HTTP/1.1 200 ")
    return len(harness.network.wires)


@pytest.mark.parametrize(
    ("request_", "idle_s", "connections"),
    [(GET, 4.9, 1), (POST, 3.9, 1), (POST, 4.1, 2), (LARGE, 0.0, 2)],
)
def test_a_workers_keep_alive_timeout_is_respected(
    harness: Harness, request_: bytes, idle_s: float, connections: int
) -> None:
    client = harness.client()
    served(harness, client, GET, KEEPS)
    harness.now += idle_s
    assert served(harness, client, request_) == connections


def test_an_idle_connection_is_closed_at_its_workers_keep_alive_timeout(harness: Harness) -> None:
    client = harness.client()
    served(harness, client, GET, KEEPS)
    harness.advance(4.5)
    assert not harness.worker.lost
    harness.advance(1.0)
    assert harness.worker.lost


def test_after_an_idle_close_a_worker_gets_no_post_at_that_idle_time(
    harness: Harness,
) -> None:
    client = harness.client()
    served(harness, client, GET)
    harness.now += 3.0
    harness.worker.send_eof()
    assert served(harness, client, POST) == 2
    harness.now += 1.5
    assert served(harness, client, POST) == 2
    harness.now += 2.5
    assert served(harness, client, POST) == 3, "a second before it may close"
    harness.now += 2.5
    assert served(harness, client, GET) == 3, "what can be sent again is"
    harness.advance(61.0)
    served(harness, client, GET)
    harness.now += 2.5
    assert served(harness, client, POST) == 4, "it is forgotten after a minute"


def test_another_process_in_the_slot_is_not_taken_for_the_last_one(harness: Harness) -> None:
    client = harness.client()
    served(harness, client, GET)
    harness.worker.send_eof()
    pool = harness.service.pool
    pool.leave(0)
    pool.join(0)
    pool.checked(pool.members[0], ok=True, now=harness.now, reason="")
    assert served(harness, client, GET) == 2
    assert served(harness, client, POST) == 2


@pytest.mark.parametrize("request_", [GET, POST])
def test_a_kept_connection_that_ended_is_not_a_failure_of_its_worker(
    harness: Harness, request_: bytes
) -> None:
    client = harness.client()
    served(harness, client, GET)
    client.send(request_)
    # A wire in memory has no TCP_INFO, so the request may have been read.
    harness.worker.send_eof()
    if request_ is GET:
        assert served_again(harness, client, retries=1)
    else:
        assert status(client.received()) == 502
    assert harness.service.pool.members[0].total_failures == 0


def served_again(harness: Harness, client: Wire, *, retries: int = 0) -> bool:
    counters = harness.service.counters
    assert (counters.stale, counters.retries) == (1, retries)
    assert sum(counters.errors.values()) == retries
    assert len(harness.network.wires) == 2
    harness.worker.send(OK)
    return client.received() == OK


@pytest.mark.parametrize("request_", [GET, POST])
@pytest.mark.parametrize("proof", ["is_unread", "is_unacknowledged"])
def test_a_request_that_was_surely_not_read_is_sent_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, proof: str, request_: bytes
) -> None:
    monkeypatch.setattr(f"penstock_proxy.net.tcp_info.{proof}", lambda *_: True)
    client = harness.client()
    served(harness, client, GET)
    client.send(request_)
    asked = harness.worker.received()
    harness.worker.send_eof()
    assert harness.worker.received() == asked
    assert served_again(harness, client)


def test_the_size_of_a_request_is_what_was_written_of_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def is_unacknowledged(_transport: object, size: int, _error: object) -> bool:
        sizes.append(size)
        return False

    monkeypatch.setattr("penstock_proxy.net.tcp_info.is_unacknowledged", is_unacknowledged)
    for request in (GET, POST, b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"):
        harness.build()
        client = harness.client()
        served(harness, client, GET)
        client.send(request)
        written = harness.worker.received()
        harness.worker.send_eof()
        assert sizes.pop() == len(written) > 0
        client.reset()


def test_a_post_is_not_sent_on_a_connection_that_the_kernel_knows_to_be_closed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = harness.client()
    served(harness, client, GET)
    monkeypatch.setattr("penstock_proxy.net.tcp_info.acknowledged", lambda _: CLOSED)
    assert served(harness, client, POST) == 2
    harness.loop.run()
    assert harness.network.wires[0].lost
    assert harness.service.counters.stale == 0


def test_a_connection_that_was_reset_behind_its_response_is_not_kept(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `connection_lost` reads this from a connection that was reset behind its response.
    monkeypatch.setattr(
        WorkerConnection, "_read_pending", lambda connection: connection.data_received(OK)
    )
    client = harness.client()
    client.send(GET)
    harness.worker.reset_at_once()
    assert client.received() == OK
    assert harness.service.connections.take(harness.service.pool.members[0], harness.now) is None
    assert not harness.service.connections._idle.get(0)


def test_a_connection_is_not_used_beyond_its_own_keep_alive_timeout(harness: Harness) -> None:
    first, other = harness.client(), harness.client()
    first.send(GET)
    other.send(GET)
    long_lived, short_lived = harness.network.wires
    long_lived.send(KEEPS.replace(b"=5", b"=50"))
    # It is idle behind the first one, which is the oldest.
    short_lived.send(KEEPS)
    harness.now += 6.0
    assert served(harness, first, GET) == 2
    assert short_lived.lost
    assert not long_lived.lost


def test_the_oldest_idle_connections_of_all_workers_are_ended_first(harness: Harness) -> None:
    harness.build(workers=3)
    clients = [harness.client() for _ in range(6)]
    for client in clients:
        client.send(GET)
    wires = list(harness.network.wires)
    for wire in (wires[4], wires[0], wires[2], wires[3], wires[5], wires[1]):
        wire.send(OK)
        harness.now += 1.0
    assert harness.service.connections.end_oldest(3) == 3
    harness.loop.run()
    assert [wire.lost for wire in wires] == [True, False, True, False, True, False]
    assert harness.service.connections.end_oldest(10) == 3
    assert harness.service.connections.end_oldest(1) == 0
