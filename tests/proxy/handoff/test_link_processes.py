"""Of thousands of connections none is lost when a process is killed, stopped or reclaimed from.

Real processes take connections with a worker's own code. What is not taken is reclaimed
and goes to another process. Each client is answered by exactly one of them.
"""

import asyncio
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from tests.support.descriptors import descriptors
from tests.support.proxy.links import send

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.handoff.link import Link
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.handoff.receiver import LinkReceiver
from penstock_worker.net.stream import Stream

WAIT_S = 20.0
EACH = 100
"""Connections a round."""


def work(link: socket.socket, name: bytes) -> None:
    """A worker: send its name to every client and close."""
    loop = asyncio.new_event_loop()

    def connected(stream: Stream, _: bool) -> None:
        os.write(stream.fileno(), name)
        stream.close()
        receiver.ended()

    receiver = LinkReceiver(loop, link, connected, 1 << 20)
    receiver.start()
    loop.run_forever()


@dataclass
class Process:
    """A worker process, and the proxy's end of the link to it."""

    pid: int
    link: Link
    alive: bool = field(default=True)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)
        if number == signal.SIGSTOP:
            os.waitpid(self.pid, os.WUNTRACED)
        elif number == signal.SIGKILL:
            os.waitpid(self.pid, 0)
            self.alive = False


class Harness:
    """The links of a proxy, and what was sent over them."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.counters = ServiceCounters()
        self.fd_budget = FdBudget(1 << 20, 0, 0)
        self.processes: list[Process] = []
        self.sent = 0

    def start(self, name: bytes) -> Process:
        proxy, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        member = Member(len(self.processes), len(self.processes), "", 1, MemberState.UP)
        link = Link(self.loop, member.slot, member, self.counters, self.fd_budget, lambda _: None)
        link.adopt_end("proxy", proxy)
        link.adopt_end("worker", worker.dup())
        pid = os.fork()
        if pid == 0:
            try:
                work(worker, name)
            finally:
                os._exit(1)
        worker.close()
        process = Process(pid, link)
        self.processes.append(process)
        return process

    def send(self, process: Process, fd: int) -> None:
        """Send; while the link is full, read the reports of the worker."""
        while not send(process.link, fd, 0.0):
            process.link.poll_reports()
        self.sent += 1
        self.check()

    def check(self) -> None:
        counters, links = self.counters, [process.link for process in self.processes]
        assert self.sent == sum(counters.handoffs.values()) + counters.in_flight
        assert counters.handoffs["lost"] == 0
        assert counters.in_flight == self.fd_budget.in_flight == sum(one.in_flight for one in links)
        assert counters.opened == sum(one.open for one in links)
        assert all(one.member.active == one.in_flight + one.open for one in links)

    def reclaim(self, process: Process) -> list[int]:
        reclaimed = process.link.reclaim()
        self.check()
        return reclaimed

    def wait_until_idle(self, process: Process) -> None:
        """Until it has taken everything and everything that it took has ended."""
        for _ in range(int(WAIT_S * 100)):
            process.link.poll_reports()
            self.check()
            if not process.link.in_flight and not process.link.open:
                return
            self.loop.run_until_complete(asyncio.sleep(0.01))
        raise AssertionError("it does not take what it was sent")

    def end(self, process: Process) -> None:
        if process.alive:
            process.signal(signal.SIGKILL)
        for fd in self.reclaim(process):
            os.close(fd)
        process.link.close()

    def close(self) -> None:
        for process in self.processes:
            if process.alive:
                process.signal(signal.SIGKILL)
        for process in self.processes:
            self.end(process)
        self.loop.close()


@pytest.fixture
def proxy() -> Iterator[Harness]:
    before = descriptors()
    made = Harness()
    yield made
    made.close()
    assert descriptors() == before


def connections() -> tuple[list[socket.socket], list[int]]:
    """Clients, and what was accepted of them."""
    pairs = [socket.socketpair() for _ in range(EACH)]
    for client, _ in pairs:
        client.settimeout(WAIT_S)
    return [client for client, _ in pairs], [accepted.detach() for _, accepted in pairs]


def answers(clients: list[socket.socket]) -> Counter[bytes]:
    """How many were sent what, each until its connection was closed."""
    answered: Counter[bytes] = Counter()
    for client in clients:
        answer = b""
        while data := client.recv(16):
            answer += data
        answered[answer] += 1
        client.close()
    return answered


def test_a_killed_worker_loses_no_more_than_it_was_serving(proxy: Harness) -> None:
    rng = random.Random(1)
    successor = proxy.start(b"B")
    total: Counter[bytes] = Counter()
    for _ in range(30):
        victim = proxy.start(b"A")
        clients, accepted = connections()
        at = rng.randrange(EACH)
        for index, fd in enumerate(accepted):
            proxy.send(victim, fd)
            if index == at:
                os.kill(victim.pid, signal.SIGKILL)
        victim.signal(signal.SIGKILL)
        reclaimed = proxy.reclaim(victim)
        for fd in reclaimed:
            proxy.send(successor, fd)
        proxy.wait_until_idle(successor)
        answered = answers(clients)
        assert set(answered) <= {b"A", b"B", b""}
        assert answered[b"B"] == len(reclaimed)
        assert answered[b""] <= 1, "the one that it had taken and not answered yet"
        total += answered
        proxy.end(victim)
    assert total.total() == 30 * EACH
    assert total[b"B"] > 0


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "running"])
def test_no_client_is_served_twice_when_a_worker_goes_on(proxy: Harness, stop: bool) -> None:
    rng = random.Random(2)
    slow, other = proxy.start(b"A"), proxy.start(b"B")
    total: Counter[bytes] = Counter()
    for _ in range(40):
        clients, accepted = connections()
        at = rng.randrange(EACH)
        reclaimed: list[int] = []
        for index, fd in enumerate(accepted):
            proxy.send(slow, fd)
            if index == at:
                if stop:
                    slow.signal(signal.SIGSTOP)
                else:
                    # It may be taking this very one.
                    reclaimed += proxy.reclaim(slow)
        reclaimed += proxy.reclaim(slow)
        if stop:
            slow.signal(signal.SIGCONT)
        for fd in reclaimed:
            proxy.send(other, fd)
        answered = answers(clients)
        assert set(answered) <= {b"A", b"B"}, "one answer each"
        assert answered[b"B"] == len(reclaimed)
        total += answered
        proxy.wait_until_idle(other)
    proxy.wait_until_idle(slow)
    assert total.total() == 40 * EACH
    assert total[b"B"] > 0


def test_every_connection_that_a_process_is_sent_is_taken_and_ends(proxy: Harness) -> None:
    worker = proxy.start(b"A")
    for _ in range(20):
        clients, accepted = connections()
        for fd in accepted:
            proxy.send(worker, fd)
        proxy.wait_until_idle(worker)
        assert answers(clients) == {b"A": EACH}
    assert proxy.counters.handoffs["accepted"] == 20 * EACH
    assert proxy.counters.worker_connections[worker.link.member] == 20 * EACH
