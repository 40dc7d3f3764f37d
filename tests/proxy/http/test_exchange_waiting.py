"""No wait of an exchange is without end, and no side is read faster than the other one writes."""

import pytest
from tests.proxy.conftest import House, Wire

from penstock_proxy.balancing.member_state import MemberState

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


# -- back-pressure


def test_a_body_that_came_with_its_head_does_not_stop_the_next_request(house: House) -> None:
    client = house.client()
    client.send(POST + b"abc")
    house.worker.send(OK)
    house.worker.taken()
    client.send(GET)
    assert house.worker.taken().startswith(b"GET / ")


def test_a_worker_that_stalled_on_the_last_bytes_does_not_stop_the_next_request(
    house: House,
) -> None:
    client = house.client()
    client.send(POST)
    house.worker.stall()
    client.send(b"abc")
    house.worker.flow()
    client.send(b"abc")
    house.worker.send(OK)
    house.worker.taken()
    client.send(GET)
    assert client.is_reading()


def test_a_body_waits_in_the_kernel_while_its_worker_is_dialed(house: House) -> None:
    house.network.silent = {1}
    client = house.client()
    client.send(POST)
    client.send(b"a")
    client.send(b"b")
    assert not client.is_reading()
    (hanging,) = house.network.hanging
    hanging.answer()
    client.send(b"c")
    assert house.worker.taken().endswith(b"\r\n\r\nabc")
    client.reset()


def test_a_stalled_worker_stops_its_client(house: House) -> None:
    client = house.client()
    client.send(POST)
    house.worker.stall()
    assert not client.is_reading()
    house.worker.flow()
    assert client.is_reading()


def test_a_stalled_client_stops_its_worker_and_the_next_request(house: House) -> None:
    client = house.client()
    client.send(GET)
    client.stall()
    assert not house.worker.is_reading()
    client.flow()
    house.worker.send(OK[:-1])
    client.stall()
    client.flow()
    client.stall()
    house.worker.send(b"k")
    client.flow()
    assert client.taken() == OK
    client.send(GET)
    client.send(GET)
    house.worker.send(OK)
    assert status(client.taken()) == 200


# -- time


def test_half_a_head_has_its_time(house: House) -> None:
    client = house.client()
    client.send(b"GET / HT")
    house.pass_time(9.0)
    client.send(b"TP/1.1\r\n")
    house.pass_time(2.0)
    assert status(client.taken()) == 408
    assert client.ended


@pytest.mark.parametrize("served", [False, True])
def test_a_silent_client_is_let_go_without_a_word(house: House, *, served: bool) -> None:
    client = house.client()
    if served:
        client.send(GET)
        house.worker.send(OK)
        client.taken()
    house.pass_time(76.0)
    assert client.taken() == b""
    assert client.lost


def test_half_a_body_has_its_time(house: House) -> None:
    client = house.client()
    client.send(POST)
    client.send(b"a")
    house.pass_time(31.0)
    assert status(client.taken()) == 408
    assert house.worker.lost


def test_a_worker_that_does_not_answer_is_a_gateway_time_out(house: House) -> None:
    client = house.client()
    client.send(GET)
    house.pass_time(59.0)
    assert client.taken() == b""
    house.pass_time(2.0)
    assert status(client.taken()) == 504
    assert house.worker.lost
    assert not client.lost


def test_an_answer_that_stops_in_the_middle_is_cut_off(house: House) -> None:
    client = house.client()
    client.send(GET)
    house.worker.send(OK[:-1])
    house.pass_time(31.0)
    assert client.lost
    assert client.taken() == OK[:-1]


def test_a_client_that_does_not_take_its_answer_is_cut_off(house: House) -> None:
    client = house.client()
    client.send(GET)
    house.worker.send(OK[:-1])
    client.stall()
    house.pass_time(31.0)
    assert house.worker.lost
    assert house.service.counters.errors["send_timeout"] == 1
    house.pass_time(31.0)
    assert client.lost


def test_an_exchange_as_a_whole_has_its_time(house: House) -> None:
    house.open(total=5.0)
    client = house.client()
    client.send(GET)
    house.worker.send(OK[:-1])
    house.pass_time(6.0)
    assert client.lost
    assert house.service.counters.errors["total_timeout"] == 1


