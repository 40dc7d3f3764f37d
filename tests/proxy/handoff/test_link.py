"""Every connection sent over a link is taken, returned or lost, whatever the worker does.

Socket pairs and descriptors are real. The test controls the worker's end.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from fcntl import ioctl
from termios import FIONREAD

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.descriptors import descriptors
from tests.support.proxy.links import send

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.handoff.link import NEVER, Link
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.handoff.protocol import CREDIT, PROBE, receive


class Harness:
    """A link; the test acts as its worker."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.counters = ServiceCounters()
        self.member = Member(0, 0, "", 1, MemberState.UP)
        self.reports = 0
        self.fd_budget = FdBudget(1024, 0, 0)
        self.link = Link(self.loop, 1, self.member, self.counters, self.fd_budget, self._on_report)
        proxy, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker = worker
        self.link.adopt_end("proxy", proxy)
        self.link.adopt_end("worker", worker.dup())
        self.sent = 0

    def _on_report(self, _: Link) -> None:
        self.reports += 1

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            fd = os.open("/dev/null", os.O_RDONLY)
            assert send(self.link, fd, 1.0)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
            self.sent += 1

    def credit(self, taken: int, ended: int = 0) -> None:
        self.worker.send(CREDIT.pack(taken, ended))

    def take(self, count: int) -> int:
        """As a worker does: first send the credit, then take; returns how many it got."""
        self.credit(count)
        return self.dequeue(count)

    def dequeue(self, count: int) -> int:
        got = 0
        while got < count and (some := receive(self.worker)) is not None:
            for fd in some[1]:
                os.close(fd)
                got += 1
        return got

    @property
    def waiting(self) -> int:
        """Connections that the worker finds in its end."""
        return int.from_bytes(ioctl(self.worker, FIONREAD, bytes(4)), sys.byteorder)

    def reclaim(self) -> int:
        found = self.link.reclaim()
        for fd in found:
            os.close(fd)
        return len(found)

    @property
    def results(self) -> tuple[int, int, int]:
        handoffs = self.counters.handoffs
        return handoffs["accepted"], handoffs["requeued"], handoffs["lost"]

    def check(self) -> None:
        assert self.sent == sum(self.results) + self.counters.in_flight
        assert self.link.in_flight == self.counters.in_flight == self.fd_budget.in_flight
        assert self.link.open == self.counters.opened
        assert self.member.active == self.link.in_flight + self.link.open

    def close(self) -> None:
        self.reclaim()
        self.link.close()
        self.worker.close()
        self.loop.close()


@pytest.fixture
def harness() -> Iterator[Harness]:
    before = descriptors()
    with ExitStack() as stack:
        made = Harness()
        stack.callback(made.close)
        yield made
    assert descriptors() == before


def test_a_sent_connection_is_in_flight_until_it_is_taken(harness: Harness) -> None:
    harness.send(3)
    harness.check()
    assert harness.link.in_flight == 3
    assert harness.take(2) == 2
    assert harness.link.poll_reports()
    harness.check()
    assert (harness.link.in_flight, harness.link.open) == (1, 2)
    assert harness.counters.worker_connections[harness.member] == 2


def test_a_connection_that_ended_is_not_open(harness: Harness) -> None:
    harness.send(2)
    harness.take(2)
    harness.credit(0, ended=1)
    harness.link.poll_reports()
    harness.check()
    assert harness.link.open == 1


def test_a_connection_that_was_not_taken_is_returned(harness: Harness) -> None:
    harness.send(5)
    harness.take(2)
    assert harness.reclaim() == 3
    harness.check()
    assert harness.results == (2, 3, 0)


def test_a_connection_that_was_credited_and_not_taken_is_returned_too(harness: Harness) -> None:
    harness.send(3)
    harness.credit(1)
    assert harness.reclaim() == 3
    harness.check()
    assert harness.results == (1, 2, 0)
    assert harness.link.open == 0, "the worker does not have it"
    assert harness.dequeue(1) == 0, "exactly one gets it"


def test_a_connection_that_was_taken_without_a_credit_is_counted_as_lost(harness: Harness) -> None:
    harness.send(3)
    harness.dequeue(1)
    assert harness.reclaim() == 2
    harness.check()
    assert harness.results == (0, 2, 1)


