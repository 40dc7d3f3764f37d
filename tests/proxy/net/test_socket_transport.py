"""A proxy's own connections keep the contract of asyncio's transports, over real sockets.

The same under both event loops.
Covers `net/reactor`, `net/socket_writer`, `net/transport` and `net/unsent`.
"""

import asyncio
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from tests.support.descriptors import descriptors
from tests.support.proxy.recorder import Recorder

from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.socket_transport import HIGH_WATER, SocketTransport, adopt
from penstock_proxy.net.unread_input import has_unread
from penstock_worker.net.stream import Stream

RESET = struct.pack("ii", 1, 0)
HUGE = b"x" * (4 << 20)


class Pair:
    """A connection of ours, and its other end in the hands of the test."""

    def __init__(self, harness: "Harness", family: int, *, first: bool = False) -> None:
        self._harness = harness
        if family == socket.AF_UNIX:
            ours, self.peer = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.peer = socket.create_connection(listener.getsockname())
                ours, _ = listener.accept()
        self.peer.settimeout(10)
        # By default the kernel would buffer megabytes.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        self.fd = ours.detach()
        self.recorder = Recorder()
        adopt(harness.reactor, self.recorder, Stream(self.fd, family), first=first)
        self.transport = self.recorder.transport

    def until(self, condition: Callable[[], object]) -> None:
        self._harness.until(condition)

    def expect_calls(self, words: str) -> None:
        self.until(lambda: self.recorder.calls == words.split())

    def reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.peer.close()

    @property
    def is_closed(self) -> bool:
        try:
            os.fstat(self.fd)
        except OSError:
            return True
        return False


class Harness:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.reactor = Reactor(loop)
        self.pairs: list[Pair] = []

    def pair(self, family: int = socket.AF_INET, *, first: bool = False) -> Pair:
        self.pairs.append(Pair(self, family, first=first))
        return self.pairs[-1]

    def settle(self, pair: Pair) -> None:
        """Wait until the kernel has what its peer has sent; nothing is read of it."""
        with socket.socket(fileno=os.dup(pair.fd)) as copy:
            select.select([copy], [], [], 10)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = self.loop.time() + 10
        while not condition():
            assert self.loop.time() < deadline, "it never came true"
            self.turn()

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0.001))


@pytest.fixture
def harness(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Harness]:
    before = descriptors()
    loop = new_loop()
    harness = Harness(loop)
    yield harness
    for pair in harness.pairs:
        pair.peer.close()
        if "lost" not in pair.recorder.calls:
            pair.transport.abort()
    harness.turn()
    assert all(pair.recorder.calls.count("lost") == 1 for pair in harness.pairs)
    harness.reactor.close()
    loop.close()
    assert descriptors() == before


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def test_bytes_go_both_ways(harness: Harness, family: int) -> None:
    pair = harness.pair(family)
    pair.peer.sendall(b"question")
    pair.until(lambda: pair.recorder.data == b"question")
    pair.transport.write(b"ans")
    pair.transport.write(b"wer")
    assert pair.peer.recv(100, socket.MSG_WAITALL | socket.MSG_PEEK)[:3] == b"ans"
    pair.transport.close()
    assert pair.transport.is_closing()
    pair.expect_calls("made lost")
    assert pair.recorder.error is None
    assert pair.is_closed


def test_what_does_not_fit_waits_and_stalls_the_writer(harness: Harness) -> None:
    pair = harness.pair()
    pair.transport.write(HUGE)
    assert pair.recorder.calls == ["made", "pause"]
    assert pair.transport.get_write_buffer_size() > HIGH_WATER
    pair.transport.write(b"y")
    received = bytearray()
    pair.peer.setblocking(False)

    def read() -> bool:
        try:
            received.extend(pair.peer.recv(1 << 20))
        except BlockingIOError:
            return False
        return len(received) > len(HUGE)

    pair.until(read)
    assert received == HUGE + b"y"
    assert pair.recorder.calls == ["made", "pause", "resume"]
    assert pair.transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("how", ["close", "write_eof"])
