"""A connection goes to a worker that can take it, and to another if it does not.

A real service of the proxy with real listeners and links; the workers' ends are in the hands
of the test, and so is the clock.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.descriptors import descriptors

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.config import ServiceConfig, Target
from penstock_proxy.handoff import link as link_module
from penstock_proxy.handoff.pending import Pending
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import RESERVE, FdBudget
from penstock_worker.handoff.protocol import CLIENT, CREDIT, MAX_PER_MESSAGE, receive
from penstock_worker.net.proxy_protocol import Header, build, parse

if TYPE_CHECKING:
    from penstock_proxy.balancing.probes import ProbeResult

WAIT_S = 10.0


class House:
    """A service with a few workers, each of which does what it is told."""

    def __init__(self, workers: int = 2, **keys: Any) -> None:
        self.loop = asyncio.new_event_loop()
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        listener.setblocking(False)
        self.address = listener.getsockname()
        self.now = monotonic()
        self.timers = TimerWheel(self.now)
        self.fd_budget = FdBudget(10_000, 1, 10)
        config = ServiceConfig(
            name="web",
            scheme="handoff",
            listeners=(listener.detach(),),
            targets=tuple(Target(slot=slot, address="") for slot in range(workers)),
            **keys,
        )
        self.service = Service(
            self.loop,
            Reactor(self.loop),
            config,
            self.timers,
            self.fd_budget,
            None,
            lambda *_: None,
        )
        assert self.service.dispatcher is not None
        self.dispatcher = self.service.dispatcher
        self.workers: dict[int, socket.socket] = {}
        self.clients: list[socket.socket] = []
        self.held: list[int] = []
        self.sent = 0
        for slot in range(workers):
            self.start(slot, slot + 1)
        self.service.listeners.start()

    def start(self, slot: int, number: int) -> None:
        """A process of this slot is ready, and healthy."""
        proxy, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.dispatcher.linked(slot, number, "proxy", proxy)
        self.dispatcher.linked(slot, number, "worker", worker.dup())
        self.workers[number] = worker
        self.dispatcher.joined(slot, number)
        pool = self.service.pool
        pool.join(slot)
        pool.checked(pool.member(slot), ok=True, now=self.now, why="")

    def connect(self, count: int = 1, *, at_once: bool = False) -> None:
        for _ in range(count):
            self.clients.append(socket.create_connection(self.address, timeout=WAIT_S))
            if not at_once:
                self.turn()
        self.turn()

    def turn(self) -> None:
        """Let the loop see all that is there."""
        for _ in range(50):
            self.loop.run_until_complete(asyncio.sleep(0))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.timers.tick(self.now)
        self.service.tick(self.now)
        self.turn()

    def take(self, number: int, most: int = 1000) -> int:
        """The worker takes what waits for it; how many."""
        worker, taken = self.workers[number], 0
        while taken < most:
            try:
                size = len(worker.recv(MAX_PER_MESSAGE, socket.MSG_PEEK | socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
            worker.send(CREDIT.pack(size, 0))
            got = receive(worker)
            assert got is not None
            self.held += got[1]
            taken += size
        self.turn()
        return taken

    def taken(self) -> Iterator[socket.socket]:
        """What workers have taken, to look at it."""
        while self.held:
            with socket.socket(fileno=self.held.pop()) as sock:
                yield sock

    @property
    def counted(self) -> int:
        return self.service.counters.in_flight

    @property
    def results(self) -> tuple[int, int, int]:
        self.dispatcher.settle()
        handoffs = self.service.counters.handoffs
        return handoffs["accepted"], handoffs["requeued"], handoffs["lost"]

    def close(self) -> None:
        for number in tuple(self.workers):
            self.dispatcher.unlinked(number)
        self.service.drain()
        for waiting in tuple(self.service.queue):
            assert isinstance(waiting, Pending)
            waiting.expired(self.now)
        for worker in self.workers.values():
            worker.close()
        for client in self.clients:
            client.close()
        for fd in self.held:
            os.close(fd)
        self.loop.close()


@pytest.fixture
def houses() -> Iterator[Any]:
    before = descriptors()
    with ExitStack() as stack:

        def make(**keys: Any) -> House:
            made = House(**keys)
            stack.callback(made.close)
            return made

        yield make
    assert descriptors() == before


def test_connections_go_round_and_our_copies_are_closed(houses: Any) -> None:
    house = houses()
    before = house.fd_budget.open
    house.connect(6)
    assert (house.take(1), house.take(2)) == (3, 3)
    assert house.results == (6, 0, 0)
    assert house.fd_budget.open == before
    assert house.service.counters.opened == 6


def test_those_that_come_together_are_sent_together(houses: Any) -> None:
    house = houses()
    house.connect(4, at_once=True)
    for number in (1, 2):
        got = receive(house.workers[number])
        assert got is not None
        assert (got[0], len(got[1])) == (CLIENT * 2, 2)
        house.held += got[1]
    house.connect(20, at_once=True)
    assert (house.take(1), house.take(2)) == (10, 10)


def test_of_those_that_come_together_the_last_may_have_to_wait(houses: Any) -> None:
    house = houses(workers=1, handoff_window=5)
    house.connect(12, at_once=True)
    assert house.service.counters.in_flight == 5
    assert len(house.service.queue) == 7
    assert house.take(1) == 5
    while house.take(1):
        pass
    assert house.results == (12, 0, 0)
    assert not house.service.queue


def test_what_a_dead_worker_had_not_taken_goes_to_another(houses: Any) -> None:
    house = houses()
    house.connect(6)
    assert house.take(1, 1) == 1
    house.service.pool.leave(0)
    house.dispatcher.unlinked(1)
    assert house.take(2) == 5
    assert house.results == (6, 2, 0)
    assert house.service.counters.retries == 2


def test_a_connection_goes_by_the_address_in_its_header_which_the_worker_reads(
    houses: Any,
) -> None:
    house = houses(
        workers=3, balance="client_hash", accept_proxy=True, trusted_proxies=["127.0.0.1"]
    )
    headers = [build(2, (f"203.0.113.{n % 6}", n), ("192.0.2.1", 443)) for n in range(24)]
    for header in headers:
        house.connect()
        assert house.counted == house.sent, "nobody is passed on before it is known"
        house.clients[-1].sendall(header + b"GET")
        house.turn()
        house.sent += 1
    of: dict[str, int] = {}
    for number in (1, 3):
        for address in told(house, number):
            assert of.setdefault(address, number) == number
    house.service.pool.leave(1)
    house.dispatcher.unlinked(2)
    before = dict(of)
    for number in (1, 3):
        for address in told(house, number):
            assert before.get(address) is None, "only the dead one's have moved"
            assert of.setdefault(address, number) == number
    assert len(of) == 6
    assert house.results[0] == 24


def told(house: Any, number: int) -> Iterator[str]:
    """The addresses in the headers of all that this worker takes."""
    house.take(number)
    for sock in house.taken():
        found = parse(sock.recv(100))
        assert isinstance(found, Header)
        assert isinstance(found.source, tuple)
        yield found.source[0]


def test_a_stranger_is_not_passed_on_where_a_header_is_wanted(houses: Any) -> None:
    for balance in ("client_hash", "round_robin"):
        house = houses(balance=balance, accept_proxy=True, trusted_proxies=["192.0.2.0/24"])
        house.connect(3)
        counters = house.service.counters
        assert counters.rejected["proxy_untrusted"] == 3
        assert (counters.active, counters.in_flight, house.fd_budget.pending) == (0, 0, 0)


def test_what_a_stopped_worker_does_not_take_in_time_goes_to_another(houses: Any) -> None:
    house = houses(timeouts={"connect": "1s"})
    house.connect(4)
    house.take(2)
    house.tick(0.5)
    assert house.results == (2, 0, 0)
    house.tick(0.6)
    assert house.take(2) == 2
    assert house.results == (4, 2, 0)
    # It wakes up: what it finds is not its any more.
    assert receive(house.workers[1]) is None
    house.connect(4)
    assert house.take(2) == 4, "nothing is sent to it before it says a word"


def test_a_stuck_worker_that_takes_a_check_is_sent_connections_again(houses: Any) -> None:
    house = houses(timeouts={"connect": "1s"})
    house.connect(2)
    house.take(2)
    house.tick(1.5)
    house.take(2)
    checking = house.loop.create_task(house.dispatcher.check(house.service.pool.member(0)))
    house.turn()
    got = receive(house.workers[1])
    assert got is not None
    os.close(got[1][0])
    house.workers[1].send(CREDIT.pack(1, 0))
    verdict: ProbeResult = house.loop.run_until_complete(checking)
    assert verdict.outcome == "ok"
    house.connect(2)
    assert (house.take(1), house.take(2)) == (1, 1)


def test_no_more_than_the_window_are_on_their_way(houses: Any) -> None:
    house = houses(workers=1, handoff_window=3)
    house.connect(5)
    assert house.service.counters.in_flight == 3
    assert len(house.service.queue) == 2
    assert house.take(1, 1) == 1
    assert house.service.counters.in_flight == 3
    house.take(1)
    house.take(1)
    assert house.results == (5, 0, 0)
    assert not house.service.queue


def test_who_waits_in_vain_is_closed_and_counted(houses: Any) -> None:
    house = houses(workers=1, handoff_window=1, timeouts={"queue": "1s"}, limits={"queue": 1})
    house.connect(3)
    assert house.service.counters.rejected["queue_full"] == 1
    house.tick(2.0)
    assert house.service.counters.rejected["queue_timeout"] == 1
    assert house.service.counters.active == 0
    assert (house.fd_budget.pending, house.fd_budget.clients) == (0, 0)


def test_who_is_refused_by_the_kernel_has_waited_since_it_came(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ETOOMANYREFS, "too many")

    house = houses(workers=1, handoff_window=2)
    house.connect(4)
    since = [passage.started for passage in house.service.queue]
    with monkeypatch.context() as patched:
        patched.setattr(link_module, "send", refuse)
        house.take(1)
    assert [passage.started for passage in house.service.queue] == since
    assert house.service.counters.in_flight == 0
    house.tick(1.0)
    house.take(1)
    assert house.results == (4, 0, 0)


def test_a_connection_needs_one_descriptor_wherever_it_is(houses: Any) -> None:
    house = houses(workers=1, handoff_window=2)
    account = house.fd_budget
    house.connect(5)
    assert (account.in_flight, account.waiting, account.clients) == (2, 3, 0)
    assert account.by_kind()["client"] == 3
    house.take(1, 2)
    assert (account.in_flight, account.waiting) == (2, 1)
    house.dispatcher.unlinked(1)
    assert (account.in_flight, account.waiting) == (0, 3), "what came back is here again"


def test_no_more_are_let_in_than_may_come_back(houses: Any) -> None:
    house = houses(workers=1)
    account = house.fd_budget
    account.other += 10_000 - account.open - RESERVE - 4
    house.connect(6)
    assert account.in_flight == 3, "two are left for one more"
    house.dispatcher.unlinked(1)
    assert len(house.service.queue) == 3
    assert account.open + RESERVE <= 10_000
    account.other = 10
    house.start(0, 2)
    house.tick(0.3)
    assert house.take(2) == 6


def test_a_worker_that_drains_gets_no_more_and_keeps_what_it_has(houses: Any) -> None:
    house = houses()
    house.connect(2)
    house.service.pool.drain(0)
    house.connect(4)
    assert (house.take(1), house.take(2)) == (1, 5)
    assert house.service.pool.member(0).state is MemberState.DRAINING


def test_a_successor_takes_over_while_the_old_one_still_has_clients(houses: Any) -> None:
    house = houses(workers=1)
    house.connect(2)
    house.take(1)
    house.service.pool.drain(0)
    house.start(0, 7)
    house.connect(3)
    assert (house.take(1), house.take(7)) == (0, 3)
    assert house.service.pool.member(0).active == 5
    house.dispatcher.unlinked(1)
    house.dispatcher.settle()
    assert house.service.pool.member(0).active == 3, "what the old one had is over"


def test_a_worker_that_talks_nonsense_is_left_alone_and_its_share_goes_on(houses: Any) -> None:
    house = houses()
    house.connect(2)
    house.workers[1].send(b"nonsense")
    house.dispatcher.settle()
    house.connect(4)
    assert house.take(2) == 6
    assert house.results[2] == 0


def test_connections_that_are_open_in_workers_count_for_the_limit(houses: Any) -> None:
    house = houses(max_connections=2)
    house.connect(3)
    house.take(1)
    house.take(2)
    assert house.service.counters.connections == 2
    house.workers[1].send(CREDIT.pack(0, 1))
    house.tick(0.3)
    assert house.service.counters.connections == 3


def test_policies_that_count_hear_of_an_end_at_once(houses: Any) -> None:
    house = houses(balance="least_connections")
    house.connect(2)
    house.take(1)
    house.take(2)
    house.workers[2].send(CREDIT.pack(0, 1))
    house.turn()
    house.connect(1)
    assert (house.take(1), house.take(2)) == (0, 1)


def test_before_anybody_is_linked_clients_wait(houses: Any) -> None:
    house = houses(workers=1)
    house.dispatcher.unlinked(1)
    house.service.pool.leave(0)
    house.connect(2)
    assert len(house.service.queue) == 2
    house.start(0, 9)
    house.tick(0.3)
    assert house.take(9) == 2


def test_a_worker_has_no_more_connections_than_it_may_have(houses: Any) -> None:
    house = houses(workers=2, limits={"per_worker": 2}, timeouts={"queue": "9s"})
    house.connect(6)
    assert [member.active for member in house.service.pool.members] == [2, 2]
    assert len(house.service.queue) == 2
    assert (house.take(1), house.take(2)) == (2, 2)
    assert len(house.service.queue) == 2, "taken is not ended"
    house.workers[2].send(CREDIT.pack(0, 1))
    house.turn()
    assert [member.active for member in house.service.pool.members] == [2, 2]
    assert len(house.service.queue) == 1
    house.dispatcher.unlinked(1)
    assert house.service.pool.members[0].active == 0
    house.service.pool.leave(0)
    house.workers[2].send(CREDIT.pack(1, 1))
    house.turn()
    assert not house.service.queue
    assert house.service.pool.members[1].active == 2
