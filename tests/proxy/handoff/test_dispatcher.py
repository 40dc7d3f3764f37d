"""A connection goes to a worker that can take it, and to another if it does not.

The service, its listeners and its links are real. The test controls the workers' ends and the
clock.
Covers `handoff/pending`.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.support.descriptors import descriptors
from tests.support.proxy.one_service import OneService

from penstock_proxy import messages
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import ServiceConfig, Target
from penstock_proxy.handoff import link as link_module
from penstock_proxy.handoff.pending import Pending
from penstock_proxy.metrics import snapshot
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TimerWheel
from penstock_proxy.runtime.commands import carry_out
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import RESERVE, FdBudget
from penstock_worker.handoff.protocol import CLIENT, CREDIT, MAX_PER_MESSAGE, receive
from penstock_worker.net.proxy_protocol import Header, build, parse

if TYPE_CHECKING:
    from penstock_proxy.balancing.probes import ProbeResult

WAIT_S = 10.0


class Harness:
    """A service with a few workers; the test acts for them."""

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
            targets=tuple(Target(member=slot, slot=slot, address="") for slot in range(workers)),
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
        self.fds_taken: list[int] = []
        self.sent = 0
        for slot in range(workers):
            self.start(slot, slot + 1)
        self.service.listeners.start()

    def start(self, slot: int, number: int) -> None:
        """A process of the member with this slot's number is ready, and healthy."""
        pool = self.service.pool
        member = pool.member(slot)
        proxy, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.dispatcher.add_link_end(member, number, "proxy", proxy)
        self.dispatcher.add_link_end(member, number, "worker", worker.dup())
        self.workers[number] = worker
        self.dispatcher.use_link(member, number)
        pool.join(slot)
        pool.checked(member, ok=True, now=self.now, reason="")

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
            self.fds_taken += got[1]
            taken += size
        self.turn()
        return taken

    def taken(self) -> Iterator[socket.socket]:
        """What workers have taken, as sockets."""
        while self.fds_taken:
            with socket.socket(fileno=self.fds_taken.pop()) as sock:
                yield sock

    @property
    def counted(self) -> int:
        return self.service.counters.in_flight

    @property
    def results(self) -> tuple[int, int, int]:
        self.dispatcher.poll_reports()
        handoffs = self.service.counters.handoffs
        return handoffs["accepted"], handoffs["requeued"], handoffs["lost"]

    def close(self) -> None:
        for number in tuple(self.workers):
            self.dispatcher.remove_link(number)
        self.service.drain()
        for waiting in tuple(self.service.queue):
            assert isinstance(waiting, Pending)
            waiting.expired(self.now)
        for worker in self.workers.values():
            worker.close()
        for client in self.clients:
            client.close()
        for fd in self.fds_taken:
            os.close(fd)
        self.loop.close()


@pytest.fixture
def make_harness() -> Iterator[Any]:
    before = descriptors()
    with ExitStack() as stack:

        def make(**keys: Any) -> Harness:
            made = Harness(**keys)
            stack.callback(made.close)
            return made

        yield make
    assert descriptors() == before


def test_connections_alternate_and_our_copies_are_closed(make_harness: Any) -> None:
    harness = make_harness()
    before = harness.fd_budget.open
    harness.connect(6)
    assert (harness.take(1), harness.take(2)) == (3, 3)
    assert harness.results == (6, 0, 0)
    assert harness.fd_budget.open == before
    assert harness.service.counters.opened == 6


def test_connections_accepted_together_are_sent_together(make_harness: Any) -> None:
    harness = make_harness()
    harness.connect(4, at_once=True)
    for number in (1, 2):
        got = receive(harness.workers[number])
        assert got is not None
        assert (got[0], len(got[1])) == (CLIENT * 2, 2)
        harness.fds_taken += got[1]
    harness.connect(20, at_once=True)
    assert (harness.take(1), harness.take(2)) == (10, 10)


def test_connections_accepted_together_respect_the_window(make_harness: Any) -> None:
    harness = make_harness(workers=1, handoff_window=5)
    harness.connect(12, at_once=True)
    assert harness.service.counters.in_flight == 5
    assert len(harness.service.queue) == 7
    assert harness.take(1) == 5
    while harness.take(1):
        pass
    assert harness.results == (12, 0, 0)
    assert not harness.service.queue