def test_what_was_written_is_sent_before_the_end(harness: Harness, how: str) -> None:
    pair = harness.pair()
    pair.transport.write(HUGE)
    getattr(pair.transport, how)()
    pair.transport.write(b"too late")
    received = bytearray()
    pair.peer.setblocking(False)

    def read() -> bool:
        try:
            data = pair.peer.recv(1 << 20)
        except BlockingIOError:
            return False
        received.extend(data)
        return not data

    pair.until(read)
    assert received == HUGE
    assert pair.transport.is_closing() == (how == "close")


def test_a_paused_reader_leaves_bytes_in_the_kernel(harness: Harness) -> None:
    pair = harness.pair()
    pair.transport.pause_reading()
    pair.peer.sendall(b"later")
    for _ in range(20):
        harness.turn()
    assert pair.recorder.data == b""
    pair.transport.resume_reading()
    pair.until(lambda: pair.recorder.data == b"later")


def test_an_end_during_a_pause_is_reported_after_it(harness: Harness) -> None:
    pair = harness.pair()
    pair.recorder.on_data = lambda _: pair.transport.pause_reading()
    pair.peer.sendall(b"last")
    pair.peer.close()
    pair.until(lambda: pair.recorder.data)
    for _ in range(20):
        harness.turn()
    assert pair.recorder.calls == ["made"]
    pair.transport.resume_reading()
    pair.expect_calls("made end lost")


def test_the_end_comes_with_the_last_bytes(harness: Harness) -> None:
    pair = harness.pair()
    pair.peer.sendall(b"last")
    pair.peer.close()
    pair.expect_calls("made end lost")
    assert pair.recorder.data == b"last"
    assert pair.recorder.error is None


def test_an_urgent_byte_ends_nothing(harness: Harness) -> None:
    pair = harness.pair()
    pair.transport.pause_reading()
    pair.peer.sendall(b"before")
    pair.peer.send(b"!", socket.MSG_OOB)
    pair.peer.sendall(b"behind")
    pair.peer.close()
    for _ in range(20):
        harness.turn()
    pair.transport.resume_reading()
    pair.expect_calls("made end lost")
    assert pair.recorder.data == b"beforebehind"


def test_everything_is_read_before_the_end(harness: Harness) -> None:
    pair = harness.pair()
    pair.peer.setblocking(False)
    left = memoryview(HUGE)

    def send() -> bool:
        nonlocal left
        try:
            left = left[pair.peer.send(left) :]
        except BlockingIOError:
            return False
        return not left

    pair.until(send)
    pair.peer.close()
    pair.expect_calls("made end lost")
    assert len(pair.recorder.data) == len(HUGE)


def test_a_half_closed_connection_can_be_written_to(harness: Harness) -> None:
    pair = harness.pair()
    pair.recorder.stays_open = True
    pair.peer.sendall(b"question")
    pair.peer.shutdown(socket.SHUT_WR)
    pair.expect_calls("made end")
    # Its end can be read again and again, and is reported once.
    for _ in range(20):
        harness.turn()
    assert pair.recorder.calls == ["made", "end"]
    pair.transport.resume_reading()
    pair.transport.write(b"answer")
    pair.transport.close()
    assert pair.peer.recv(10, socket.MSG_WAITALL) == b"answer"
    pair.expect_calls("made end lost")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
@pytest.mark.parametrize("paused", [False, True])
def test_the_end_of_both_sides_is_reported_once_and_keeps_no_loop_busy(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, family: int, *, paused: bool
) -> None:
    pair = harness.pair(family)
    pair.recorder.stays_open = True
    pair.peer.shutdown(socket.SHUT_WR)
    pair.expect_calls("made end")
    if paused:
        pair.transport.pause_reading()
    pair.transport.write_eof()
    pair.peer.close()
    harness.turn()
    calls: list[int] = []
    monkeypatch.setattr(SocketTransport, "ready", lambda _, events: calls.append(events))
    for _ in range(20):
        harness.turn()
    assert calls == []
    assert pair.recorder.calls == ["made", "end"]


@pytest.mark.parametrize("paused", [False, True])
def test_a_reset_after_the_end_of_file_is_reported(harness: Harness, *, paused: bool) -> None:
    pair = harness.pair()
    pair.recorder.stays_open = True
    pair.peer.shutdown(socket.SHUT_WR)
    pair.expect_calls("made end")
    if paused:
        pair.transport.pause_reading()
    pair.reset()
    pair.expect_calls("made end lost")
    assert isinstance(pair.recorder.error, ConnectionResetError)


