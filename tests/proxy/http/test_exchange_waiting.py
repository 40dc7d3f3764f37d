"""Every wait of an exchange has a time-out, and no side is read faster than the other writes."""

from tests.proxy.conftest import Harness

from penstock_proxy.balancing.member_state import MemberState

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


# -- back-pressure


def test_a_body_that_came_with_its_head_does_not_stop_the_next_request(harness: Harness) -> None:
    client = harness.client()
    client.send(POST + b"abc")
    harness.worker.send(OK)
    harness.worker.received()
    client.send(GET)
    assert harness.worker.received().startswith(b"GET / ")


def test_a_worker_that_stalled_on_the_last_bytes_does_not_stop_the_next_request(
    harness: Harness,
) -> None:
    client = harness.client()
    client.send(POST)
    harness.worker.stall()
    client.send(b"abc")
    harness.worker.unstall()
    client.send(b"abc")
    harness.worker.send(OK)
    harness.worker.received()
    client.send(GET)
    assert client.is_reading()


def test_a_body_waits_in_the_kernel_during_the_connect(harness: Harness) -> None:
    harness.network.unresponsive = {1}
    client = harness.client()
    client.send(POST)
    client.send(b"a")
    client.send(b"b")
    assert not client.is_reading()
    (hanging,) = harness.network.pending_connects
    hanging.answer()
    client.send(b"c")
    assert harness.worker.received().endswith(b"\r\n\r\nabc")
    client.reset()


def test_a_stalled_worker_pauses_its_client(harness: Harness) -> None:
    client = harness.client()
    client.send(POST)
    harness.worker.stall()
    assert not client.is_reading()
    harness.worker.unstall()
    assert client.is_reading()


def test_a_stalled_client_pauses_its_worker_and_the_next_request(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    client.stall()
    assert not harness.worker.is_reading()
    client.unstall()
    harness.worker.send(OK[:-1])
    client.stall()
    client.unstall()
    client.stall()
    harness.worker.send(b"k")
    client.unstall()
    assert client.received() == OK
    client.send(GET)
    client.send(GET)
    harness.worker.send(OK)
    assert status(client.received()) == 200


# -- time-outs


def test_an_incomplete_body_times_out(harness: Harness) -> None:
    client = harness.client()
    client.send(POST)
    client.send(b"a")
    harness.advance(31.0)
    assert status(client.received()) == 408
    assert harness.worker.lost


def test_a_worker_that_does_not_respond_is_a_gateway_time_out(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.advance(59.0)
    assert client.received() == b""
    harness.advance(2.0)
    assert status(client.received()) == 504
    assert harness.worker.lost
    assert not client.lost


def test_a_response_that_stops_in_the_middle_is_cut_off(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK[:-1])
    harness.advance(31.0)
    assert client.lost
    assert client.received() == OK[:-1]


def test_a_client_that_does_not_read_its_response_is_cut_off(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK[:-1])
    client.stall()
    harness.advance(31.0)
    assert harness.worker.lost
    assert harness.service.counters.errors["send_timeout"] == 1
    assert harness.service.counters.broken_off == 0
    harness.advance(31.0)
    assert client.lost


def test_an_exchange_as_a_whole_times_out(harness: Harness) -> None:
    harness.build(total=5.0)
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK[:-1])
    harness.advance(6.0)
    assert client.lost
    assert harness.service.counters.errors["total_timeout"] == 1


def test_a_connect_that_times_out_leads_to_the_next_worker(harness: Harness) -> None:
    harness.build(2)
    harness.network.unresponsive = {1}
    client = harness.client()
    client.send(GET)
    harness.advance(6.0)
    assert not harness.network.pending_connects
    assert harness.network.dialed == [1, 2]
    harness.worker.send(OK)
    assert status(client.received()) == 200
    assert harness.service.counters.errors["connect_timeout"] == 1


# -- without a worker


def test_without_a_worker_a_503_is_sent_at_once_or_after_the_queues_time_out(
    harness: Harness,
) -> None:
    client = harness.client()
    harness.service.pool.leave(0)
    client.send(GET)
    assert status(client.received()) == 503
    harness.build(queue=2.0)
    harness.service.pool.leave(0)
    client = harness.client()
    client.send(GET)
    harness.advance(1.0)
    assert client.received() == b""
    harness.advance(2.0)
    assert status(client.received()) == 503
    assert harness.service.counters.rejected["no_worker"] == 1


def test_waiting_requests_are_served_when_a_worker_joins(harness: Harness) -> None:
    harness.build(queue=2.0)
    pool = harness.service.pool
    pool.leave(0)
    clients = [harness.client() for _ in range(3)]
    for client in clients:
        client.send(GET)
    clients[1].reset()
    pool.join(0)
    pool.checked(pool.members[0], ok=True, now=harness.now, reason="")
    assert pool.members[0].state is MemberState.UP
    harness.loop.run()
    assert len(harness.network.wires) == 2
    for wire in harness.network.wires:
        wire.send(OK)
    assert [status(client.received()) for client in clients] == [200, 0, 200]


# -- 100 Continue


def test_a_client_may_wait_for_a_100(harness: Harness) -> None:
    client = harness.client()
    client.send(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    harness.worker.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert client.received() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"abc")
    assert harness.worker.received().endswith(b"abc")
    harness.worker.send(OK)
    assert client.received() == OK
