"""Thousands of connections to processes that are stopped, killed or robbed: each has one owner.

Real processes take connections with a worker's own code; whatever is not taken is read back
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
from tests.support.proxy.links import sent

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
    """A worker's life: say its name to everybody and hang up."""
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


class Proxy:
    """What the account is about."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.counters = ServiceCounters()
        self.fd_budget = FdBudget(1 << 20, 0, 0)
        self.processes: list[Process] = []
        self.sent = 0

    def start(self, name: bytes) -> Process:
        proxy, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        member = Member(len(self.processes), "", 1, MemberState.UP)
        link = Link(self.loop, member.slot, member, self.counters, self.fd_budget, lambda _: None)
        link.has("proxy", proxy)
        link.has("worker", worker.dup())
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
        """However long it takes: a full link is heard until it is not."""
        while not sent(process.link, fd, 0.0):
            process.link.hear()
        self.sent += 1
        self.check()

    def check(self) -> None:
        counters, links = self.counters, [process.link for process in self.processes]
        assert self.sent == sum(counters.handoffs.values()) + counters.in_flight
        assert counters.handoffs["lost"] == 0
        assert counters.in_flight == self.fd_budget.in_flight == sum(one.in_flight for one in links)
        assert counters.opened == sum(one.open for one in links)
        assert all(o.member.active == o.in_flight + o.open for o in links)

    def take_back(self, process: Process) -> list[int]:
        found = process.link.take_back()
        self.check()
        return found

    def settle(self, process: Process) -> None:
        """Until it has taken everything and everything that it took has ended."""
        for _ in range(int(WAIT_S * 100)):
            process.link.hear()
            self.check()
            if not process.link.in_flight and not process.link.open:
                return
            self.loop.run_until_complete(asyncio.sleep(0.01))
        raise AssertionError("it does not take what it was sent")

    def end(self, process: Process) -> None:
        if process.alive:
            process.signal(signal.SIGKILL)
        for fd in self.take_back(process):
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
def proxy() -> Iterator[Proxy]:
    before = descriptors()
    made = Proxy()
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
    """All that each of them was sent until it was hung up on."""
    heard: Counter[bytes] = Counter()
    for client in clients:
        said = b""
        while data := client.recv(16):
            said += data
        heard[said] += 1
        client.close()
    return heard


def test_a_killed_worker_takes_along_no_more_than_it_was_serving(proxy: Proxy) -> None:
    dice = random.Random(1)
    heir = proxy.start(b"B")
    total: Counter[bytes] = Counter()
    for _ in range(30):
        victim = proxy.start(b"A")
        clients, accepted = connections()
        moment = dice.randrange(EACH)
        for index, fd in enumerate(accepted):
            proxy.send(victim, fd)
            if index == moment:
                os.kill(victim.pid, signal.SIGKILL)
        victim.signal(signal.SIGKILL)
        found = proxy.take_back(victim)
        for fd in found:
            proxy.send(heir, fd)
        proxy.settle(heir)
        heard = answers(clients)
        assert set(heard) <= {b"A", b"B", b""}
        assert heard[b"B"] == len(found)
        assert heard[b""] <= 1, "the one that it had taken and not answered yet"
        total += heard
        proxy.end(victim)
    assert total.total() == 30 * EACH
    assert total[b"B"] > 0


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "running"])
def test_no_client_is_served_twice_when_its_worker_comes_back(proxy: Proxy, stop: bool) -> None:
    dice = random.Random(2)
    slow, other = proxy.start(b"A"), proxy.start(b"B")
    total: Counter[bytes] = Counter()
    for _ in range(40):
        clients, accepted = connections()
        moment = dice.randrange(EACH)
        found: list[int] = []
        for index, fd in enumerate(accepted):
            proxy.send(slow, fd)
            if index == moment:
                if stop:
                    slow.signal(signal.SIGSTOP)
                else:
                    # It may be taking this very one.
                    found += proxy.take_back(slow)
        found += proxy.take_back(slow)
        if stop:
            slow.signal(signal.SIGCONT)
        for fd in found:
            proxy.send(other, fd)
        heard = answers(clients)
        assert set(heard) <= {b"A", b"B"}, "one answer each"
        assert heard[b"B"] == len(found)
        total += heard
        proxy.settle(other)
    proxy.settle(slow)
    assert total.total() == 40 * EACH
    assert total[b"B"] > 0


def test_all_that_one_is_sent_is_taken_and_ends(proxy: Proxy) -> None:
    worker = proxy.start(b"A")
    for _ in range(20):
        clients, accepted = connections()
        for fd in accepted:
            proxy.send(worker, fd)
        proxy.settle(worker)
        assert answers(clients) == {b"A": EACH}
    assert proxy.counters.handoffs["accepted"] == 20 * EACH
    assert proxy.counters.worker_connections[worker.link.member.slot] == 20 * EACH