def test_a_reset_is_reported_with_its_error(harness: Harness) -> None:
    pair = harness.pair()
    pair.reset()
    pair.expect_calls("made lost")
    assert isinstance(pair.recorder.error, ConnectionResetError)


def test_a_reset_after_the_last_bytes_is_no_clean_end(harness: Harness) -> None:
    pair = harness.pair()
    pair.peer.sendall(b"last")
    pair.reset()
    pair.expect_calls("made lost")
    assert isinstance(pair.recorder.error, ConnectionResetError)


def test_a_write_to_a_peer_that_is_gone_is_a_loss_and_no_exception(harness: Harness) -> None:
    pair = harness.pair()
    pair.transport.pause_reading()
    pair.reset()
    pair.transport.write(b"data")
    assert pair.recorder.calls == ["made"], "not in the middle of the call"
    pair.expect_calls("made lost")
    assert isinstance(pair.recorder.error, OSError)
    pair.transport.write(b"more")
    pair.transport.abort()
    harness.turn()


def test_what_a_peer_sent_before_an_abort_can_be_read_until_the_loss_is_reported(
    harness: Harness,
) -> None:
    pair = harness.pair()
    pair.transport.pause_reading()
    pair.peer.sendall(b"enough")
    received = []

    def lost(error: Exception | None) -> None:
        received.append(os.read(pair.transport.borrow().fileno(), 100))
        Recorder.connection_lost(pair.recorder, error)

    pair.recorder.connection_lost = lost  # type: ignore[method-assign]
    pair.transport.abort()
    pair.expect_calls("made lost")
    assert received == [b"enough"]
    assert pair.is_closed


def test_a_connection_aborted_in_the_same_turn_is_not_called_any_more(harness: Harness) -> None:
    one, other = harness.pair(), harness.pair()
    one.recorder.on_data = lambda _: other.transport.abort()
    other.recorder.on_data = lambda _: one.transport.abort()
    one.peer.sendall(b"x")
    other.peer.sendall(b"x")
    harness.until(lambda: "lost" in one.recorder.calls or "lost" in other.recorder.calls)
    assert sorted([one.recorder.data, other.recorder.data]) == [b"", b"x"]


