"""A peer that breaks the rules about descriptors is cut off, and the descriptors are closed.

Covers `channel/channel` and `channel/send_queue`.
"""

import asyncio
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.worker.peers import (
    DEADLINE_S,
    ENVELOPE,
    Peer,
    line,
    open_targets,
    rights,
    tcp_pair,
)

from penstock_worker.channel.channel import MAX_LINE, pair
from penstock_worker.channel.framing import ACK, NACK


def given(tmp_path: Path, stack: ExitStack, what: str) -> list[int]:
    """A descriptor of a kind that a channel refuses."""
    if what == "fifo":
        fds = list(os.pipe())
    elif what == "file":
        fds = [os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)]
    elif what == "eventfd":
        fds = [os.eventfd(0)]
    elif what == "device":
        fds = [os.open("/dev/null", os.O_RDONLY)]
    else:
        raise AssertionError(what)
    for fd in fds:
        stack.callback(os.close, fd)
    return fds[:1]


@pytest.mark.parametrize("what", ["fifo", "file", "eventfd", "device"])
def test_a_descriptor_that_is_no_socket_is_closed_and_its_sender_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack, tmp_path: Path, what: str
) -> None:
    fds = given(tmp_path, stack, what)
    assert_refused(loop, [([line("good") + line(ENVELOPE)], fds)], "no socket", ["good"])


def assert_refused(
    loop: asyncio.AbstractEventLoop,
    sends: list[tuple[list[bytes], list[int]]],
    why: str,
    delivered: list[Any] | None = None,
) -> None:
    """A peer that sends this is cut off, and no descriptor is left on either side."""
    before = open_targets()
    ours, theirs = pair()
    peer = Peer(loop, ours)
    for data, fds in sends:
        theirs.sendmsg(data, rights(*fds) if fds else [])
    peer.until(lambda: peer.disconnects == 1)
    assert why in peer.channel.fault
    assert peer.messages == (delivered or [])
    assert peer.channel.closed
    assert not peer.channel.send("more")
    theirs.settimeout(DEADLINE_S)
    try:
        while theirs.recv(1000):
            pass
    except ConnectionResetError:
        pass  # The channel closed with unread data.
    theirs.close()
    peer.close()
    assert open_targets() == before


def test_two_descriptors_with_one_line_are_closed_and_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    assert_refused(loop, [([line(ENVELOPE)], [fd, fd])], "2 descriptors with one line")


def test_hundreds_of_descriptors_with_one_line_are_closed_and_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    assert_refused(loop, [([line(ENVELOPE)], [fd] * 250)], "descriptors with one line")


def test_a_descriptor_beside_an_ordinary_line_is_closed_and_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    assert_refused(loop, [([line("plain")], [fd])], "nobody asked for", ["plain"])


def test_a_descriptor_beside_the_middle_of_a_line_that_is_no_envelope_is_closed(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    sends = [([b'"pl'], []), ([b"ai"], [fd]), ([b'n"\n'], [])]
    assert_refused(loop, sends, "nobody asked for", ["plain"])


def test_descriptors_that_pile_up_beside_a_line_without_an_end_are_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    assert_refused(loop, [([b"["], [fd]) for _ in range(50)], "nobody asked for")


@pytest.mark.parametrize("command", [ACK, NACK])
def test_a_peer_that_sends_an_unexpected_acknowledgement_is_cut_off(
    loop: asyncio.AbstractEventLoop, command: str
) -> None:
    assert_refused(loop, [([line({"cmd": command})], [])], "acknowledgement that nobody asked for")


def test_garbage_with_a_descriptor_is_closed_and_cut_off(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    fd = tcp_pair(stack)[0].fileno()
    assert_refused(loop, [([b"garbage\n"], [fd])], "not JSON")


def test_a_second_acknowledgement_is_cut_off(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    peer.channel.send("take it", tcp_pair(stack)[0], peer.notes(1))
    theirs.send(line({"cmd": ACK}) * 2)
    peer.until(lambda: peer.disconnects == 1)
    assert peer.outcomes == [(1, True)]
    assert "nobody asked for" in peer.channel.fault


def test_an_acknowledgement_before_the_handle_has_left_is_cut_off(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    peer.channel.send("x" * (MAX_LINE - 200), tcp_pair(stack)[0], peer.notes(1))
    theirs.send(line({"cmd": ACK}))
    peer.until(lambda: peer.disconnects == 1)
    assert "nobody asked for" in peer.channel.fault
    assert peer.outcomes == [(1, False)]


def test_a_peer_that_sends_descriptors_without_waiting_for_acknowledgement_is_cut_off(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    # The peer reads nothing, so acknowledgements would pile up in the channel.
    peer, theirs = ends
    handle = tcp_pair(stack)[0]
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    peer.channel.send("x" * (MAX_LINE - 200))
    for _ in range(2):
        theirs.sendmsg([line(ENVELOPE)], rights(handle.fileno()))
    peer.until(lambda: peer.disconnects == 1)
    assert "do not wait" in peer.channel.fault
    assert len(peer.handles) == 1


def test_a_line_of_100_megabytes_is_cut_off_after_one(
    loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> None:
    before = open_targets()
    ours, theirs = pair()
    theirs.setblocking(True)
    fd = tcp_pair(stack)[0].fileno()
    inside = open_targets()
    peer = Peer(loop, ours)
    sent: list[int] = []

    def pour() -> None:
        piece = b"x" * (1 << 20)
        theirs.sendmsg([b'{"cmd":"NODE_HANDLE","msg":"'], rights(fd))
        try:
            while sum(sent) < 100 << 20:
                sent.append(theirs.send(piece))
        except OSError:
            return

    thread = threading.Thread(target=pour)
    thread.start()
    peer.until(lambda: peer.disconnects == 1)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert sum(sent) < 8 << 20
    assert "a line of more than" in peer.channel.fault
    theirs.close()
    peer.close()
    # Both ends of the pair are closed, and no received descriptor is left.
    assert len(inside) - len(open_targets()) == 2
    stack.close()
    assert len(before) - len(open_targets()) == 0
