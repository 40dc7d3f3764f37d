"""Every connection that is sent over a link ends as exactly one thing, whatever the worker does.

Real socket pairs and real descriptors; the worker's end is in the hands of the test.
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
from tests.support.proxy.links import sent

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.handoff.link import NEVER, Link
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.handoff.protocol import CREDIT, PROBE, receive


class Stage:
    """A link whose worker does what it is told."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.counters = ServiceCounters()
        self.member = Member(0, "", 1, MemberState.UP)
        self.heard = 0
        self.fd_budget = FdBudget(1024, 0, 0)
        self.link = Link(self.loop, 1, self.member, self.counters, self.fd_budget, self._on_heard)
        proxy, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker = worker
        self.link.has("proxy", proxy)
        self.link.has("worker", worker.dup())
        self.sent = 0

    def _on_heard(self, _: Link) -> None:
        self.heard += 1

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            fd = os.open("/dev/null", os.O_RDONLY)
            assert sent(self.link, fd, 1.0)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
            self.sent += 1

    def credit(self, taken: int, ended: int = 0) -> None:
        self.worker.send(CREDIT.pack(taken, ended))

    def take(self, count: int) -> int:
        """As a worker does: first say it, then do it; how many it got."""
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

    def back(self) -> int:
        found = self.link.take_back()
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
        self.back()
        self.link.close()
        self.worker.close()
        self.loop.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    before = descriptors()
    with ExitStack() as stack:
        made = Stage()
        stack.callback(made.close)
        yield made
    assert descriptors() == before


def test_what_is_sent_is_in_flight_until_it_is_taken(stage: Stage) -> None:
    stage.send(3)
    stage.check()
    assert stage.link.in_flight == 3
    assert stage.take(2) == 2
    assert stage.link.hear()
    stage.check()
    assert (stage.link.in_flight, stage.link.open) == (1, 2)
    assert stage.counters.worker_connections[0] == 2


def test_what_ended_is_open_no_more(stage: Stage) -> None:
    stage.send(2)
    stage.take(2)
    stage.credit(0, ended=1)
    stage.link.hear()
    stage.check()
    assert stage.link.open == 1


def test_what_was_not_taken_comes_back(stage: Stage) -> None:
    stage.send(5)
    stage.take(2)
    assert stage.back() == 3
    stage.check()
    assert stage.results == (2, 3, 0)


def test_one_that_was_announced_and_not_taken_comes_back_too(stage: Stage) -> None:
    stage.send(3)
    stage.credit(1)
    assert stage.back() == 3
    stage.check()
    assert stage.results == (1, 2, 0)
    assert stage.link.open == 0, "it is not the worker's"
    assert stage.dequeue(1) == 0, "exactly one gets it"


def test_one_that_was_taken_without_a_word_is_lost_and_said_so(stage: Stage) -> None:
    stage.send(3)
    stage.dequeue(1)
    assert stage.back() == 2
    stage.check()
    assert stage.results == (0, 2, 1)


def test_credits_that_nobody_owes_are_harmless(stage: Stage) -> None:
    stage.send(1)
    stage.credit(500, ended=70)
    stage.link.hear()
    stage.check()
    assert stage.results == (1, 0, 0)


@pytest.mark.parametrize("word", [b"", b"x", b"too much"])
def test_a_worker_that_says_anything_else_is_not_heard_any_more(stage: Stage, word: bytes) -> None:
    stage.send(2)
    if word:
        stage.worker.send(word)
    else:
        stage.worker.shutdown(socket.SHUT_WR)
    assert stage.link.hear()
    assert stage.link.broken
    assert not stage.link.is_whole
    assert stage.back() == 2
    stage.check()


def test_a_descriptor_that_a_worker_sends_up_is_dropped(stage: Stage) -> None:
    with open("/dev/null") as file:  # noqa: PTH123
        socket.send_fds(stage.worker, [CREDIT.pack(0, 0)], [file.fileno()])
    before = descriptors()
    assert stage.link.hear()
    assert descriptors() == before


def test_a_worker_that_is_gone_is_an_answer_of_no(stage: Stage) -> None:
    stage.worker.shutdown(socket.SHUT_RDWR)
    fd = os.open("/dev/null", os.O_RDONLY)
    assert not sent(stage.link, fd, 1.0)
    os.close(fd)
    stage.check()


def test_the_end_of_a_process_is_the_end_of_what_it_had(stage: Stage) -> None:
    stage.send(4)
    stage.take(4)
    stage.link.hear()
    assert stage.counters.opened == 4
    stage.link.close()
    assert (stage.counters.opened, stage.member.active) == (0, 0)


def test_a_probe_counts_for_nothing_but_itself(stage: Stage) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        taken = stage.link.probe(theirs)
        assert taken is not None
        assert stage.link.probe(theirs) is None, "one at a time"
        stage.check()
        assert stage.link.oldest() == NEVER
        kind, fds = receive(stage.worker) or (b"", ())
        os.close(fds[0])
        assert kind == PROBE
        stage.credit(1)
        stage.link.hear()
        assert taken.done()
        stage.check()
        assert stage.results == (0, 0, 0)


def test_the_oldest_is_the_one_that_waits_longest(stage: Stage) -> None:
    for now in (3.0, 4.0, 5.0):
        assert sent(stage.link, os.open("/dev/null", os.O_RDONLY), now)
        stage.sent += 1
    assert stage.link.oldest() == 3.0
    stage.take(2)
    stage.link.hear()
    assert stage.link.oldest() == 5.0


def test_its_words_wake_us_only_if_we_wait_for_them(stage: Stage) -> None:
    stage.send(1)
    stage.take(1)
    stage.loop.run_until_complete(asyncio.sleep(0))
    assert stage.heard == 0
    stage.link.watch(True)
    stage.loop.run_until_complete(asyncio.sleep(0.01))
    assert stage.heard == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "take", "announce", "dequeue announced", "end", "hear", "back"]),
        st.integers(1, 5),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_order_of_events_loses_one_or_counts_one_twice(  # noqa: C901
    steps: list[tuple[str, int]],
) -> None:
    stage = Stage()
    announced = 0
    """By the worker, and not taken yet. What it can no longer take counts for the next ones."""
    try:
        for what, count in steps:
            ready = min(count, stage.waiting)
            if what == "send":
                stage.send(count)
            elif what in ("take", "announce"):
                # It may stop between its word and its deed.
                if ready > announced:
                    stage.credit(ready - announced)
                    announced = ready
                if what == "take":
                    announced -= stage.dequeue(ready)
            elif what == "dequeue announced":
                announced -= stage.dequeue(min(announced, stage.waiting))
            elif what == "end":
                stage.credit(0, ended=count)
            elif what == "hear":
                stage.link.hear()
            elif what == "back":
                stage.back()
            stage.check()
            assert stage.counters.handoffs["lost"] == 0
    finally:
        stage.close()