def test_connections_that_a_dead_worker_had_not_taken_go_to_another(make_harness: Any) -> None:
    harness = make_harness()
    harness.connect(6)
    assert harness.take(1, 1) == 1
    harness.service.pool.leave(0)
    harness.dispatcher.remove_link(1)
    assert harness.take(2) == 5
    assert harness.results == (6, 2, 0)
    assert harness.service.counters.retries == 2


def test_a_connection_is_hashed_by_the_address_in_its_header_which_the_worker_reads(
    make_harness: Any,
) -> None:
    harness = make_harness(
        workers=3, balance="client_hash", accept_proxy=True, trusted_proxies=["127.0.0.1"]
    )
    headers = [build(2, (f"203.0.113.{n % 6}", n), ("192.0.2.1", 443)) for n in range(24)]
    for header in headers:
        harness.connect()
        assert harness.counted == harness.sent, (
            "nothing is sent before the client's address is known"
        )
        harness.clients[-1].sendall(header + b"GET")
        harness.turn()
        harness.sent += 1
    of: dict[str, int] = {}
    for number in (1, 3):
        for address in addresses_taken(harness, number):
            assert of.setdefault(address, number) == number
    harness.service.pool.leave(1)
    harness.dispatcher.remove_link(2)
    before = dict(of)
    for number in (1, 3):
        for address in addresses_taken(harness, number):
            assert before.get(address) is None, "only those of the dead worker have moved"
            assert of.setdefault(address, number) == number
    assert len(of) == 6
    assert harness.results[0] == 24


def addresses_taken(harness: Any, number: int) -> Iterator[str]:
    """The addresses in the headers of all that this worker takes."""
    harness.take(number)
    for sock in harness.taken():
        found = parse(sock.recv(100))
        assert isinstance(found, Header)
        assert isinstance(found.source, tuple)
        yield found.source[0]


def test_an_untrusted_peer_is_rejected_where_a_header_is_required(make_harness: Any) -> None:
    for balance in ("client_hash", "round_robin"):
        harness = make_harness(balance=balance, accept_proxy=True, trusted_proxies=["192.0.2.0/24"])
        harness.connect(3)
        counters = harness.service.counters
        assert counters.rejected["proxy_untrusted"] == 3
        assert (counters.active, counters.in_flight, harness.fd_budget.pending) == (0, 0, 0)


def test_connections_that_a_stopped_worker_does_not_take_in_time_go_to_another(
    make_harness: Any,
) -> None:
    harness = make_harness(timeouts={"connect": "1s"})
    harness.connect(4)
    harness.take(2)
    harness.tick(0.5)
    assert harness.results == (2, 0, 0)
    harness.tick(0.6)
    assert harness.take(2) == 2
    assert harness.results == (4, 2, 0)
    # It goes on: what it was sent is no longer there.
    assert receive(harness.workers[1]) is None
    harness.connect(4)
    assert harness.take(2) == 4, "nothing is sent to it before its next report"


def test_what_a_worker_that_may_hang_has_not_taken_goes_to_others_at_once(
    make_harness: Any,
) -> None:
    harness = make_harness()
    harness.connect(4)
    harness.service.hold_member(0, "does not answer")
    harness.turn()
    assert harness.take(2) == 4
    assert harness.results == (4, 2, 0)
    assert not sum(harness.service.counters.errors.values()), "nobody says that it failed"
    harness.service.release_member(0)
    pool = harness.service.pool
    for _ in range(2):
        pool.checked(pool.member(0), ok=True, now=harness.now, reason="")
    harness.connect(4)
    assert (harness.take(1), harness.take(2)) == (2, 2)


def test_if_all_workers_may_hang_nothing_is_taken_back(make_harness: Any) -> None:
    harness = make_harness()
    harness.connect(4)
    harness.service.hold_member(0, "does not answer")
    harness.service.hold_member(1, "does not answer")
    harness.turn()
    assert harness.results == (0, 2, 0), "those of the first one"
    harness.connect(2)
    # They are used all the same, as nobody else is there.
    assert harness.take(1) + harness.take(2) == 6


def test_an_end_of_a_link_for_a_member_that_is_gone_is_closed(make_harness: Any) -> None:
    harness = make_harness()
    process = SimpleNamespace(services=OneService(harness.service))
    message = {"cmd": messages.LINK, "member": 7, "link": 9, "end": "proxy"}
    for service in ("web", "gone"):
        ours, theirs = socket.socketpair()
        with theirs:
            carry_out(cast("Any", process), {**message, "service": service}, ours)
            assert ours.fileno() == -1


