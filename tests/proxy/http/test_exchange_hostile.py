"""A client that means to hurt, or just leaves, costs a bound and nobody else; so does a worker."""

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


def test_who_asks_on_and_on_and_reads_nothing_is_not_read_any_more(harness: Harness) -> None:
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


@pytest.mark.parametrize("reused", [False, True])
def test_a_client_that_leaves_after_its_body_ends_the_workers_exchange(
    harness: Harness, *, reused: bool
) -> None:
    client = harness.client()
    if reused:
        client.send(GET)
        harness.worker.send(OK)
    client.send(POST + b"abc")
    assert client.is_reading()
    client.send_eof()
    assert harness.worker.lost


def test_a_client_that_leaves_the_queue_after_its_body_gives_up_its_place(harness: Harness) -> None:
    harness.build(queue=20.0)
    harness.service.pool.leave(0)
    client = harness.client()
    client.send(POST + b"abc")
    assert len(harness.service.queue) == 1
    client.send_eof()
    assert not harness.service.queue


def test_a_quiet_stream_is_cut_and_its_worker_keeps_its_good_name(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    harness.advance(31.0)
    assert client.lost
    assert harness.service.pool.members[0].consecutive_failures == 0


def test_a_worker_that_never_answers_does_not_keep_it(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.advance(61.0)
    assert status(client.received()) == 504
    assert harness.service.pool.members[0].consecutive_failures == 1


def test_a_connection_that_is_closing_is_nobodys_next_one(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK)
    client.received()
    leaving = harness.worker
    # As uvloop does it: closed in this turn, and told to the protocol in the next one.
    harness.loop.call_soon(partial(client.send, POST + b"abc"))
    leaving.close()
    harness.loop.run()
    assert harness.worker is not leaving
    harness.worker.send(OK)
    assert status(client.received()) == 200


def test_a_worker_that_left_the_rotation_gets_no_connection_kept(harness: Harness) -> None:
    client = harness.client()
    client.send(GET)
    harness.service.pool.leave(0)
    assert harness.service.pool.members[0].state is MemberState.ABSENT
    harness.worker.send(OK)
    assert status(client.received()) == 200
    assert harness.worker.lost


def test_it_is_the_worker_who_was_to_say_continue(harness: Harness) -> None:
    client = harness.client()
    client.send(EXPECT)
    harness.advance(31.0)
    assert not client.received()
    harness.advance(31.0)
    assert status(client.received()) == 504


def test_after_continue_it_is_the_clients_turn(harness: Harness) -> None:
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


@pytest.mark.parametrize("agreed", [b"h2c", b"y", b""])
def test_only_what_was_offered_can_be_switched_to(harness: Harness, agreed: bytes) -> None:
    client = harness.client()
    client.send(GET[:-2] + b"Connection: upgrade\r\nUpgrade: h2c, x\r\n\r\n")
    assert b"\r\nUpgrade: x\r\n" in harness.worker.received()
    harness.worker.send(b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\n" % agreed)
    assert status(client.received()) == 502


def test_at_the_limit_the_next_one_comes_in_as_soon_as_one_leaves(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed: list[int] = []

    class Door:
        def resume(self) -> None:
            resumed.append(harness.service.counters.active)

    monkeypatch.setattr(harness.service.overload, "listeners", Door())
    config = harness.service.config.model_copy(update={"max_connections": 1})
    monkeypatch.setattr(harness.service, "config", config)
    client = harness.client()
    assert harness.service.overload.room() < 1
    harness.service.overload.crowded()
    client.reset()
    assert resumed == [0]
