"""What was sent before an exit arrives; a program that sends too much waits, and is not cut off.

Covers `channel/channel`, `channel/send_queue` and `channel/closed_loop`.
"""

import asyncio
import errno
import json
import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest
from tests.support.worker.peers import Peer, bound_udp

from penstock_worker.channel.channel import MAX_LINE, MAX_UNSENT, Channel, pair

DEADLINE_S = 30.0
LARGE = "x" * (MAX_LINE - 100)


def read_all(end: socket.socket, into: list[bytes]) -> threading.Thread:
    """Read everything in a thread, up to the end."""

    def read() -> None:
        end.settimeout(DEADLINE_S)
        while data := end.recv(1 << 16):
            into.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def is_congested(channel: Channel) -> bool:
    return channel.congested


@pytest.mark.parametrize("closed", [False, True], ids=["open loop", "closed loop"])
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_all_that_was_sent_arrives_before_the_process_exits(kind: str, closed: bool) -> None:
    loop = __import__(kind).new_event_loop()
    ours, theirs = pair()
    received: list[bytes] = []
    with theirs:
        channel = Channel(loop, ours, lambda *_: None, lambda: None)
        for number in range(4):
            assert channel.send([number, LARGE])
        if closed:
            loop.close()
        thread = read_all(theirs, received)
        assert channel.flush(DEADLINE_S)
        channel.close()
        thread.join(DEADLINE_S)
        loop.close()
    assert b"".join(received).count(b"\n") == 4


def test_a_flush_waits_for_the_acknowledgement_of_a_handle(
    ends: tuple[Peer, socket.socket], stack: ExitStack
) -> None:
    peer, theirs = ends
    peer.channel.send("first", bound_udp(stack))
    peer.channel.send("second")
    flushed: list[bool] = []
    thread = threading.Thread(target=lambda: flushed.append(peer.channel.flush(DEADLINE_S)))
    thread.start()
    theirs.settimeout(DEADLINE_S)
    _, fds, _, _ = socket.recv_fds(theirs, 1000, 1)
    with socket.socket(fileno=fds[0]):
        # What arrives now has nobody who would take it.
        theirs.sendall(b'"dropped"\n{"cmd":"NODE_HANDLE_ACK"}\n')
    thread.join(DEADLINE_S)
    assert flushed == [True]
    assert theirs.recv(1000) == b'"second"\n'
    assert peer.messages == []


def test_a_flush_to_a_peer_that_does_not_read_ends_in_time(
    ends: tuple[Peer, socket.socket],
) -> None:
    peer, _ = ends
    peer.channel.send([LARGE])
    assert peer.channel.flush(0.01) is False


def test_a_flush_to_a_peer_that_is_gone_ends_at_once(ends: tuple[Peer, socket.socket]) -> None:
    peer, theirs = ends
    peer.channel.send([LARGE])
    theirs.close()
    began = time.monotonic()
    peer.channel.flush(1000 * DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S, "it would have waited for hours"


def test_an_ended_peers_messages_are_all_read_without_another_turn_of_the_loop(
    two: tuple[Peer, Peer],
) -> None:
    left, right = two
    theirs = right.channel._sock
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    line, sent = b'"%s"\n' % (b"y" * 60_000), 0
    with suppress(BlockingIOError):
        while True:
            sent += theirs.send(line)
    left.channel.read_pending()
    assert len(left.messages) == sent // len(line) > 20


def test_a_programs_messages_beyond_the_bound_are_refused_and_ours_still_go(
    ends: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = ends
    sent = 0
    while not peer.channel.congested:
        assert peer.channel.send_for_program([LARGE])
        sent += 1
    with pytest.raises(OSError, match="wait to be sent") as refused:
        peer.channel.send_for_program([LARGE])
    assert refused.value.errno == errno.ENOBUFS
    assert MAX_UNSENT - 2 * MAX_LINE < sent * MAX_LINE <= MAX_UNSENT + MAX_LINE
    for number in range(1000):
        assert peer.channel.send({"cmd": "ours", "seq": number})
    assert not peer.channel.closed
    received: list[bytes] = []
    thread = read_all(theirs, received)
    assert peer.channel.flush(DEADLINE_S)
    assert not is_congested(peer.channel)
    peer.channel.close()
    thread.join(DEADLINE_S)
    lines = b"".join(received).splitlines()
    assert [len(line) for line in lines[:sent]] == [len(LARGE) + 4] * sent
    assert [json.loads(line)["seq"] for line in lines[sent:]] == list(range(1000))


async def test_room_is_told_to_all_who_wait_for_it() -> None:
    ours, theirs = pair()
    channel = Channel(asyncio.get_running_loop(), ours, lambda *_: None, lambda: None)
    received: list[bytes] = []
    try:
        await asyncio.wait_for(channel.room(), DEADLINE_S)
        while not is_congested(channel):
            channel.send_for_program([LARGE])
        first, second = channel.room(), channel.room()
        assert not first.done()
        thread = read_all(theirs, received)
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(first, second)
        assert not is_congested(channel)
        channel.send_for_program("there is room")
    finally:
        channel.flush(DEADLINE_S)
        channel.close()
    thread.join(DEADLINE_S)
    theirs.close()
    assert b"there is room" in b"".join(received)


async def test_who_waits_for_room_does_not_wait_for_a_channel_that_closes() -> None:
    ours, theirs = pair()
    with theirs:
        channel = Channel(asyncio.get_running_loop(), ours, lambda *_: None, lambda: None)
        while not is_congested(channel):
            channel.send_for_program([LARGE])
        room = channel.room()
        channel.close()
        await asyncio.wait_for(room, DEADLINE_S)
        assert channel.room().done()
        assert channel.send_for_program("nobody") is False
