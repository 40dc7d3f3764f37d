"""A bulk stream goes through pipes, and arrives as it would without: every byte, the end, a reset.

Over real sockets, in one process.
"""

import asyncio
import errno
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.descriptors import descriptors

from penstock_proxy.config import Timeouts
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.net import pipes as pipes_module
from penstock_proxy.net.pipes import Pipes
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.socket_transport import HIGH_WATER, adopt
from penstock_proxy.service.fd_budget import FdBudget
from penstock_proxy.tcp.duplex import ClientHalf
from penstock_worker.net.stream import Stream

RESET = struct.pack("ii", 1, 0)
MIB = 1 << 20
WAIT_S = 30.0
SEVERAL = 12 * MIB
MOST_UNSENT = 5 * HIGH_WATER
"""What may wait for one that does not read."""


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Peer:
    """The far end of a connection: sends and reads what it is asked to, as far as it can."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.left = memoryview(b"")
        self.got = bytearray()
        self.at_eof = False
        self.was_reset = False
        self.reads = True

    def send(self, data: bytes) -> None:
        assert not self.left
        self.left = memoryview(data)

    def move(self) -> None:
        try:
            with suppress(BlockingIOError):
                while self.left:
                    self.left = self.left[self.sock.send(self.left) :]
            with suppress(BlockingIOError):
                while self.reads and not self.at_eof:
                    data = self.sock.recv(MIB)
                    self.got += data
                    self.at_eof = not data
        except OSError:
            self.was_reset = self.at_eof = True
            self.left = memoryview(b"")

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()
        self.left, self.reads = memoryview(b""), False

    def close(self) -> None:
        self.sock.close()
        self.left, self.reads = memoryview(b""), False


class Relay:
    """Two connections that are relayed, and both far ends."""

    member: Any = None

    def __init__(self, harness: "Harness", family: int) -> None:
        self.closed = False
        self._harness = harness
        self.counters = ServiceCounters()
        timers: Any = SimpleNamespace(now=0.0, arm_in=lambda *_: None, disarm=lambda _: None)
        self.half = ClientHalf(harness.reactor, self.counters, timers, Timeouts(), self)
        self.worker = self._connect(family, self.half.worker)
        self.client = self._connect(socket.AF_INET, self.half)

    def _connect(self, family: int, half: Any) -> Peer:
        if family == socket.AF_UNIX:
            ours, theirs = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                theirs = socket.create_connection(listener.getsockname())
                ours, _ = listener.accept()
        adopt(self._harness.reactor, half, Stream(ours.detach(), family))
        return Peer(theirs)

    def duplex_closed(self, half: ClientHalf) -> None:
        self.closed = True

    @property
    def unsent(self) -> int:
        """To the client."""
        transport = self.half.transport
        return 0 if transport is None else transport.get_write_buffer_size()

    def stall(self, data: bytes) -> None:
        """The worker sends, and the client reads a part and then no more; it is stuck in a pipe."""
        self.worker.send(data)
        self._harness.until(lambda: self._harness.pipes.moved > 2 * MIB)
        self.client.reads = False
        self._harness.until(lambda: self.is_stuck)

    @property
    def is_stuck(self) -> bool:
        transport: Any = self.half.transport
        unsent = transport._unsent
        return unsent is not None and unsent.is_piped()


class Harness:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.reactor = Reactor(loop)
        self.relays: list[Relay] = []

    @property
    def pipes(self) -> Pipes:
        return self.reactor.pipes

    def relay(self, family: int = socket.AF_INET) -> Relay:
        self.relays.append(Relay(self, family))
        return self.relays[-1]

    def until(self, condition: Callable[[], object]) -> None:
        deadline = self.loop.time() + WAIT_S
        while not condition():
            assert self.loop.time() < deadline, "it never came true"
            self.turn()

    def turn(self) -> None:
        for relay in self.relays:
            relay.client.move()
            relay.worker.move()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))


@pytest.fixture
def harness(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Harness]:
    before = descriptors()
    loop = new_loop()
    harness = Harness(loop)
    yield harness
    for relay in harness.relays:
        relay.client.close()
        relay.worker.close()
        relay.half.abort()
    harness.until(lambda: all(relay.closed for relay in harness.relays))
    # What is empty is closed when it was not needed for a while.
    harness.pipes.tick()
    harness.pipes.tick()
    assert harness.pipes._open == 0
    harness.reactor.close()
    loop.close()
    assert descriptors() == before


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def test_every_byte_arrives_both_ways_and_is_counted(harness: Harness, family: int) -> None:
    relay, down, up = harness.relay(family), noise(SEVERAL), noise(SEVERAL, 2)
    relay.worker.send(down)
    relay.client.send(up)
    harness.until(lambda: (len(relay.client.got), len(relay.worker.got)) == (SEVERAL, SEVERAL))
    assert relay.client.got == down
    assert relay.worker.got == up
    assert harness.pipes.moved > SEVERAL, "most of it"
    assert (relay.half.sent, relay.half.received) == (SEVERAL, SEVERAL)
    assert (relay.counters.sent, relay.counters.received) == (SEVERAL, SEVERAL)


def test_a_connection_that_is_only_open_has_no_pipe(harness: Harness) -> None:
    relay = harness.relay()
    relay.worker.send(noise(SEVERAL))
    harness.until(lambda: len(relay.client.got) == SEVERAL)
    harness.pipes.tick()
    harness.pipes.tick()
    assert harness.pipes._open == 0
    relay.worker.send(noise(SEVERAL))
    harness.until(lambda: len(relay.client.got) == 2 * SEVERAL)
    assert relay.client.got == noise(SEVERAL) * 2


def test_a_stream_that_becomes_small_is_read_again(harness: Harness) -> None:
    relay = harness.relay()
    relay.worker.send(noise(SEVERAL))
    harness.until(lambda: len(relay.client.got) == SEVERAL)
    for size in range(1, 20):
        del relay.client.got[:]
        relay.worker.send(b"z" * size)
        harness.until(lambda size=size: len(relay.client.got) == size)  # type: ignore[misc]
    before = harness.pipes.moved
    relay.worker.send(b"small")
    harness.until(lambda: relay.client.got.endswith(b"small"))
    assert harness.pipes.moved == before
    transport: Any = relay.half.worker.transport
    assert transport._sink is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def test_a_slow_reader_stops_its_sender_and_loses_nothing(harness: Harness, family: int) -> None:
    relay, data = harness.relay(family), noise(4 * SEVERAL)
    relay.stall(data)
    transport = relay.half.worker.transport
    assert transport is not None
    assert not transport.is_reading()
    for _ in range(50):
        harness.turn()
    assert 0 < relay.unsent <= MOST_UNSENT
    seen = relay.half.sent
    assert seen < len(data)
    for _ in range(50):
        harness.turn()
    assert relay.half.sent == seen, "nothing is read of it"
    relay.client.reads = True
    harness.until(lambda: len(relay.client.got) == len(data))
    assert relay.client.got == data
    assert relay.unsent == 0
    assert relay.half.sent == len(data)


def test_a_reader_that_is_always_slow_gets_it_through_pipes_too(harness: Harness) -> None:
    relay, data = harness.relay(), noise(2 * SEVERAL)
    relay.stall(data)
    moved, stalls = harness.pipes.moved, 0
    while len(relay.client.got) < len(data):
        with suppress(BlockingIOError):
            relay.client.got += relay.client.sock.recv(100_000)
        harness.turn()
        stalls += relay.is_stuck
    assert relay.client.got == data
    assert stalls > 1
    assert harness.pipes.moved > moved + SEVERAL // 2


def test_an_end_behind_bytes_in_a_pipe_comes_after_them(harness: Harness) -> None:
    relay, data = harness.relay(), noise(4 * SEVERAL)
    relay.stall(data)
    relay.client.reads = True
    harness.until(lambda: not relay.worker.left)
    relay.worker.close()
    harness.until(lambda: relay.client.at_eof)
    assert relay.client.got == data
    assert not relay.client.was_reset
    relay.client.close()
    harness.until(lambda: relay.closed)
    assert relay.half.outcome == "ok"


def test_a_sender_that_has_ended_while_its_bytes_were_in_a_pipe(harness: Harness) -> None:
    relay, data = harness.relay(), noise(4 * SEVERAL)
    relay.stall(data)
    # The pipe is all that is left to be sent: its sender is gone, without an error.
    sender = relay.half.worker.transport
    assert sender is not None
    sent = relay.half.sent
    sender.close()
    for _ in range(20):
        harness.turn()
    relay.client.reads = True
    harness.until(lambda: relay.client.at_eof)
    assert relay.client.got == data[:sent]
    harness.until(lambda: relay.closed)


def test_each_direction_ends_on_its_own(harness: Harness) -> None:
    relay, up, down = harness.relay(), noise(SEVERAL), noise(SEVERAL, 2)
    relay.client.send(up)
    harness.until(lambda: not relay.client.left)
    relay.client.sock.shutdown(socket.SHUT_WR)
    harness.until(lambda: relay.worker.at_eof)
    assert relay.worker.got == up
    moved = harness.pipes.moved
    relay.worker.send(down)
    harness.until(lambda: len(relay.client.got) == len(down))
    assert relay.client.got == down
    assert harness.pipes.moved > moved
    relay.worker.close()
    harness.until(lambda: relay.closed)
    assert relay.half.outcome == "ok"


@pytest.mark.parametrize("who", ["client", "worker"])
def test_a_reset_in_the_middle_is_a_reset_on_the_other_side(harness: Harness, who: str) -> None:
    relay = harness.relay()
    relay.worker.send(noise(8 * SEVERAL))
    harness.until(lambda: harness.pipes.moved > 2 * MIB)
    one, other = relay.client, relay.worker
    if who == "worker":
        one, other = other, one
    one.reset()
    harness.until(lambda: relay.closed)
    harness.until(lambda: other.at_eof)
    assert other.was_reset
    assert relay.half.outcome == ("client_gone" if who == "client" else "worker_reset")


@pytest.mark.parametrize("how", ["reset", "cut", "abort"])
def test_bytes_of_a_connection_that_is_gone_reach_nobody(harness: Harness, how: str) -> None:
    gone, other = harness.relay(), harness.relay()
    gone.stall(b"\xff" * (4 * SEVERAL))
    opened = harness.pipes._open
    if how == "reset":
        gone.client.reset()
    elif how == "cut":
        gone.half.cut()
    else:
        gone.half.abort()
    harness.until(lambda: gone.closed)
    assert harness.pipes._open < opened, "its pipe is closed"
    data = noise(SEVERAL)
    other.worker.send(data)
    other.client.send(data)
    harness.until(lambda: (len(other.client.got), len(other.worker.got)) == (SEVERAL, SEVERAL))
    assert other.client.got == other.worker.got == data


def test_an_urgent_byte_in_the_middle_ends_nothing(harness: Harness) -> None:
    relay, data = harness.relay(), noise(SEVERAL)
    relay.worker.send(data)
    harness.until(lambda: harness.pipes.moved > MIB and not relay.worker.left)
    harness.until(lambda: len(relay.client.got) == SEVERAL)
    relay.worker.send(data)
    harness.until(lambda: not relay.worker.left)
    relay.worker.sock.send(b"!", socket.MSG_OOB)
    relay.worker.send(data)
    harness.until(lambda: not relay.worker.left)
    relay.worker.sock.shutdown(socket.SHUT_WR)
    harness.until(lambda: relay.client.at_eof)
    assert relay.client.got == data * 3


def test_a_worker_that_answers_and_leaves_during_an_upload_has_ended_in_order(
    harness: Harness,
) -> None:
    relay = harness.relay(socket.AF_UNIX)
    relay.client.send(noise(8 * SEVERAL))
    harness.until(lambda: harness.pipes.moved > 2 * MIB)
    relay.worker.send(b"enough")
    harness.until(lambda: relay.client.got)
    assert relay.client.got == b"enough"
    relay.worker.close()
    harness.until(lambda: relay.closed)


# -- without a pipe


def without_descriptors(harness: Harness, _: pytest.MonkeyPatch) -> None:
    harness.pipes.descriptors = FdBudget(0, 0, 0)


def without_a_pipe(_: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("penstock_proxy.net.pipes.os.pipe2", refused)


def without_room_in_pipes(_: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise PermissionError(errno.EPERM, "the user has too many pages in pipes")

    monkeypatch.setattr(pipes_module, "fcntl", refused)


def with_all_in_use(_: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes_module, "_MAX_OPEN", 0)


@pytest.mark.parametrize(
    "prevent", [without_descriptors, without_a_pipe, without_room_in_pipes, with_all_in_use]
)
def test_without_a_pipe_bytes_are_read_and_written(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    prevent: Callable[[Harness, pytest.MonkeyPatch], None],
) -> None:
    prevent(harness, monkeypatch)
    relay, data = harness.relay(), noise(SEVERAL)
    relay.worker.send(data)
    relay.client.send(data)
    harness.until(lambda: (len(relay.client.got), len(relay.worker.got)) == (SEVERAL, SEVERAL))
    assert relay.client.got == relay.worker.got == data
    assert harness.pipes.moved == 0


def test_slow_readers_leave_a_pipe_to_the_others(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes_module, "_MAX_OPEN", 2)
    slow = [harness.relay() for _ in range(3)]
    data = noise(4 * SEVERAL)
    for relay in slow:
        relay.worker.send(data)
    harness.until(lambda: all(len(relay.client.got) > 2 * MIB for relay in slow))
    for relay in slow:
        relay.client.reads = False
    harness.until(lambda: all(relay.unsent for relay in slow))
    fast, moved = harness.relay(), harness.pipes.moved
    fast.worker.send(data)
    harness.until(lambda: len(fast.client.got) == len(data))
    assert fast.client.got == data
    assert harness.pipes.moved > moved + SEVERAL
    for relay in slow:
        relay.client.reads = True
    harness.until(lambda: all(len(relay.client.got) == len(data) for relay in slow))
    assert all(relay.client.got == data for relay in slow)
