"""Descriptors that a peer does not take are bounded, closed, and reported exactly once.

Covers `channel/channel` and `channel/send_queue`.
"""

import asyncio
import errno
import logging
import os
import socket
from contextlib import ExitStack
from typing import Any

import pytest
from tests.support.worker.peers import (
    ENVELOPE,
    Peer,
    bound_udp,
    line,
    nothing_happens,
    open_targets,
    read_line,
    rights,
    tcp_pair,
)

from penstock_worker.channel.channel import MAX_HANDLES, Channel, pair


def test_handles_that_the_peer_never_takes_are_bounded_and_reported_as_not_taken(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, _ = ends
    handle = bound_udp(stack)
    before = len(open_targets())
    congested = []
    while not peer.channel.closed:
        congested.append(peer.channel.congested)
        assert peer.channel.send("take it", handle, peer.notes(len(congested)))
        assert len(congested) <= 2 * MAX_HANDLES + 1
    assert congested == [False] * MAX_HANDLES + [True] * (MAX_HANDLES + 1), "known in good time"
    assert peer.outcomes == [], "nobody is called from within send"
    peer.until(lambda: peer.disconnects == 1)
    assert peer.outcomes == [(number + 1, False) for number in range(2 * MAX_HANDLES + 1)]
    assert f"{2 * MAX_HANDLES + 1} descriptors untaken" in peer.channel.fault
    assert len(open_targets()) == before - 1, "only the channel's own end is gone"


def test_the_bound_of_untaken_handles_can_be_raised(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    before = open_targets()
    ours, theirs = pair()
    right = Peer(loop, theirs)
    outcomes: list[bool] = []
    left = Channel(loop, ours, lambda _, __: None, lambda: None, max_handles=200)
    handle = bound_udp(stack)
    for number in range(200):
        assert left.send(number, handle, outcomes.append)
    assert left.congested
    right.until(lambda: len(outcomes) == 200)
    assert right.messages == list(range(200))
    assert outcomes == [True] * 200
    for _ in range(401):
        left.send("too many", handle)
    assert "401 descriptors untaken" in left.fault
    left.close()
    right.close()
    stack.close()
    assert open_targets() == before


def test_handles_on_their_way_to_a_peer_that_dies_are_closed_and_reported(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    for number in range(10):
        peer.channel.send(number, bound_udp(stack), peer.notes(number))
    theirs.close()
    peer.until(lambda: peer.disconnects == 1)
    assert peer.outcomes == [(number, False) for number in range(10)]
    assert peer.channel.fault == "", "it just left"


def test_a_peer_that_shuts_down_its_reading_half_is_disconnected_and_its_handles_closed(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    # There is no end of file: the peer's writing half is open.
    peer, theirs = ends
    theirs.send(line("last words"))
    theirs.shutdown(socket.SHUT_RD)
    peer.channel.send("take it", bound_udp(stack), peer.notes(1))
    assert peer.disconnects == 0, "not from within send"
    peer.until(lambda: peer.disconnects == 1)
    assert (peer.messages, peer.outcomes) == (["last words"], [(1, False)])
    assert peer.channel.fault == ""
    assert not peer.channel.send("more")


def test_close_closes_waiting_handles_without_calling_their_senders(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, _ = ends
    for number in range(10):
        peer.channel.send(number, bound_udp(stack), peer.notes(number))
    peer.channel.close()
    nothing_happens(peer)
    assert (peer.outcomes, peer.disconnects) == ([], 0)


def test_a_sender_that_closes_when_a_handle_is_lost_gets_no_further_callback(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    outcomes: list[bool] = []

    def leave(taken: bool) -> None:
        outcomes.append(taken)
        peer.channel.close()

    for _ in range(3):
        peer.channel.send("take it", bound_udp(stack), leave)
    theirs.close()
    peer.until(lambda: bool(outcomes))
    nothing_happens(peer)
    assert (outcomes, peer.disconnects) == ([False], 0)


def test_an_exception_in_a_senders_callback_does_not_stop_the_channel(
    two: tuple[Peer, Peer], stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    left, right = two

    def failing(taken: bool) -> None:
        raise ZeroDivisionError

    left.channel.send("first", bound_udp(stack), failing)
    left.channel.send("second")
    left.until(lambda: right.messages == ["first", "second"])
    assert "ZeroDivisionError" in caplog.text


def test_the_last_handle_of_a_peer_that_leaves_is_delivered(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    theirs.sendmsg([line(ENVELOPE)], rights(tcp_pair(stack)[0].fileno()))
    theirs.close()
    peer.until(lambda: peer.disconnects == 1)
    assert (peer.messages, len(peer.handles), peer.channel.fault) == (["take it"], 1, "")


def test_a_send_that_fails_for_lack_of_kernel_memory_is_tried_again_and_logged_once(
    ends: tuple[Peer, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    class Short:
        """The channel's socket; the first sends fail as if the kernel had no memory."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.errors = [errno.ENOBUFS, errno.ETOOMANYREFS, errno.ENOMEM]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

        def sendmsg(self, *arguments: Any) -> int:
            if self.errors:
                raise OSError(self.errors[0], os.strerror(self.errors.pop(0)))
            return self.sock.sendmsg(*arguments)

    peer, theirs = ends
    queue = peer.channel._send_queue
    queue._sock = Short(queue._sock)  # type: ignore[assignment]
    assert peer.channel.send("in the end")
    peer.until(lambda: queue._unsent == 0)
    assert read_line(peer, theirs) == ("in the end", 0)
    assert not peer.channel.closed
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