def test_a_protocol_that_fails_costs_its_own_connection(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = harness.pair(), harness.pair()

    def fail(_: bytes) -> None:
        raise RuntimeError

    bad.recorder.on_data = fail
    bad.peer.sendall(b"x")
    bad.expect_calls("made lost")
    assert "could not be handled" in caplog.text
    good.peer.sendall(b"x")
    good.until(lambda: good.recorder.data == b"x")


def test_another_protocol_can_take_over(harness: Harness) -> None:
    pair = harness.pair()
    successor = Recorder()
    pair.transport.set_protocol(successor)
    pair.peer.sendall(b"x")
    pair.until(lambda: successor.data == b"x")
    pair.transport.set_protocol(pair.recorder)
    assert pair.recorder.data == b""


def test_after_a_pause_reads_are_small_again(harness: Harness) -> None:
    pair = harness.pair()
    sizes: list[int] = []
    pair.recorder.on_data = lambda data: sizes.append(len(data))
    pair.peer.setblocking(False)

    def send_until(count: int) -> Callable[[], bool]:
        def enough() -> bool:
            try:
                pair.peer.send(HUGE[:500_000])
            except BlockingIOError:
                harness.turn()
            return sum(sizes) > count

        return enough

    pair.until(send_until(4 << 20))
    fast = max(sizes)
    pair.transport.pause_reading()
    pair.transport.resume_reading()
    del sizes[:]
    harness.until(lambda: sizes)
    assert sizes[0] < fast


def test_after_a_small_read_reads_are_small_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = os.read
    pair = harness.pair(socket.AF_UNIX)

    def recorded(fd: int, size: int) -> bytes:
        if fd == pair.fd:
            sizes.append(size)
        return read(fd, size)

    monkeypatch.setattr("penstock_proxy.net.socket_transport.read", recorded)
    pair.peer.setblocking(False)

    def more() -> bool:
        with suppress(BlockingIOError):
            pair.peer.send(HUGE)
        return max(sizes, default=0) > HIGH_WATER

    harness.until(more)
    smallest = min(sizes)
    harness.until(lambda: len(pair.recorder.data) > 0 and not has_unread(pair.transport.borrow()))
    pair.peer.send(b"small")
    harness.until(lambda: pair.recorder.data.endswith(b"small"))
    del sizes[:]
    pair.peer.send(b"next")
    harness.until(lambda: pair.recorder.data.endswith(b"next"))
    assert sizes == [smallest]


def test_hundreds_at_once_are_all_served(harness: Harness) -> None:
    pairs = [harness.pair(socket.AF_UNIX) for _ in range(300)]
    for pair in pairs:
        pair.recorder.on_data = pair.transport.write
        pair.peer.sendall(b"echo")
    harness.until(lambda: all(pair.recorder.data for pair in pairs))
    assert all(pair.peer.recv(10) == b"echo" for pair in pairs)


def test_what_is_written_in_one_turn_goes_out_when_all_have_been_called(harness: Harness) -> None:
    pairs = [harness.pair() for _ in range(5)]
    received_meanwhile: list[bytes] = []

    def read_nonblocking(pair: Pair) -> bytes:
        try:
            return os.read(pair.peer.fileno(), 100)
        except BlockingIOError:
            return b""

    def answer(_: bytes) -> None:
        received_meanwhile.extend(read_nonblocking(pair) for pair in pairs)
        for pair in pairs:
            pair.transport.write(b"a")
            pair.transport.write(b"b")

    for pair in pairs:
        pair.recorder.on_data = answer
        pair.peer.sendall(b"x")
        pair.peer.setblocking(False)
    harness.until(lambda: all(pair.recorder.data for pair in pairs))
    # They may have become ready at different times; while the first was called, nothing was sent.
    assert received_meanwhile[0] == b""
    assert pairs[0].transport.get_write_buffer_size() == 0
    total = sum(len(read_nonblocking(pair)) for pair in pairs) + sum(map(len, received_meanwhile))
    assert total == 2 * len(pairs) * len(pairs)


@pytest.mark.parametrize("how", ["close", "abort", "write_eof"])
def test_what_is_deferred_goes_out_before_the_end(harness: Harness, how: str) -> None:
    pair = harness.pair()

    def answer(_: bytes) -> None:
        pair.transport.write(b"last words")
        assert pair.transport.get_write_buffer_size() == 10
        getattr(pair.transport, how)()

    pair.recorder.on_data = answer
    pair.peer.sendall(b"x")
    harness.until(lambda: pair.recorder.data)
    with pair.peer.makefile("rb") as file:
        assert file.read() == b"last words"


def test_small_and_large_writes_keep_their_order(harness: Harness) -> None:
    pair = harness.pair()
    pieces = [
        b"1",
        b"2" * 40_000,
        b"3",
        b"4",
        b"5" * (1 << 20),
        b"6",
    ]

    def answer(_: bytes) -> None:
        for piece in pieces:
            pair.transport.write(piece)

    pair.recorder.on_data = answer
    pair.peer.sendall(b"x")
    harness.until(lambda: pair.recorder.data)
    wanted, got = b"".join(pieces), bytearray()
    while len(got) < len(wanted):
        harness.turn()
        got += pair.peer.recv(1 << 20)
    assert got == wanted


def test_what_was_deferred_for_a_peer_that_is_gone_is_a_loss(harness: Harness) -> None:
    pair = harness.pair()

    def answer(_: bytes) -> None:
        pair.reset()
        pair.transport.write(b"data")
        assert "lost" not in pair.recorder.calls

    pair.recorder.on_data = answer
    pair.peer.sendall(b"x")
    pair.expect_calls("made lost")
    assert pair.is_closed


def test_what_is_written_while_a_loss_is_reported_goes_out(harness: Harness) -> None:
    going, staying = harness.pair(), harness.pair()

    def lost(error: Exception | None) -> None:
        staying.transport.write(b"it is gone")
        Recorder.connection_lost(going.recorder, error)

    going.recorder.connection_lost = lost  # type: ignore[method-assign]
    going.peer.close()
    going.expect_calls("made end lost")
    assert staying.peer.recv(100) == b"it is gone"


def test_a_loss_after_a_partial_write_is_not_a_broken_pipe(harness: Harness) -> None:
    pair = harness.pair(socket.AF_UNIX)
    pair.transport.write(HUGE)
    assert 0 < pair.transport.get_write_buffer_size() < len(HUGE)
    pair.peer.close()
    harness.until(lambda: "lost" in pair.recorder.calls)
    assert isinstance(pair.recorder.error, ConnectionResetError)


def test_an_abort_in_the_middle_of_a_turn_pauses_no_connection(harness: Harness) -> None:
    pair = harness.pair(socket.AF_UNIX)
    unsent: list[int] = []

    def abort(_: bytes) -> None:
        # The socket buffer is full, and this is above the high-water mark.
        pair.transport.write(b"x" * 10_000)
        unsent.append(pair.transport.get_write_buffer_size())
        pair.transport.abort()
        unsent.append(pair.transport.get_write_buffer_size())

    with suppress(BlockingIOError):
        while os.write(pair.fd, HUGE):
            pass
    pair.transport._high_water = 5_000
    pair.recorder.on_data = abort
    pair.peer.sendall(b"x")
    harness.until(lambda: "lost" in pair.recorder.calls)
    assert unsent == [10_000, 0]
    assert pair.recorder.calls == ["made", "lost"]


# -- what has come unasked


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
@pytest.mark.parametrize("sent", [b"x", b""], ids=["bytes", "end"])
def test_what_has_come_first_is_known_when_the_others_are_read(
    harness: Harness, family: int, sent: bytes
) -> None:
    asked, idle = harness.pair(family), harness.pair(family, first=True)
    seen: list[bool] = []
    asked.recorder.on_data = lambda _: seen.append(idle.transport.is_quiet())
    asked.peer.sendall(b"1")
    asked.until(lambda: seen == [True])
    # Both are found by the same poll, in this order.
    asked.peer.sendall(b"2")
    if sent:
        idle.peer.sendall(sent)
    else:
        idle.peer.shutdown(socket.SHUT_WR)
    read: list[bytes] = []
    asked.recorder.on_data = lambda _: read.append(idle.recorder.data)
    asked.until(lambda: read)
    assert read == [sent]
    assert ("end" in idle.recorder.calls) is not bool(sent)
    assert idle.transport.is_quiet() is bool(sent), "it has been read"


@pytest.mark.parametrize("sent", [b"x", b""], ids=["bytes", "end"])
def test_outside_of_a_turn_the_kernel_is_asked(harness: Harness, sent: bytes) -> None:
    idle = harness.pair(first=True)
    assert idle.transport.is_quiet()
    if sent:
        idle.peer.sendall(sent)
    else:
        idle.peer.close()
    harness.settle(idle)
    assert not idle.transport.is_quiet()
    assert idle.recorder.data == b"", "it was only looked at"
    idle.until(lambda: idle.recorder.data or idle.recorder.calls[-1] == "lost")


def test_a_poll_that_may_not_have_found_all_is_not_relied_upon(harness: Harness) -> None:
    idle = harness.pair(socket.AF_UNIX, first=True)
    many = [harness.pair(socket.AF_UNIX) for _ in range(300)]
    seen: list[tuple[bool, bytes]] = []
    for pair in many:
        pair.recorder.on_data = lambda _: seen.append(
            (idle.transport.is_quiet(), idle.recorder.data)
        )
        pair.peer.sendall(b"1")
    # Behind more than one poll returns.
    idle.peer.sendall(b"x")
    idle.until(lambda: len(seen) == len(many))
    assert {quiet for quiet, data in seen if not data} == {False}
    assert seen[0] == (False, b"")
    assert seen[-1] == (True, b"x")


@pytest.mark.parametrize("more", [b"x", b""], ids=["bytes", "end"])
def test_what_is_behind_a_read_that_was_full_or_the_last_is_seen(
    harness: Harness, more: bytes
) -> None:
    pair = harness.pair(socket.AF_UNIX, first=True)
    quiet: list[bool] = []
    pair.recorder.on_data = lambda _: quiet.append(pair.transport.is_quiet())
    pair.peer.sendall(b"y" * (16 << 10) + more)
    if not more:
        pair.peer.close()
    pair.until(lambda: len(quiet) == 1 + len(more))
    assert quiet[0] is False
    assert quiet[1:] == [True] * len(more)
