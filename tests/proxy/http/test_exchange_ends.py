"""Who reads nothing is not read from, who leaves is noticed, and each fault is counted once.

The fixture `house` checks at the end of each test that nothing is owed or open.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.proxy.conftest import House, Wire

from penstock_proxy.listener.listeners import Listeners
from penstock_worker.net.stream import Stream
from penstock_worker.telemetry.access_log import open_log

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1]) if data else 0


def errors(house: House) -> dict[str, int]:
    return {kind: count for kind, count in house.service.counters.errors.items() if count}


# -- those who do not read


def test_a_client_that_reads_none_of_our_own_answers_gets_no_more_of_them(house: House) -> None:
    house.service.pool.leave(0)
    client = house.client()
    (protocol,) = house.connections
    client.full = True
    for _ in range(1000):
        client.send(GET)
    assert errors(house) == {"no_worker": 1}
    assert not client.is_reading()
    assert len(protocol.buffer) < 1024 + len(GET)
    client.flow()
    assert client.is_reading()
    assert errors(house) == {"no_worker": 1000}


@pytest.mark.parametrize("early", [b"a", b"ab"])
def test_a_body_is_not_read_on_while_a_new_worker_takes_nothing(house: House, early: bytes) -> None:
    house.network.silent = {1}
    client = house.client()
    client.send(POST + early)
    house.network.full = True
    house.network.hanging[0].answer()
    assert not client.is_reading()
    house.worker.flow()
    assert client.is_reading()
    client.send(b"abc"[len(early) :])
    assert house.worker.taken().endswith(b"\r\n\r\nabc")
    client.reset()


def test_a_body_is_not_read_on_while_a_kept_worker_takes_nothing(house: House) -> None:
    client = house.client()
    client.send(GET)
    house.worker.send(OK)
    house.worker.full = True
    client.send(POST + b"a")
    assert not client.is_reading()
    # It may say that it goes on, and still take nothing.
    house.worker.send(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert not client.is_reading()
    house.worker.flow()
    assert client.is_reading()
    client.reset()


def test_after_a_switch_a_worker_that_takes_nothing_stops_its_client(house: House) -> None:
    client = house.client()
    client.send(UPGRADE + b"early")
    house.worker.full = True
    house.worker.send(SWITCH + b"x\r\n\r\n")
    assert status(client.taken()) == 101
    assert not client.is_reading()
    house.worker.flow()
    assert client.is_reading()
    assert house.worker.taken().endswith(b"early")


def test_a_worker_that_stalls_before_the_switch_stops_its_client_behind_it(house: House) -> None:
    client = house.client()
    client.send(UPGRADE)
    house.worker.stall()
    house.worker.send(SWITCH + b"x\r\n\r\n")
    assert not client.is_reading()
    house.worker.flow()
    assert client.is_reading()


# -- those who leave


def nobody_answers(house: House) -> None:
    """The connect hangs."""
    house.network.silent = {1}


def nobody_is_there(house: House) -> None:
    """The request waits in the queue."""
    house.service.pool.leave(0)


def nothing_is_said(_house: House) -> None:
    """The worker has it all and thinks about it."""


@pytest.mark.parametrize("where", [nobody_answers, nobody_is_there, nothing_is_said])
@pytest.mark.parametrize(
    "pieces",
    [(GET,), (POST + b"abc",), (POST, b"abc"), (CHUNKED + b"1\r\na\r\n0\r\n\r\n",)],
)
def test_a_client_that_leaves_after_its_whole_request_is_noticed(
    house: House, where: Callable[[House], None], pieces: tuple[bytes, ...]
) -> None:
    house.open(queue=5.0)
    where(house)
    client = house.client()
    for piece in pieces:
        client.send(piece)
    # Only who is read from can be seen to leave.
    assert client.is_reading()
    client.finish()
    assert errors(house) == {"client_gone": 1}
    assert not house.network.hanging
    assert not house.service.queue
    assert all(wire.lost for wire in house.network.wires)


# -- those who come last


class Queue(Listeners):
    """A listener whose kernel has let one client in that nobody has accepted."""

    def __init__(self, house: House) -> None:
        self._house = house

    def resume(self) -> None:
        pass

    def look(self, *_: object) -> int:
        return 0

    def drain(self) -> None:
        self._house.service.filter_chain.first_filter(Stream(-1, 0), ("192.0.2.1", 5000))


@pytest.mark.parametrize("speaks", [False, True])
def test_who_is_let_in_at_the_very_end_must_speak_at_once(house: House, *, speaks: bool) -> None:
    house.service.listeners = Queue(house)
    house.service.drain()
    house.loop.run()
    (client,) = house.network.wires
    if speaks:
        client.send(GET)
    house.pass_time(1.75)
    assert client.lost is not speaks
    if speaks:
        house.worker.send(OK)
        assert b"Connection: close\r\n" in client.taken()


# -- how it is counted


def refuses(house: House, client: Wire) -> None:
    house.network.refusing = {1}
    client.send(GET)


def hangs(house: House, client: Wire) -> None:
    house.network.silent = {1}
    client.send(GET)
    house.pass_time(6.0)


def hangs_until_the_client_leaves(house: House, client: Wire) -> None:
    house.network.silent = {1}
    client.send(GET)
    client.finish()


def breaks_off(house: House, client: Wire) -> None:
    client.send(POST + b"abc")
    house.worker.reset()


def breaks_off_in_an_answer(house: House, client: Wire) -> None:
    client.send(GET)
    house.worker.send(OK[:-1])
    house.worker.finish()


def babbles(house: House, client: Wire) -> None:
    client.send(GET)
    house.worker.send(b"hello\r\n\r\n")


def is_silent(house: House, client: Wire) -> None:
    client.send(GET)
    house.pass_time(61.0)


def is_not_sent_the_body(house: House, client: Wire) -> None:
    client.send(POST)
    house.pass_time(31.0)


def is_sent_no_chunks(_house: House, client: Wire) -> None:
    client.send(CHUNKED + b"zz\r\n")


def is_not_read(house: House, client: Wire) -> None:
    client.send(GET)
    house.worker.send(OK[:-1])
    client.stall()
    house.pass_time(31.0)
    house.pass_time(31.0)


def is_left(_house: House, client: Wire) -> None:
    client.send(GET)
    client.finish()


def has_left(house: House, client: Wire) -> None:
    house.service.pool.leave(0)
    client.send(GET)


@pytest.mark.parametrize(
    ("worker", "kind"),
    [
        (refuses, "connect_failed"),
        (hangs, "connect_timeout"),
        (hangs_until_the_client_leaves, "client_gone"),
        (breaks_off, "worker_reset"),
        (breaks_off_in_an_answer, "worker_closed"),
        (babbles, "bad_response"),
        (is_silent, "response_timeout"),
        (is_not_sent_the_body, "body_timeout"),
        (is_sent_no_chunks, "bad_request"),
        (is_not_read, "send_timeout"),
        (is_left, "client_gone"),
        (has_left, "no_worker"),
    ],
)
def test_a_fault_is_counted_once(
    house: House, worker: Callable[[House, Wire], None], kind: str
) -> None:
    worker(house, house.client())
    assert errors(house) == {kind: 1}
    assert sum(house.service.counters.requests.values()) == 1


@pytest.mark.parametrize("queue", [0.0, 2.0])
def test_each_try_is_counted_once_and_giving_up_is_no_further_fault(
    house: House, queue: float
) -> None:
    house.open(2, queue=queue)
    house.network.refusing = {1, 2}
    client = house.client()
    client.send(GET)
    for _ in range(12):
        house.pass_time(0.25)
    tries = len(house.network.dialed)
    assert status(client.taken()) == 502
    assert errors(house) == {"connect_failed": tries}
    assert not any(house.service.counters.rejected.values())


# -- the access log


@pytest.mark.parametrize(
    ("ends", "expected"), [("refused", 502), ("no_worker", 503), ("answered", 200), ("gone", 0)]
)
def test_every_exchange_has_one_line_in_the_log_however_it_ends(
    house: House, tmp_path: Path, ends: str, expected: int
) -> None:
    path = tmp_path / "access.log"
    log = house.service.error_log.access_log = open_log("web", str(path), "json")
    assert log is not None
    if ends == "refused":
        house.network.refusing.add(1)
    if ends == "no_worker":
        house.service.pool.leave(0)
    client = house.client()
    client.send(GET)
    if ends == "answered":
        house.worker.send(OK)
    if ends == "gone":
        client.reset()
    log.close()
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["status"] == expected
