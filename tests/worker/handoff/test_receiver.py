"""A worker announces connections before it takes them, and leaves in the link what it cannot serve.

Real socket pairs and descriptors. The test holds the proxy's end.
"""

import asyncio
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from tests.support.descriptors import descriptors
from tests.support.worker.links import fill, pair

from penstock_worker.contract import LINK_FD
from penstock_worker.handoff.protocol import (
    CLIENT,
    CREDIT,
    PROBE,
    Report,
    read_reports,
    receive,
    send,
)
from penstock_worker.handoff.receiver import LinkReceiver, inherited
from penstock_worker.net.stream import Stream

RESERVE = 16
"""Descriptors that a worker keeps free below its limit."""


class Worker:
    """A worker's end of a link, and the proxy's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.proxy, link = pair()
        self.link = link
        self.taken: list[tuple[Stream, bool]] = []
        self.announced = 0
        """How many connections it has announced."""
        self.took_unannounced = False
        self.receiver = LinkReceiver(loop, link, self._connected, 1 << 20)

    def limited(self, room: int) -> None:
        """From now on `room` more descriptors reach the limit."""
        self.receiver.close()
        self.proxy.close()
        self.proxy, self.link = pair()
        lowest = os.dup(0)
        os.close(lowest)
        limit = lowest + room - 1 + RESERVE
        self.receiver = LinkReceiver(self.loop, self.link, self._connected, limit)

    def _connected(self, stream: Stream, probe: bool) -> None:
        self.taken.append((stream, probe))
        self.read_report()
        self.took_unannounced |= len(self.taken) > self.announced

    def read_report(self) -> Report:
        report = read_reports(self.proxy) or Report(0, 0)
        self.announced += report.taken
        return report

    def send(self, count: int = 1, kind: bytes = CLIENT, each: int = 1) -> None:
        """Send `count` connections, `each` in a message."""
        while count:
            sock, other = socket.socketpair()
            with sock, other:
                send(self.proxy, kind, [sock.fileno()] * min(each, count))
            count -= min(each, count)

    def turn(self) -> None:
        for _ in range(30):
            self.loop.run_until_complete(asyncio.sleep(0))

    def waits_for(self, condition: Callable[[], bool]) -> None:
        deadline = self.loop.time() + 10
        while not condition():
            assert self.loop.time() < deadline, "it never came true"
            self.loop.run_until_complete(asyncio.sleep(0.005))

    def left(self) -> int:
        """Take out what is still in the link; returns how many connections it was."""
        found = 0
        while (got := receive(self.link)) is not None and got[1]:
            for fd in got[1]:
                os.close(fd)
                found += 1
        return found

    def close(self) -> None:
        self.receiver.close()
        self.proxy.close()
        for stream, _ in self.taken:
            stream.close()


@pytest.fixture
def worker(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Worker]:
    before = descriptors()
    loop = new_loop()
    made = Worker(loop)
    yield made
    made.close()
    made.turn()
    loop.close()
    assert descriptors() == before


def test_a_connection_is_announced_before_it_is_taken(worker: Worker) -> None:
    worker.receiver.start()
    for count in (1, 3, 20):
        worker.send(count)
        worker.turn()
    assert len(worker.taken) == worker.receiver.taken == worker.announced == 24
    assert not worker.took_unannounced


def test_a_connection_arrives_ready_to_be_served(worker: Worker) -> None:
    worker.receiver.start()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            send(worker.proxy, CLIENT, [theirs.fileno()])
        worker.turn()
        ((stream, probe),) = worker.taken
        assert not probe
        assert stream.family == socket.AF_UNIX
        assert not os.get_blocking(stream.fileno())
        assert not os.get_inheritable(stream.fileno())
        os.write(stream.fileno(), b"hello")
        assert ours.recv(5) == b"hello"


def test_few_connections_are_taken_at_a_time(worker: Worker) -> None:
    worker.send(30)
    counts = []

    def on_connection(stream: Stream, probe: bool) -> None:
        worker.taken.append((stream, probe))
        with suppress(BlockingIOError):
            while True:
                counts.append(CREDIT.unpack(worker.proxy.recv(64, socket.MSG_DONTWAIT))[0])

    worker.receiver._on_connection = on_connection
    worker.receiver.start()
    worker.turn()
    assert sum(counts) == 30
    assert max(counts) <= 8


def test_all_connections_of_a_message_are_taken(worker: Worker) -> None:
    worker.receiver.start()
    for count in (8, 3, 1):
        worker.send(count, each=8)
    worker.send(23, each=8)
    worker.turn()
    assert len(worker.taken) == worker.receiver.taken == worker.announced == 35
    assert not worker.took_unannounced


def test_a_health_check_is_served_and_not_counted(worker: Worker) -> None:
    worker.receiver.start()
    worker.send(1, PROBE)
    worker.send(1)
    worker.turn()
    assert [probe for _, probe in worker.taken] == [True, False]
    assert worker.receiver.taken == 1
    assert worker.announced == 2


def test_ended_connections_are_reported_with_the_next_credit(worker: Worker) -> None:
    worker.receiver.start()
    worker.send(2)
    worker.turn()
    worker.read_report()
    worker.receiver.ended()
    worker.receiver.ended()
    worker.receiver._on_connection = lambda stream, probe: worker.taken.append((stream, probe))
    worker.send(1)
    worker.turn()
    assert worker.read_report() == (1, 2)


def test_ended_connections_are_reported_after_a_while_without_new_ones(worker: Worker) -> None:
    reports = []
    for _ in range(3):
        worker.receiver.ended()

    def is_reported() -> bool:
        reports.append(worker.read_report())
        return bool(reports[-1].ended)

    worker.waits_for(is_reported)
    assert reports[-1] == (0, 3), "one message for all of them"


def test_a_connection_that_cannot_be_announced_is_not_taken(worker: Worker) -> None:
    fill(lambda: worker.link.send(CREDIT.pack(0, 0), socket.MSG_DONTWAIT))
    worker.send(3)
    worker.receiver.start()
    worker.turn()
    assert not worker.taken
    worker.read_report()
    worker.turn()
    assert len(worker.taken) == 3
    assert not worker.took_unannounced


def test_at_its_descriptor_limit_a_worker_leaves_connections_in_the_link(worker: Worker) -> None:
    worker.limited(4)
    worker.send(20)
    worker.receiver.start()
    worker.turn()
    taken = len(worker.taken)
    assert 0 < taken == worker.announced < 12, "what it has announced: the reserve is for that"
    stream, _ = worker.taken.pop(0)
    stream.close()
    worker.receiver.ended()
    worker.turn()
    assert worker.receiver.taken > taken, "one has ended, so it looks again"
    assert not worker.took_unannounced
    assert worker.left() + worker.receiver.taken == 20, "and the rest is there for whoever asks"


def test_connections_stay_in_the_link_while_the_program_has_used_up_the_descriptors(
    worker: Worker,
) -> None:
    worker.send(6, each=3)
    worker.receiver.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hole, beyond = os.dup(0), os.dup(0)
    os.close(hole)

    async def work_without() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (beyond, hard))
        try:
            for _ in range(30):
                await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    # One descriptor is free, and three come at a time.
    worker.loop.run_until_complete(work_without())
    os.close(beyond)
    assert (len(worker.taken), worker.announced) == (0, 0)
    worker.waits_for(lambda: len(worker.taken) == 6)
    assert not worker.took_unannounced


def test_drain_takes_what_is_queued_and_nothing_that_comes_later(worker: Worker) -> None:
    worker.receiver.start()
    worker.send(30)
    worker.receiver.drain()
    assert len(worker.taken) == 30
    worker.send(2)
    worker.turn()
    assert len(worker.taken) == 30
    assert worker.left() == 2


def test_connections_that_end_after_the_drain_are_reported(worker: Worker) -> None:
    worker.send(1)
    worker.receiver.start()
    worker.receiver.drain()
    worker.read_report()
    worker.receiver.ended()
    worker.waits_for(lambda: worker.read_report().ended == 1)


def test_a_proxy_that_is_gone_does_not_keep_the_worker_busy(worker: Worker) -> None:
    worker.receiver.start()
    worker.proxy.close()
    worker.turn()
    assert not worker.loop.remove_reader(worker.link), "nobody waits for it any more"
    worker.receiver.ended()
    worker.waits_for(lambda: worker.receiver._report is None)


def test_a_message_without_a_connection_is_ignored(worker: Worker) -> None:
    worker.receiver.start()
    worker.proxy.send(CLIENT)
    worker.send(1)
    worker.turn()
    assert len(worker.taken) == 1


def test_without_a_variable_there_is_no_link() -> None:
    assert inherited({}) == ()


@pytest.mark.parametrize("number", ["", "x", "-1", "999999", "99999999999999999999"])
def test_a_number_that_is_no_socket_is_an_error(number: str) -> None:
    with pytest.raises(ValueError, match=LINK_FD):
        inherited({LINK_FD: number})


def test_a_socket_that_is_no_link_is_an_error_and_left_open() -> None:
    one, other = socket.socketpair()
    with one, other:
        with pytest.raises(ValueError, match="no Unix socket of kind SOCK_SEQPACKET"):
            inherited({LINK_FD: str(other.fileno())})
        one.send(b"x")
        assert other.recv(1) == b"x"


def test_a_link_is_not_inherited_by_children() -> None:
    one, other = pair()
    os.set_inheritable(other.fileno(), True)
    with one:
        (link,) = inherited({LINK_FD: str(other.detach())})
        with link:
            assert not os.get_inheritable(link.fileno())
            assert not link.getblocking()
