"""A client that means to hurt, or just leaves, costs a bound and nobody else; so does a worker."""

from functools import partial

import pytest
from tests.proxy.conftest import House

from penstock_proxy.balancing.member_state import MemberState

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
EXPECT = POST.replace(b"Content-", b"Expect: 100-continue\r\nContent-")


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


def test_who_asks_on_and_on_and_reads_nothing_is_not_read_any_more(house: House) -> None:
    client = house.client()
    client.send(GET)
    client.stall()
    house.worker.send(OK)
    (asking,) = house.connections
    for _ in range(200):
        client.send(GET)
    assert len(asking.buffer) < 1024 + len(GET)
    assert not client.is_reading()
    house.worker.taken()
    client.flow()
    assert house.worker.taken().startswith(b"GET / ")


@pytest.mark.parametrize("reused", [False, True])
def test_a_client_that_leaves_after_its_body_ends_the_workers_exchange(
    house: House, *, reused: bool
) -> None:
    client = house.client()
    if reused:
        client.send(GET)
        house.worker.send(OK)
    client.send(POST + b"abc")
    assert client.is_reading()
    client.finish()
    assert house.worker.lost


def test_a_client_that_leaves_the_queue_after_its_body_gives_up_its_place(house: House) -> None:
    house.open(queue=20.0)
    house.service.pool.leave(0)
    client = house.client()
    client.send(POST + b"abc")
    assert len(house.service.queue) == 1
    client.finish()
    assert not house.service.queue


def test_a_quiet_stream_is_cut_and_its_worker_keeps_its_good_name(house: House) -> None:
    client = house.client()
    client.send(GET)
    house.worker.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    house.pass_time(31.0)
    assert client.lost
    assert house.service.pool.members[0].consecutive_failures == 0


def test_a_worker_that_never_answers_does_not_keep_it(house: House) -> None:
    client = house.client()
    client.send(GET)
    house.pass_time(61.0)
    assert status(client.taken()) == 504
    assert house.service.pool.members[0].consecutive_failures == 1


def test_a_connection_that_is_closing_is_nobodys_next_one(house: House) -> None:
    client = house.client()
    client.send(GET)
    house.worker.send(OK)
    client.taken()
    leaving = house.worker
    # As uvloop does it: closed in this turn, and told to the protocol in the next one.
    house.loop.call_soon(partial(client.send, POST + b"abc"))
    leaving.close()
    house.loop.run()
    assert house.worker is not leaving
    house.worker.send(OK)
    assert status(client.taken()) == 200


def test_a_worker_that_left_the_rotation_gets_no_connection_kept(house: House) -> None:
    client = house.client()
    client.send(GET)
    house.service.pool.leave(0)
    assert house.service.pool.members[0].state is MemberState.ABSENT
    house.worker.send(OK)
    assert status(client.taken()) == 200
    assert house.worker.lost


def test_it_is_the_worker_who_was_to_say_continue(house: House) -> None:
    client = house.client()
    client.send(EXPECT)
    house.pass_time(31.0)
    assert not client.taken()
    house.pass_time(31.0)
    assert status(client.taken()) == 504


def test_after_continue_it_is_the_clients_turn(house: House) -> None:
    client = house.client()
    client.send(EXPECT)
    house.worker.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert status(client.taken()) == 100
    house.pass_time(31.0)
    assert status(client.taken()) == 408


def test_each_fault_is_counted_once(house: House) -> None:
    house.open(workers=2)
    client = house.client()
    client.send(GET)
    house.worker.reset()
    house.worker.send(OK[:-1])
    house.worker.reset()
    assert house.service.counters.errors["worker_reset"] == 2


@pytest.mark.parametrize("agreed", [b"h2c", b"y", b""])
def test_only_what_was_offered_can_be_switched_to(house: House, agreed: bytes) -> None:
    client = house.client()
    client.send(GET[:-2] + b"Connection: upgrade\r\nUpgrade: h2c, x\r\n\r\n")
    assert b"\r\nUpgrade: x\r\n" in house.worker.taken()
    house.worker.send(b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\n" % agreed)
    assert status(client.taken()) == 502


def test_at_the_limit_the_next_one_comes_in_as_soon_as_one_leaves(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed: list[int] = []

    class Door:
        def resume(self) -> None:
            resumed.append(house.service.counters.active)

    monkeypatch.setattr(house.service.overload, "listeners", Door())
    config = house.service.config.model_copy(update={"max_connections": 1})
    monkeypatch.setattr(house.service, "config", config)
    client = house.client()
    assert house.service.overload.room() < 1
    house.service.overload.no_room()
    client.reset()
    assert resumed == [0]
