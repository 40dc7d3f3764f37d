"""Messages arrive whole and in order; a peer that sends garbage or stops reading is cut off.

On asyncio and uvloop, over real socket pairs: the kernel splits the data.

Covers `channel/channel`, `channel/framing` and `channel/send_queue`.
"""

import asyncio
import json
import logging
import os
import socket
from itertools import pairwise
from typing import Any

import pytest
from tests.support.descriptors import descriptors
from tests.support.worker.peers import Peer

from penstock_worker.channel import framing, send_queue
from penstock_worker.channel.channel import MAX_LINE, MAX_UNSENT, Channel, inherited, pair
from penstock_worker.contract import CHANNEL_FD


def test_messages_go_both_ways_in_order(loop: asyncio.AbstractEventLoop) -> None:
    left, right = (Peer(loop, end) for end in pair())
    sent: list[Any] = [{"cmd": "n", "n": n, "text": "ä\n\0"} for n in range(200)]
    for message in sent:
        left.channel.send(message)
        right.channel.send(message)
    left.until(lambda: len(left.messages) == len(right.messages) == 200)
    assert left.messages == right.messages == sent
    left.channel.close()
    right.until(lambda: right.disconnects == 1)
    assert left.disconnects == 0, "who closes knows it already"


@pytest.mark.parametrize("value", [[], {}, {"cmd": 1}, "cmd", 1.5, True, None, [None, {"a": []}]])
def test_a_message_is_any_json_value(ends: tuple[Peer, socket.socket], value: Any) -> None:
    peer, theirs = ends
    assert peer.channel.send(value)
    assert json.loads(theirs.recv(100)) == value
    theirs.send(json.dumps(value).encode() + b"\r\n")
    peer.until(lambda: peer.messages == [value])


def test_a_message_sent_before_the_loop_runs_is_written_at_once(
    loop: asyncio.AbstractEventLoop,
) -> None:
    ours, theirs = pair()
    channel = Channel(loop, ours, lambda _, __: None, lambda: None)
    with theirs:
        assert channel.send({"cmd": "FAILED"})
        channel.close()
        assert theirs.recv(100) == b'{"cmd":"FAILED"}\n'


def test_a_message_in_pieces_is_put_together(ends: tuple[Peer, socket.socket]) -> None:
    peer, theirs = ends
    for byte in b'{"cmd":"a"}\n{"cmd":"b"}\n{"cmd":':
        theirs.send(bytes([byte]))
        peer.loop.run_until_complete(asyncio.sleep(0))
    theirs.send(b'"c"}\n')
    peer.until(lambda: len(peer.messages) == 3)
    assert [m["cmd"] for m in peer.messages] == ["a", "b", "c"]


def test_a_message_larger_than_the_socket_buffer_arrives_whole(
    loop: asyncio.AbstractEventLoop,
) -> None:
    left, right = (Peer(loop, end) for end in pair())
    big = {"cmd": "big", "text": "x" * (MAX_LINE - 100)}
    left.channel.send(big)
    left.channel.send({"cmd": "small"})
    left.until(lambda: len(right.messages) == 2)
    assert right.messages == [big, {"cmd": "small"}]
    left.channel.close()
    right.channel.close()