def test_a_check_that_is_cancelled_when_its_worker_ends_stays_cancelled(make_harness: Any) -> None:
    harness = make_harness()
    member = harness.service.pool.member(0)
    checking = harness.loop.create_task(harness.dispatcher.check(member))
    harness.turn()
    # In the same turn of the loop.
    harness.dispatcher.remove_link(1)
    checking.cancel()
    harness.turn()
    assert checking.cancelled()


def test_a_stuck_worker_that_takes_a_check_is_sent_connections_again(make_harness: Any) -> None:
    harness = make_harness(timeouts={"connect": "1s"})
    harness.connect(2)
    harness.take(2)
    harness.tick(1.5)
    harness.take(2)
    checking = harness.loop.create_task(harness.dispatcher.check(harness.service.pool.member(0)))
    harness.turn()
    got = receive(harness.workers[1])
    assert got is not None
    os.close(got[1][0])
    harness.workers[1].send(CREDIT.pack(1, 0))
    verdict: ProbeResult = harness.loop.run_until_complete(checking)
    assert verdict.outcome == "ok"
    harness.connect(2)
    assert (harness.take(1), harness.take(2)) == (1, 1)


def test_no_more_than_the_window_are_in_flight(make_harness: Any) -> None:
    harness = make_harness(workers=1, handoff_window=3)
    harness.connect(5)
    assert harness.service.counters.in_flight == 3
    assert len(harness.service.queue) == 2
    assert harness.take(1, 1) == 1
    assert harness.service.counters.in_flight == 3
    harness.take(1)
    harness.take(1)
    assert harness.results == (5, 0, 0)
    assert not harness.service.queue


def test_a_connection_that_finds_no_worker_is_closed_and_counted(make_harness: Any) -> None:
    harness = make_harness(
        workers=1, handoff_window=1, timeouts={"queue": "1s"}, limits={"queue": 1}
    )
    harness.connect(3)
    assert harness.service.counters.rejected["queue_full"] == 1
    harness.tick(2.0)
    assert harness.service.counters.rejected["queue_timeout"] == 1
    assert harness.service.counters.active == 0
    assert (harness.fd_budget.pending, harness.fd_budget.clients) == (0, 0)


def test_a_refusal_of_the_kernel_does_not_restart_the_queue_timeout(
    make_harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ETOOMANYREFS, "too many")

    harness = make_harness(workers=1, handoff_window=2)
    harness.connect(4)
    since = [pending.started for pending in harness.service.queue]
    with monkeypatch.context() as patched:
        patched.setattr(link_module, "send", refuse)
        harness.take(1)
    assert [pending.started for pending in harness.service.queue] == since
    assert harness.service.counters.in_flight == 0
    harness.tick(1.0)
    harness.take(1)
    assert harness.results == (4, 0, 0)


def test_a_connection_needs_one_descriptor_wherever_it_is(make_harness: Any) -> None:
    harness = make_harness(workers=1, handoff_window=2)
    account = harness.fd_budget
    harness.connect(5)
    assert (account.in_flight, account.pending, account.clients) == (2, 3, 0)
    assert account.by_kind()["client"] == 3
    harness.take(1, 2)
    assert (account.in_flight, account.pending) == (2, 1)
    harness.dispatcher.remove_link(1)
    assert (account.in_flight, account.pending) == (0, 3), "reclaimed ones count here again"


def test_no_more_are_accepted_than_may_be_reclaimed(make_harness: Any) -> None:
    harness = make_harness(workers=1)
    account = harness.fd_budget
    account.other += 10_000 - account.open - RESERVE - 4
    harness.connect(6)
    assert account.in_flight == 3, "two are left, as each one needs"
    harness.dispatcher.remove_link(1)
    assert len(harness.service.queue) == 3
    assert account.open + RESERVE <= 10_000
    account.other = 10
    harness.start(0, 2)
    harness.tick(0.3)
    assert harness.take(2) == 6


def test_a_worker_that_drains_gets_no_more_and_keeps_what_it_has(make_harness: Any) -> None:
    harness = make_harness()
    harness.connect(2)
    harness.service.pool.drain(0)
    harness.connect(4)
    assert (harness.take(1), harness.take(2)) == (1, 5)
    assert harness.service.pool.member(0).state is MemberState.DRAINING


