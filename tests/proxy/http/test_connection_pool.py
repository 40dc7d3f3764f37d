"""Which kept connection carries which request, and that none stays that is gone."""

import pytest
from tests.proxy.conftest import House, Wire

from penstock_proxy.http.worker_connection import WorkerConnection
from penstock_proxy.net.tcp_info import CLOSED

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
LARGE = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
KEEPS = OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5\r\n\r\n")


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


def served(house: House, client: Wire, request: bytes, answer: bytes = OK) -> int:
    """Ask once; over how many connections so far?"""
    client.send(request)
    assert house.worker.taken().endswith(request[-3:])
    house.worker.send(answer)
    assert client.taken().startswith(b"HTTP/1.1 200 ")
    return len(house.network.wires)


@pytest.mark.parametrize(
    ("request_", "idle_s", "connections"),
    [(GET, 4.9, 1), (POST, 3.9, 1), (POST, 4.1, 2), (LARGE, 0.0, 2)],
)
def test_a_workers_word_on_how_long_it_keeps_a_connection_is_believed(
    house: House, request_: bytes, idle_s: float, connections: int
) -> None:
    client = house.client()
    served(house, client, GET, KEEPS)
    house.now += idle_s
    assert served(house, client, request_) == connections


def test_a_connection_is_let_go_when_its_worker_is_about_to(house: House) -> None:
    client = house.client()
    served(house, client, GET, KEEPS)
    house.pass_time(4.5)
    assert not house.worker.lost
    house.pass_time(1.0)
    assert house.worker.lost


def test_a_worker_that_was_seen_to_close_after_a_while_gets_no_post_so_late(
    house: House,
) -> None:
    client = house.client()
    served(house, client, GET)
    house.now += 3.0
    house.worker.finish()
    assert served(house, client, POST) == 2
    house.now += 1.5
    assert served(house, client, POST) == 2
    house.now += 2.5
    assert served(house, client, POST) == 3, "a second before it may close"
    house.now += 2.5
    assert served(house, client, GET) == 3, "what can be sent again is"
    house.pass_time(61.0)
    served(house, client, GET)
    house.now += 2.5
    assert served(house, client, POST) == 4, "it is forgotten after a minute"


def test_another_process_in_the_slot_is_not_taken_for_the_last_one(house: House) -> None:
    client = house.client()
    served(house, client, GET)
    house.worker.finish()
    pool = house.service.pool
    pool.leave(0)
    pool.join(0)
    pool.checked(pool.members[0], ok=True, now=house.now, why="")
    assert served(house, client, GET) == 2
    assert served(house, client, POST) == 2


@pytest.mark.parametrize("request_", [GET, POST])
def test_the_end_of_a_kept_connection_is_nobodys_failure(house: House, request_: bytes) -> None:
    client = house.client()
    served(house, client, GET)
    client.send(request_)
    house.worker.finish()
    if request_ is GET:
        assert served_again(house, client)
    else:
        # Nothing is known of a wire in memory, so it may have been read.
        assert status(client.taken()) == 502


def served_again(house: House, client: Wire) -> bool:
    counters = house.service.counters
    assert (counters.stale, counters.retries, sum(counters.errors.values())) == (1, 0, 0)
    assert len(house.network.wires) == 2
    house.worker.send(OK)
    return client.taken() == OK


def test_a_post_that_was_surely_not_read_is_sent_anew(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock_proxy.net.tcp_info.is_unread", lambda *_: True)
    client = house.client()
    served(house, client, GET)
    client.send(POST)
    house.worker.finish()
    assert house.worker.taken().endswith(b"\r\n\r\nabc")
    assert served_again(house, client)


def test_a_post_is_not_sent_on_what_the_kernel_knows_to_have_ended(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = house.client()
    served(house, client, GET)
    monkeypatch.setattr("penstock_proxy.net.tcp_info.acknowledged", lambda _: CLOSED)
    assert served(house, client, POST) == 2
    house.loop.run()
    assert house.network.wires[0].lost
    assert house.service.counters.stale == 0


def test_a_connection_whose_last_words_were_an_answer_is_not_kept(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What `connection_lost` reads from a connection that was reset behind its answer.
    monkeypatch.setattr(WorkerConnection, "_hear_out", lambda link: link.data_received(OK))
    client = house.client()
    client.send(GET)
    house.worker.vanish()
    assert client.taken() == OK
    assert house.service.connections.take(house.service.pool.members[0]) is None
    assert not house.service.connections._idle.get(0)


def test_a_connection_whose_last_words_were_a_switch_becomes_no_pipe(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody would hear that it is gone: `house` finds a client that stays for ever.
    switch = b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    monkeypatch.setattr(WorkerConnection, "_hear_out", lambda link: link.data_received(switch))
    client = house.client()
    client.send(POST.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"))
    house.worker.vanish()
    assert status(client.taken()) == 502