def test_a_worker_that_is_silent_when_dialed_is_given_up_for_the_next(house: House) -> None:
    house.open(2)
    house.network.silent = {1}
    client = house.client()
    client.send(GET)
    house.pass_time(6.0)
    assert not house.network.hanging
    assert house.network.dialed == [1, 2]
    house.worker.send(OK)
    assert status(client.taken()) == 200
    assert house.service.counters.errors["connect_timeout"] == 1


# -- nobody there


def test_no_worker_is_told_at_once_or_after_a_wait(house: House) -> None:
    client = house.client()
    house.service.pool.leave(0)
    client.send(GET)
    assert status(client.taken()) == 503
    house.open(queue=2.0)
    house.service.pool.leave(0)
    client = house.client()
    client.send(GET)
    house.pass_time(1.0)
    assert client.taken() == b""
    house.pass_time(2.0)
    assert status(client.taken()) == 503
    assert house.service.counters.rejected["no_worker"] == 1


def test_who_waits_is_served_when_a_worker_comes(house: House) -> None:
    house.open(queue=2.0)
    pool = house.service.pool
    pool.leave(0)
    clients = [house.client() for _ in range(3)]
    for client in clients:
        client.send(GET)
    clients[1].reset()
    pool.join(0)
    pool.checked(pool.members[0], ok=True, now=house.now, why="")
    assert pool.members[0].state is MemberState.UP
    house.loop.run()
    assert len(house.network.wires) == 2
    for wire in house.network.wires:
        wire.send(OK)
    assert [status(client.taken()) for client in clients] == [200, 0, 200]


# -- other protocols


def upgraded(house: House) -> Wire:
    client = house.client()
    client.send(UPGRADE + b"early")
    assert house.worker.taken().count(b"Upgrade: x\r\n") == 1
    house.worker.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nfirst"
    )
    assert client.taken() == (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nfirst"
    )
    return client


def test_after_a_switch_bytes_are_just_bytes(house: House) -> None:
    client = upgraded(house)
    assert house.worker.taken() == b"early"
    client.send(b"\x00GET")
    house.worker.send(b"HTTP/1.1 \xff")
    assert (house.worker.taken(), client.taken()) == (b"\x00GET", b"HTTP/1.1 \xff")
    house.worker.reset()
    assert client.lost
    assert sum(house.service.counters.requests.values()) == 1


def test_a_switch_that_is_declined_is_an_answer_like_any_other(house: House) -> None:
    client = house.client()
    client.send(UPGRADE)
    house.worker.send(OK)
    house.worker.taken()
    assert status(client.taken()) == 200
    client.send(GET)
    assert house.worker.taken().startswith(b"GET / ")


def test_a_client_may_wait_to_be_told_to_go_on(house: House) -> None:
    client = house.client()
    client.send(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    house.worker.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert client.taken() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"abc")
    assert house.worker.taken().endswith(b"abc")
    house.worker.send(OK)
    assert client.taken() == OK


def test_an_early_answer_to_a_body_ends_the_connection_gently(house: House) -> None:
    client = house.client()
    client.send(POST + b"a")
    house.worker.send(OK)
    assert b"Connection: close\r\n" in client.taken()
    assert client.ended
    assert not client.lost
    client.send(b"bc" + GET)
    assert len(house.network.wires) == 1
    assert house.worker.lost
    house.pass_time(3.0)
    assert client.lost


# -- leaving


def test_a_proxy_that_stops_lets_exchanges_finish_and_ends_the_idle(house: House) -> None:
    idle, busy, new = house.client(), house.client(), house.client()
    idle.send(GET)
    house.worker.send(OK)
    busy.send(GET)
    house.service.drain()
    house.loop.run()
    assert (idle.lost, busy.lost, new.lost) == (True, False, False)
    house.worker.send(OK)
    assert b"Connection: close\r\n" in busy.taken()
    house.pass_time(1.5)
    assert (idle.lost, busy.lost, new.lost) == (True, True, True)
    assert house.worker.lost
