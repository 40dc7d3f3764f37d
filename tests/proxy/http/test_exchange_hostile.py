"""A client or a worker that misbehaves, or disconnects, harms no other one: `exchange`."""

from functools import partial

import pytest
from tests.proxy.conftest import Harness

from penstock_proxy.balancing.member_state import MemberState

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
EXPECT = POST.replace(b"Content-", b"Expect: 100-continue\r\nContent-")


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


@pytest.mark.parametrize("reused", [False, True])
def test_a_client_that_disconnects_after_its_body_aborts_the_workers_request(
    harness: Harness, *, reused: bool
) -> None:
    client = harness.client()
    if reused:
        client.send(GET)
        harness.worker.send(OK)
    client.send(POST + b"abc")
    assert client.is_reading()
    client.reset()
    assert harness.worker.lost


def test_a_client_that_disconnects_after_its_body_leaves_the_queue(harness: Harness) -> None:
    harness.build(queue=20.0)
    harness.service.pool.leave(0)
    client = harness.client()
    client.send(POST + b"abc")
    assert len(harness.service.queue) == 1
    client.reset()
    assert not harness.service.queue


def test_a_quiet_stream_is_cut_and_is_not_its_workers_failure(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    harness.advance(31.0)
    assert client.lost
    assert harness.service.pool.members[0].consecutive_failures == 0


def test_a_worker_that_never_responds_has_failed(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.advance(61.0)
    assert status(client.received()) == 504
    assert harness.service.pool.members[0].consecutive_failures == 1


def test_a_closing_connection_is_not_reused(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK)
    client.received()
    leaving = harness.worker
    # As in uvloop: `close` in one iteration, `connection_lost` in the next one.
    harness.loop.call_soon(partial(client.send, POST + b"abc"))
    leaving.close()
    harness.loop.run()
    assert harness.worker is not leaving
    harness.worker.send(OK)
    assert status(client.received()) == 200


def test_a_connection_to_a_worker_out_of_the_rotation_is_not_kept(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.service.pool.leave(0)
    assert harness.service.pool.members[0].state is MemberState.ABSENT
    harness.worker.send(OK)
    assert status(client.received()) == 200
    assert harness.worker.lost


def test_while_a_100_is_awaited_the_time_out_is_the_workers(harness: Harness) -> None:
    client = harness.client()
    client.send(EXPECT)
    harness.advance(31.0)
    assert not client.received()
    harness.advance(31.0)
    assert status(client.received()) == 504


def test_after_a_100_the_time_out_is_the_clients(harness: Harness) -> None:
    client = harness.client()
    client.send(EXPECT)
    harness.worker.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert status(client.received()) == 100
    harness.advance(31.0)
    assert status(client.received()) == 408


def test_each_fault_is_counted_once(harness: Harness) -> None:
    harness.build(workers=2)
    client = harness.client()
    client.send(GET)
    harness.worker.reset()
    harness.worker.send(OK[:-1])
    harness.worker.reset()
    assert harness.service.counters.errors["worker_reset"] == 2
    # The first one cost nobody an answer.
    assert harness.service.counters.broken_off == 1


def test_at_the_limit_a_listener_resumes_as_soon_as_a_client_disconnects(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed: list[int] = []

    class FakeListeners:
        waiting = 1

        def resume(self) -> None:
            resumed.append(harness.service.counters.active)

    monkeypatch.setattr(harness.service.overload, "listeners", FakeListeners())
    config = harness.service.config.model_copy(update={"max_connections": 1})
    monkeypatch.setattr(harness.service, "config", config)
    client = harness.client()
    assert harness.service.overload.room() < 1
    harness.service.overload.no_room()
    client.reset()
    assert resumed == [0]
