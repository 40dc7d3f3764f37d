"""A bulk stream goes through pipes of the kernel and arrives as it was sent; then they are closed.

The client of these tests stops in the middle: what it has not taken waits in a pipe, and the
proxy's descriptors show it.
"""

import hashlib
import random
import threading
from typing import TYPE_CHECKING

import pytest
from tests.support.live.heads import request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.conftest import Peak, Penstock, Worker
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

MIB = 1 << 20
SIZE = 24 * MIB
DOWN = random.Random(1).randbytes(SIZE)
UP = random.Random(2).randbytes(SIZE)
BEGINNING = 4 * MIB
"""By then the proxy knows that it is bulk."""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pipes(run: "Cluster") -> float:
    """Descriptors of pipes that its proxy has open for connections."""
    return run.metric("penstock_fds", role="proxy", kind="pipe")


def in_thread(work: "Callable[[], object]") -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


class Both:
    """A worker that sends DOWN and reads to the end at the same time."""

    def __init__(self) -> None:
        self.got: list[str] = []

    def __call__(self, wire: "Wire") -> None:
        assert wire.exactly(1) == b"?"
        reader = in_thread(lambda: self.got.append(digest(wire.rest())))
        wire.send(DOWN)
        wire.finish()
        reader.join()


def sends(wire: "Wire") -> None:
    """A worker that sends, and then waits for the end of its client."""
    assert wire.exactly(1) == b"?"
    wire.send(DOWN)
    wire.is_ended()


@pytest.mark.parametrize("scheme", ["tcp", "upgrade"])
def test_every_byte_arrives_both_ways(penstock: "Penstock", origin: "Worker", scheme: str) -> None:
    both = Both()

    def upgraded(wire: "Wire") -> None:
        wire.head()
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        both(wire)

    if scheme == "tcp":
        run = penstock("--to", origin(both).address, mode="tcp")
        wire = run.connect()
    else:
        run = penstock("--to", origin(upgraded).address)
        wire = run.connect()
        wire.send(request("/", "Connection: Upgrade", "Upgrade: x"))
        assert wire.head().startswith(b"HTTP/1.1 101 ")
    base = run.proxy.num_fds()
    before = run.metric("penstock_bytes_total", direction="sent")

    def send() -> None:
        wire.send(b"?", UP)
        wire.finish()

    sender = in_thread(send)
    first = wire.exactly(BEGINNING)
    run.until(lambda: pipes(run) > 0)
    assert digest(first + wire.rest()) == digest(DOWN)
    sender.join()
    run.until(lambda: both.got)
    assert both.got == [digest(UP)]
    wire.close()
    run.until(lambda: run.log)
    assert run.metric("penstock_bytes_total", direction="sent") - before >= SIZE
    run.until(lambda: pipes(run) == 0)
    run.until(lambda: run.proxy.num_fds() <= base)


def test_a_reader_that_stops_holds_little(
    penstock: "Penstock", origin: "Worker", peak: "Peak"
) -> None:
    run = penstock("--to", origin(sends).address, mode="tcp")
    growth = peak(run.proxy.pid)
    wire = run.connect()
    wire.send(b"?")
    first = wire.exactly(BEGINNING)
    run.until(lambda: pipes(run) > 0)
    seen = -1.0
    while (now := run.metric("penstock_bytes_total", direction="sent")) != seen:
        seen = now
    assert growth() < 8 * MIB
    assert pipes(run) == 2, "one pipe, for the one connection"
    assert digest(first + wire.exactly(SIZE - BEGINNING)) == digest(DOWN)
    assert run.metric("penstock_bytes_total", direction="sent") == SIZE
    wire.close()
    run.until(lambda: [line["termination"] for line in run.log] == ["ok"])


def test_bytes_of_a_client_that_was_reset_reach_no_other(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        fill = wire.exactly(1)
        wire.send(fill * SIZE)
        wire.is_ended()

    run = penstock("--to", origin(answer).address, mode="tcp")
    gone = run.connect()
    gone.send(b"\xff")
    gone.exactly(BEGINNING)
    run.until(lambda: pipes(run) > 0)
    gone.reset()
    other = run.connect()
    other.send(b"z")
    assert other.exactly(SIZE) == b"z" * SIZE
    other.close()
    run.until(lambda: [line["termination"] for line in run.log] == ["client_gone", "ok"])
    run.until(lambda: pipes(run) == 0)


def test_the_end_of_the_worker_comes_behind_what_waits_in_a_pipe(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        assert wire.exactly(1) == b"?"
        wire.send(DOWN)

    run = penstock("--to", origin(answer).address, mode="tcp")
    wire = run.connect()
    wire.send(b"?")
    first = wire.exactly(BEGINNING)
    run.until(lambda: pipes(run) > 0)
    assert digest(first + wire.rest()) == digest(DOWN)
    wire.close()
    run.until(lambda: [line["termination"] for line in run.log] == ["ok"])


def test_a_reset_by_the_worker_in_the_middle_is_no_end(
    penstock: "Penstock", origin: "Worker"
) -> None:
    def answer(wire: "Wire") -> None:
        assert wire.exactly(1) == b"?"
        wire.send(DOWN)
        wire.reset()

    run = penstock("--to", origin(answer).address, mode="tcp")
    wire = run.connect()
    wire.send(b"?")
    with pytest.raises(ConnectionResetError):
        wire.exactly(SIZE + 1)
    run.until(lambda: [line["termination"] for line in run.log] == ["worker_reset"])
    run.until(lambda: pipes(run) == 0)


def test_a_stop_cuts_a_reader_that_has_stopped(penstock: "Penstock", origin: "Worker") -> None:
    run = penstock("--to", origin(sends).address, mode="tcp", timeouts={"stop": "2s"})
    wire = run.connect()
    wire.send(b"?")
    wire.exactly(BEGINNING)
    run.until(lambda: pipes(run) > 0)
    run.stop()
    with pytest.raises(ConnectionResetError):
        wire.exactly(SIZE)
    assert [line["termination"] for line in run.log] == ["stop_timeout"]