def test_a_successor_takes_over_while_the_old_one_still_has_clients(make_harness: Any) -> None:
    harness = make_harness(workers=1)
    harness.connect(2)
    harness.take(1)
    harness.service.pool.drain(0)
    harness.start(0, 7)
    harness.connect(3)
    assert (harness.take(1), harness.take(7)) == (0, 3)
    assert harness.service.pool.member(0).active == 5
    harness.dispatcher.remove_link(1)
    harness.dispatcher.poll_reports()
    assert harness.service.pool.member(0).active == 3, "those of the old process are gone"


def test_a_worker_with_invalid_reports_gets_nothing_and_others_get_its_share(
    make_harness: Any,
) -> None:
    harness = make_harness()
    harness.connect(2)
    harness.workers[1].send(b"nonsense")
    harness.dispatcher.poll_reports()
    harness.connect(4)
    assert harness.take(2) == 6
    assert harness.results[2] == 0


def test_connections_that_are_open_in_workers_count_for_the_limit(make_harness: Any) -> None:
    harness = make_harness(max_connections=2)
    harness.connect(3)
    harness.take(1)
    harness.take(2)
    assert harness.service.counters.connections == 2
    harness.workers[1].send(CREDIT.pack(0, 1))
    harness.tick(0.3)
    assert harness.service.counters.connections == 3


def test_policies_that_count_connections_see_an_end_at_once(make_harness: Any) -> None:
    harness = make_harness(balance="least_connections")
    harness.connect(2)
    harness.take(1)
    harness.take(2)
    harness.workers[2].send(CREDIT.pack(0, 1))
    harness.turn()
    harness.connect(1)
    assert (harness.take(1), harness.take(2)) == (0, 1)


def test_without_any_link_clients_wait(make_harness: Any) -> None:
    harness = make_harness(workers=1)
    harness.dispatcher.remove_link(1)
    harness.service.pool.leave(0)
    harness.connect(2)
    assert len(harness.service.queue) == 2
    harness.start(0, 9)
    harness.tick(0.3)
    assert harness.take(9) == 2


def test_a_worker_has_no_more_connections_than_it_may_have(make_harness: Any) -> None:
    harness = make_harness(workers=2, limits={"per_worker": 2}, timeouts={"queue": "9s"})
    harness.connect(6)
    assert [member.active for member in harness.service.pool.members] == [2, 2]
    assert len(harness.service.queue) == 2
    assert (harness.take(1), harness.take(2)) == (2, 2)
    assert len(harness.service.queue) == 2, "taken is not ended"
    harness.workers[2].send(CREDIT.pack(0, 1))
    harness.turn()
    assert [member.active for member in harness.service.pool.members] == [2, 2]
    assert len(harness.service.queue) == 1
    harness.dispatcher.remove_link(1)
    assert harness.service.pool.members[0].active == 0
    harness.service.pool.leave(0)
    harness.workers[2].send(CREDIT.pack(1, 1))
    harness.turn()
    assert not harness.service.queue
    assert harness.service.pool.members[1].active == 2


def test_workers_are_asked_for_room_by_those_that_wait_for_one_that_is_not_full(
    make_harness: Any,
) -> None:
    harness = make_harness(workers=2, limits={"per_worker": 2}, timeouts={"queue": "9s"})
    asked: list[int] = []
    harness.service.overload.on_crowded = asked.append
    harness.connect(4)
    harness.tick(0.25)
    assert not asked
    harness.connect(2)
    harness.take(1)
    harness.take(2)
    harness.tick(0.25)
    harness.tick(0.25)
    assert asked == [2, 2]
    harness.workers[2].send(CREDIT.pack(0, 2))
    harness.turn()
    harness.tick(0.25)
    assert asked == [2, 2]


def test_a_worker_that_is_added_gets_connections_as_soon_as_it_has_a_link(
    make_harness: Any,
) -> None:
    harness = make_harness(workers=1, handoff_window=2)
    harness.service.add_member(Target(member=1, slot=1, address=""))
    harness.connect(4)
    assert len(harness.service.queue) == 2, "the new one has no link"
    harness.start(1, 2)
    harness.tick(0.3)
    assert (harness.take(1), harness.take(2)) == (2, 2)
    assert harness.results == (4, 0, 0)


def test_connections_in_flight_to_a_removed_worker_go_to_another(make_harness: Any) -> None:
    harness = make_harness()
    harness.connect(6)
    assert harness.take(1, 1) == 1
    harness.service.remove_member(0)
    assert harness.take(2) == 5
    assert harness.results == (6, 2, 0)
    harness.connect(2)
    assert harness.take(2) == 2
    assert harness.results == (8, 2, 0)
    assert harness.service.counters.opened == 7, "those in the removed worker do not count"