def test_the_last_messages_of_a_peer_are_delivered_before_its_disconnect(
    ends: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = ends
    peer.channel.send({"cmd": "nobody reads this"})
    theirs.send(b'{"cmd":"failed"}\n')
    theirs.close()
    peer.channel.send({"cmd": "nor this"})
    peer.until(lambda: peer.disconnects == 1)
    assert peer.messages == [{"cmd": "failed"}]
    assert peer.channel.closed


def test_sending_to_a_peer_that_is_gone_is_harmless(ends: tuple[Peer, socket.socket]) -> None:
    peer, theirs = ends
    theirs.close()
    peer.channel.send({"cmd": "a"})
    peer.until(lambda: peer.disconnects == 1)
    peer.channel.send({"cmd": "b"})
    peer.channel.close()
    assert peer.disconnects == 1


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"hello\n",
        b"\xff\xfe\n",
        b"NaN\n",
        b'{"n":-Infinity}\n',
        '{"cmd":"x"}\n'.encode("utf-16"),
        b"[" * 100_000 + b"\n",
        b'{"cmd":"x","n":' + b"9" * 5000 + b"}\n",
    ],
    ids=lambda line: repr(line[:12]),
)
def test_a_peer_that_sends_garbage_is_cut_off_and_logged_once(
    ends: tuple[Peer, socket.socket], line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    peer, theirs = ends
    theirs.sendall(b'{"cmd":"good"}\n' + line + b'{"cmd":"late"}\n' + line)
    peer.until(lambda: peer.disconnects == 1)
    assert peer.messages == [{"cmd": "good"}]
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert peer.channel.closed


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_peer_that_sends_a_line_over_the_limit_is_cut_off(
    loop: asyncio.AbstractEventLoop, ending: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair()
    peer = Peer(loop, ours)
    flood = bytearray(b"x" * (2 * MAX_LINE) + ending)

    def pour() -> None:
        try:
            del flood[: theirs.send(flood)]
        except BlockingIOError:
            return
        except OSError:
            loop.remove_writer(theirs)

    loop.add_writer(theirs, pour)
    peer.until(lambda: peer.disconnects == 1)
    loop.remove_writer(theirs)
    theirs.close()
    assert peer.messages == []
    assert "line of more than" in caplog.text


def test_a_peer_that_has_stopped_reading_is_cut_off_but_not_from_within_send(
    ends: tuple[Peer, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    peer, _ = ends
    piece = {"cmd": "piece", "text": "x" * (MAX_LINE // 2)}
    sent = 0
    while not peer.channel.closed:
        peer.channel.send(piece)
        sent += MAX_LINE // 2
        assert sent < 3 * MAX_UNSENT
    assert peer.disconnects == 0
    assert "unread" in caplog.text
    peer.until(lambda: peer.disconnects == 1)


def test_a_message_that_the_peer_would_refuse_is_not_sent(
    ends: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = ends
    with pytest.raises(ValueError, match="too long"):
        peer.channel.send({"cmd": "big", "text": "x" * MAX_LINE})
    peer.channel.send({"cmd": "small"})
    assert json.loads(theirs.recv(100)) == {"cmd": "small"}


@pytest.mark.parametrize(
    "value",
    [float("nan"), {"n": float("inf")}, {1, 2}, b"bytes", object()],
    ids=lambda value: type(value).__name__,
)
def test_sending_a_value_that_is_not_json_is_one_clear_error(
    ends: tuple[Peer, socket.socket], value: object
) -> None:
    peer, theirs = ends
    with pytest.raises(ValueError, match="not JSON"):
        peer.channel.send(value)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_sending_a_recursive_or_too_deep_value_is_one_clear_error(
    ends: tuple[Peer, socket.socket],
) -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (endless, deep):
        with pytest.raises(ValueError, match="not JSON"):
            ends[0].channel.send(value)


def test_what_is_said_at_once_is_sent_whole_however_long_it_is(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_queue, "MAX_LINES", 100)
    monkeypatch.setattr(send_queue, "MAX_UNSENT", 1 << 16)
    monkeypatch.setattr(framing, "MAX_LINE", 1 << 13)
    one, other = pair()
    sender, receiver = Peer(loop, one), Peer(loop, other)
    said = [[number, "x" * 1000] for number in range(3000)]
    assert sender.channel.send_each(said[:2000])
    assert not sender.channel.congested
    assert sender.channel.send("between")
    assert sender.channel.send_each(said[2000:])
    assert not sender.channel.closed
    receiver.until(lambda: len(receiver.messages) == 3001)
    assert receiver.messages == [*said[:2000], "between", *said[2000:]]
    queue = sender.channel._send_queue
    assert (queue.empty, queue._unsent, queue._unbounded) == (True, 0, 0)
    with pytest.raises(ValueError, match="too long"):
        sender.channel.send_each([1, "x" * (1 << 13), 2])
    sender.channel.send("last")
    receiver.until(lambda: receiver.messages[-1] == "last")
    assert len(receiver.messages) == 3002, "nothing of what cannot be sent whole"
    receiver.channel.close()
    sender.until(lambda: sender.channel.closed)
    assert not sender.channel.send_each(said)


def test_the_number_of_unread_messages_is_bounded(
    ends: tuple[Peer, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, _ = ends
    monkeypatch.setattr(send_queue, "MAX_LINES", 1000)
    congested = 0
    for _ in range(20_000):
        if peer.channel.closed:
            break
        congested += peer.channel.congested
        peer.channel.send(0)
    assert congested > 1000, "a program is refused long before it is too late"
    assert "messages unread" in peer.channel.fault


def test_a_peer_that_sends_without_a_pause_does_not_block_the_loop(
    loop: asyncio.AbstractEventLoop,
) -> None:
    ours, theirs = pair()
    peer = Peer(loop, ours)
    turns: list[int] = []

    def again(message: Any) -> None:
        # As soon as a message is read, the next one has arrived.
        peer.messages.append(message)
        theirs.send(b"1\n")

    peer.on_message = again
    theirs.send(b"1\n")

    def turn() -> None:
        turns.append(len(peer.messages))
        loop.call_soon(turn)

    turn()
    peer.until(lambda: len(peer.messages) > 500)
    assert max(b - a for a, b in pairwise(turns)) < 100
    peer.channel.close()
    theirs.close()


def test_a_receiver_that_raises_still_gets_the_next_message(
    ends: tuple[Peer, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    peer, theirs = ends

    def failing(message: Any) -> None:
        peer.messages.append(message)
        raise ZeroDivisionError

    peer.on_message = failing
    theirs.send(b'{"cmd":"a"}\n{"cmd":"b"}\n')
    peer.until(lambda: len(peer.messages) == 2)
    assert "ZeroDivisionError" in caplog.text
    assert not peer.channel.closed


def test_a_receiver_that_closes_the_channel_gets_no_further_message(
    ends: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = ends

    def leave(message: Any) -> None:
        peer.messages.append(message)
        peer.channel.close()

    peer.on_message = leave
    theirs.send(b'{"cmd":"a"}\n{"cmd":"b"}\n')
    peer.until(lambda: peer.channel.closed)
    peer.loop.run_until_complete(asyncio.sleep(0))
    assert (peer.messages, peer.disconnects) == ([{"cmd": "a"}], 0)
    assert theirs.recv(1) == b""


def test_close_before_the_disconnect_callback_cancels_the_callback(
    ends: tuple[Peer, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, _ = ends
    monkeypatch.setattr(send_queue, "MAX_UNSENT", 0)
    while not peer.channel.closed:
        peer.channel.send({"cmd": "x", "text": "x" * 100_000})
    peer.channel.close()
    peer.loop.run_until_complete(asyncio.sleep(0.01))
    assert peer.disconnects == 0


def test_a_pair_is_not_inherited_and_does_not_block() -> None:
    ends = pair()
    for end in ends:
        with end:
            assert not end.get_inheritable()
            assert not end.getblocking()


def test_an_inherited_end_is_adopted_and_its_variable_is_removed() -> None:
    ours, theirs = pair()
    with ours:
        theirs.setblocking(True)
        theirs.set_inheritable(True)
        number = theirs.detach()
        environ: dict[str, str] = {CHANNEL_FD: str(number), "OTHER": "1"}
        adopted = inherited(environ)
        assert adopted is not None
        with adopted:
            assert environ == {"OTHER": "1"}
            assert adopted.fileno() == number
            assert not adopted.get_inheritable()
            assert not adopted.getblocking()


def test_without_the_variable_there_is_no_channel() -> None:
    assert inherited({}) is None


@pytest.mark.parametrize("number", ["", "x", "-1", "99999", "9" * 30])
def test_a_variable_that_names_no_channel_descriptor_is_one_clear_error(number: str) -> None:
    environ = {CHANNEL_FD: number}
    with pytest.raises(ValueError, match=CHANNEL_FD):
        inherited(environ)
    assert environ == {}


def test_a_descriptor_of_another_kind_is_refused_and_left_open() -> None:
    def refuse(fd: int) -> None:
        with pytest.raises(ValueError, match="is no"):
            inherited({CHANNEL_FD: str(fd)})
        os.fstat(fd)

    reading, writing = os.pipe()
    refuse(reading)
    os.close(reading)
    os.close(writing)
    with socket.socket(socket.AF_INET) as tcp:
        refuse(tcp.fileno())


def test_many_channels_leave_no_descriptor_behind(loop: asyncio.AbstractEventLoop) -> None:
    def once() -> int:
        left, right = (Peer(loop, end) for end in pair())
        left.channel.send({"cmd": "x"})
        right.until(lambda: len(right.messages) == 1)
        left.channel.close()
        right.until(lambda: right.disconnects == 1)
        return descriptors()

    before = once()
    for _ in range(20):
        once()
    assert once() == before


def test_who_floods_with_short_messages_leaves_the_loop_to_others(
    loop: asyncio.AbstractEventLoop, ends: tuple[Peer, socket.socket]
) -> None:
    peer, theirs = ends
    theirs.sendall(b"1\n" * 50_000)
    seen = [0]

    def turn() -> None:
        seen.append(len(peer.messages))
        if seen[-1] < 50_000:
            loop.call_soon(turn)

    loop.call_soon(turn)
    peer.until(lambda: seen[-1] == 50_000)
    assert max(after - before for before, after in pairwise(seen)) < 20_000
    assert peer.messages == [1] * 50_000
