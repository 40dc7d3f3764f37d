"""With mode tcp every byte arrives, each direction ends on its own, and buffers stay small."""

import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.conftest import Peak, Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

MIB = 1 << 20
HELLO = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def parrot(wire: "Wire") -> None:
    """Echoes what it receives, and ends when its client has ended."""
    while data := wire.sock.recv(1 << 16):
        wire.sock.sendall(data)


def test_bytes_arrive_as_they_were_sent_both_ways(penstock: "Penstock", origin: "Worker") -> None:
    data = bytes(range(256)) * (8 * MIB // 256)
    wire = penstock("--to", origin(parrot).address, mode="tcp").connect()
    sender = threading.Thread(target=wire.send, args=(data,))
    sender.start()
    assert wire.exactly(len(data)) == data
    sender.join()


def test_a_client_that_has_closed_its_sending_side_still_gets_its_answer(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        question = wire.rest()
        if question:
            wire.send(question[::-1] * 100_000)

    wire = penstock("--to", origin(answer).address, mode="tcp").connect()
    wire.send(b"abc")
    wire.finish()
    assert wire.rest() == b"cba" * 100_000


def test_a_worker_that_has_closed_its_sending_side_still_receives_from_its_client(
    penstock: "Penstock", origin: "Worker"
) -> None:
    received: list[bytes] = []
    done = threading.Event()

    def answer(wire: "Wire") -> None:
        if wire.exactly(1) == b"?":
            wire.send(b"that is all")
            wire.finish()
            received.append(wire.rest())
            done.set()

    wire = penstock("--to", origin(answer).address, mode="tcp").connect()
    wire.send(b"?")
    assert wire.rest() == b"that is all"
    wire.send(b"not for me" * 10_000)
    wire.finish()
    assert done.wait(60)
    assert received == [b"not for me" * 10_000]


def test_a_worker_may_send_before_its_client_does(penstock: "Penstock", origin: "Worker") -> None:
    def answer(wire: "Wire") -> None:
        wire.send(b"220 ready\r\n")
        assert wire.until(b"\r\n") == b"QUIT\r\n"
        wire.send(b"221 bye\r\n")

    wire = penstock("--to", origin(answer).address, mode="tcp").connect()
    assert wire.until(b"\r\n") == b"220 ready\r\n"
    wire.send(b"QUIT\r\n")
    assert wire.rest() == b"221 bye\r\n"


def test_a_reset_by_the_client_reaches_the_worker(penstock: "Penstock", origin: "Worker") -> None:
    ended = threading.Event()

    def answer(wire: "Wire") -> None:
        if wire.exactly(1) == b"?":
            wire.send(b"!")
            wire.is_ended()
            ended.set()

    wire = penstock("--to", origin(answer).address, mode="tcp").connect()
    wire.send(b"?")
    assert wire.exactly(1) == b"!"
    wire.reset()
    assert ended.wait(60)


def test_a_sender_is_slowed_down_to_its_reader_and_the_proxy_buffers_little(
    penstock: "Penstock", origin: "Worker", peak: "Peak"
) -> None:
    size = 64 * MIB
    read_on = threading.Event()
    counted: list[int] = []

    def answer(wire: "Wire") -> None:
        if wire.exactly(1) == b"?":
            assert read_on.wait(60)
            counted.append(len(wire.rest()))
            wire.send(b"!")

    run = penstock("--to", origin(answer).address, mode="tcp")
    growth = peak(run.proxy.pid)
    wire = run.connect()

    def send() -> None:
        wire.send(b"?", b"x" * size)
        wire.finish()

    sender = threading.Thread(target=send)
    sender.start()
    # Stuck: what the kernel holds is sent, and from then on nothing moves.
    seen = -1.0
    while (now := run.metric("penstock_bytes_total", direction="received")) != seen:
        seen = now
    assert growth() < 8 * MIB
    assert sender.is_alive()
    read_on.set()
    assert wire.rest() == b"!"
    sender.join()
    assert counted == [size]


def test_a_connection_to_a_worker_that_refuses_goes_to_another(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def named(name: bytes) -> "Callable[[Wire], None]":
        return lambda wire: wire.send(name)

    gone, there = origin(named(b"gone")), origin(named(b"there"))
    # No check notices in time: it is the connection itself that finds out.
    run = penstock(
        "--to", gone.address, "--to", there.address, mode="tcp", health={"interval": "1h"}
    )
    assert {run.connect().rest() for _ in range(2)} == {b"gone", b"there"}
    gone.away()
    assert {run.connect().rest() for _ in range(10)} == {b"there"}
    assert run.metric("penstock_retries_total") > 0
    # Five refusals in a row and it was left in peace.
    assert run.workers()[0]["health"] == "ejected"


def test_without_a_worker_the_connection_is_closed(penstock: "Penstock", origin: "Worker") -> None:
    worker = origin(parrot)
    run = penstock("--to", worker.address, mode="tcp", timeouts={"queue": "300ms"})
    worker.away()
    assert run.connect().is_ended()
    run.until(lambda: [line["termination"] for line in run.log] == ["connect_failed"])


def test_connections_are_balanced_in_exact_turns(demo: "Cluster") -> None:
    answers = []
    for _ in range(20):
        wire = demo.connect("raw")
        answers.append(wire.ask(HELLO).body.split(b" ")[2])
    assert sorted(answers) == [b"raw/0"] * 10 + [b"raw/1"] * 10


def test_an_idle_tunnel_ends(penstock: "Penstock", origin: "Worker") -> None:
    run = penstock("--to", origin(parrot).address, mode="tcp", timeouts={"tunnel": "1s"})
    wire = run.connect()
    wire.send(b"x")
    assert wire.exactly(1) == b"x"
    assert wire.is_ended()
    run.until(lambda: [line["termination"] for line in run.log] == ["tunnel_timeout"])


def test_a_tunnel_of_which_one_side_has_ended_is_reset_when_the_other_is_silent(
    penstock: "Penstock", origin: "Worker"
) -> None:
    gone = threading.Event()

    def answer(wire: "Wire") -> None:
        if wire.rest():
            wire.send(b"not all")
            gone.wait(60)

    run = penstock("--to", origin(answer).address, mode="tcp", timeouts={"half_closed": "1s"})
    wire = run.connect()
    wire.send(b"question")
    wire.finish()
    assert wire.exactly(7) == b"not all"
    # An end of file would look like that of the whole answer.
    with pytest.raises(ConnectionResetError):
        wire.sock.recv(1)
    gone.set()
    run.until(lambda: [line["termination"] for line in run.log] == ["half_closed_timeout"])
    assert run.metric("penstock_connection_errors_total", kind="half_closed_timeout") == 1