def test_nothing_is_left_of_a_worker_that_is_removed(make_harness: Any) -> None:
    harness = make_harness(balance="least_connections")
    kept = harness.fd_budget.open
    member = harness.service.add_member(Target(member=2, slot=2, address=""))
    harness.start(2, 3)
    harness.start(2, 4)
    harness.connect(3)
    checking = harness.loop.create_task(harness.dispatcher.check(member))
    harness.turn()
    harness.service.remove_member(2)
    result: ProbeResult = harness.loop.run_until_complete(checking)
    assert result.outcome == "failed"
    dispatcher = harness.dispatcher
    assert {link.member.slot for link in dispatcher._links.values()} == {0, 1}
    assert set(dispatcher._current) == {0, 1}
    assert member not in dispatcher._unavailable
    assert not dispatcher._unflushed
    assert (member.active, harness.fd_budget.open) == (0, kept)
    assert harness.take(1) + harness.take(2) == 3


def test_all_wait_when_the_only_worker_is_removed_and_the_next_one_gets_them(
    make_harness: Any,
) -> None:
    harness = make_harness(workers=1)
    harness.connect(3)
    harness.service.remove_member(0)
    assert len(harness.service.queue) == 3
    harness.service.add_member(Target(member=0, slot=0, address=""))
    harness.start(0, 9)
    harness.tick(0.3)
    assert harness.take(9) == 3
    assert harness.results == (3, 3, 0)


def add_successor(harness: Any, member: int, slot: int) -> Member:
    """A member in a slot that has one already; its process is ready, at the link of its number."""
    added: Member = harness.service.add_member(Target(member=member, slot=slot, address=""))
    harness.start(member, member + 1)
    return added


def test_a_worker_and_its_successor_have_links_of_their_own(make_harness: Any) -> None:
    harness = make_harness()
    add_successor(harness, 5, slot=0)
    harness.connect(6)
    assert (harness.take(1), harness.take(2), harness.take(6)) == (2, 2, 2)
    harness.service.pool.drain(0)
    harness.connect(6)
    assert (harness.take(1), harness.take(2), harness.take(6)) == (0, 3, 3)
    by_slot = snapshot_of(harness)["penstock_worker_connections_total"]
    assert by_slot == {"0": 7, "1": 5}


def snapshot_of(harness: Any) -> Any:
    harness.dispatcher.poll_reports()
    counted = {"web": harness.service.counters}
    return snapshot(counted, fds={}, log_dropped={})["services"]["web"]


def test_what_a_removed_worker_has_not_taken_goes_to_others(make_harness: Any) -> None:
    harness = make_harness()
    before = harness.fd_budget.open
    add_successor(harness, 5, slot=0)
    harness.connect(6)
    assert harness.take(1, 1) == 1
    harness.service.pool.drain(0)
    harness.service.pool.leave(0)
    harness.service.remove_member(0)
    harness.turn()
    assert harness.take(2) + harness.take(6) == 5
    assert harness.results == (6, 1, 0)
    assert harness.service.pool.member(5).active + harness.service.pool.member(1).active == 5
    assert snapshot_of(harness)["penstock_worker_connections_total"]["0"] >= 3
    assert harness.fd_budget.open == before, "two ends of a link have come, and two have gone"
    # Its message may have been on its way.
    harness.dispatcher.remove_link(1)


def test_successors_for_ever_leave_nothing(make_harness: Any) -> None:
    harness = make_harness(workers=1)
    dispatcher, before = harness.dispatcher, descriptors()
    for member in range(10, 60):
        add_successor(harness, member, slot=0)
        harness.connect(2)
        harness.service.remove_member(member)
        harness.turn()
        harness.workers.pop(member + 1).close()
        while harness.take(1):
            pass
        for sock in harness.clients:
            sock.close()
        harness.clients.clear()
        list(harness.taken())
    assert descriptors() == before
    assert list(dispatcher._links) == [1]
    assert list(dispatcher._current) == [0]
    assert {member.number for member in dispatcher._unavailable} <= {0}
    assert not dispatcher._unflushed


def test_a_link_of_another_member_is_not_used(make_harness: Any) -> None:
    harness = make_harness()
    harness.dispatcher.use_link(harness.service.pool.member(0), 2)
    harness.connect(4)
    assert (harness.take(1), harness.take(2)) == (2, 2)