def test_credits_for_nothing_are_harmless(harness: Harness) -> None:
    harness.send(1)
    harness.credit(500, ended=70)
    harness.link.poll_reports()
    harness.check()
    assert harness.results == (1, 0, 0)


@pytest.mark.parametrize("report", [b"", b"x", b"too much"])
def test_a_worker_with_an_invalid_report_breaks_its_link(harness: Harness, report: bytes) -> None:
    harness.send(2)
    if report:
        harness.worker.send(report)
    else:
        harness.worker.shutdown(socket.SHUT_WR)
    assert harness.link.poll_reports()
    assert harness.link.broken
    assert not harness.link.is_usable
    assert harness.reclaim() == 2
    harness.check()


def test_a_descriptor_that_a_worker_sends_is_closed(harness: Harness) -> None:
    with open("/dev/null") as file:  # noqa: PTH123
        socket.send_fds(harness.worker, [CREDIT.pack(0, 0)], [file.fileno()])
    before = descriptors()
    assert harness.link.poll_reports()
    assert descriptors() == before


def test_sending_to_a_worker_that_is_gone_fails(harness: Harness) -> None:
    harness.worker.shutdown(socket.SHUT_RDWR)
    fd = os.open("/dev/null", os.O_RDONLY)
    assert not send(harness.link, fd, 1.0)
    os.close(fd)
    harness.check()


def test_a_closed_link_ends_the_open_connections_of_its_process(harness: Harness) -> None:
    harness.send(4)
    harness.take(4)
    harness.link.poll_reports()
    assert harness.counters.opened == 4
    harness.link.close()
    assert (harness.counters.opened, harness.member.active) == (0, 0)


def test_a_probe_is_not_counted_as_a_connection(harness: Harness) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        taken = harness.link.send_probe(theirs)
        assert taken is not None
        assert harness.link.send_probe(theirs) is None, "one at a time"
        harness.check()
        assert harness.link.oldest_sent_at() == NEVER
        kind, fds = receive(harness.worker) or (b"", ())
        os.close(fds[0])
        assert kind == PROBE
        harness.credit(1)
        harness.link.poll_reports()
        assert taken.done()
        harness.check()
        assert harness.results == (0, 0, 0)


def test_the_oldest_connection_in_flight_is_the_one_that_waits_longest(harness: Harness) -> None:
    for now in (3.0, 4.0, 5.0):
        assert send(harness.link, os.open("/dev/null", os.O_RDONLY), now)
        harness.sent += 1
    assert harness.link.oldest_sent_at() == 3.0
    harness.take(2)
    harness.link.poll_reports()
    assert harness.link.oldest_sent_at() == 5.0


def test_reports_wake_the_dispatcher_only_while_the_link_is_watched(harness: Harness) -> None:
    harness.send(1)
    harness.take(1)
    harness.loop.run_until_complete(asyncio.sleep(0))
    assert harness.reports == 0
    harness.link.set_watched(True)
    harness.loop.run_until_complete(asyncio.sleep(0.01))
    assert harness.reports == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "take", "credit", "dequeue credited", "end", "poll", "reclaim"]),
        st.integers(1, 5),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_order_of_events_loses_a_connection_or_counts_it_twice(  # noqa: C901
    steps: list[tuple[str, int]],
) -> None:
    harness = Harness()
    credited = 0
    """By the worker, and not taken yet. What it can no longer take counts for later ones."""
    try:
        for step, count in steps:
            ready = min(count, harness.waiting)
            if step == "send":
                harness.send(count)
            elif step in ("take", "credit"):
                # It may be stopped between the credit and the taking.
                if ready > credited:
                    harness.credit(ready - credited)
                    credited = ready
                if step == "take":
                    credited -= harness.dequeue(ready)
            elif step == "dequeue credited":
                credited -= harness.dequeue(min(credited, harness.waiting))
            elif step == "end":
                harness.credit(0, ended=count)
            elif step == "poll":
                harness.link.poll_reports()
            elif step == "reclaim":
                harness.reclaim()
            harness.check()
            assert harness.counters.handoffs["lost"] == 0
    finally:
        harness.close()
