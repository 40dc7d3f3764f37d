"""A proxy's own connections keep the contract of asyncio's, over real sockets.

The same under both event loops: the reactor is one descriptor of theirs.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import uvloop
from tests.support.descriptors import descriptors
from tests.support.proxy.notes import Notes

from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.socket_transport import HIGH_WATER, adopt
from penstock_worker.net.stream import Stream

RESET = struct.pack("ii", 1, 0)
HUGE = b"x" * (4 << 20)


class Pair:
    """A connection of ours, and its other end in the hands of the test."""

    def __init__(self, house: "House", family: int) -> None:
        self._house = house
        if family == socket.AF_UNIX:
            ours, self.peer = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as door:
                self.peer = socket.create_connection(door.getsockname())
                ours, _ = door.accept()
        self.peer.settimeout(10)
        # Or the kernel would take megabytes.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        self.fd = ours.detach()
        self.notes = Notes()
        adopt(house.reactor, self.notes, Stream(self.fd, family))
        self.transport = self.notes.transport

    def until(self, condition: Callable[[], object]) -> None:
        self._house.until(condition)

    def hears(self, words: str) -> None:
        self.until(lambda: self.notes.said == words.split())

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


class House:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.reactor = Reactor(loop)
        self.pairs: list[Pair] = []

    def pair(self, family: int = socket.AF_INET) -> Pair:
        self.pairs.append(Pair(self, family))
        return self.pairs[-1]

    def until(self, condition: Callable[[], object]) -> None:
        deadline = self.loop.time() + 10
        while not condition():
            assert self.loop.time() < deadline, "it never came true"
            self.turn()

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0.001))


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    # The first loop of a kind opens some that stay.
    request.param().close()
    before = descriptors()
    loop: asyncio.AbstractEventLoop = request.param()
    house = House(loop)
    yield house
    for pair in house.pairs:
        pair.peer.close()
        if "lost" not in pair.notes.said:
            pair.transport.abort()
    house.turn()
    assert all(pair.notes.said.count("lost") == 1 for pair in house.pairs)
    house.reactor.close()
    loop.close()
    assert descriptors() == before


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def test_bytes_go_both_ways(house: House, family: int) -> None:
    pair = house.pair(family)
    pair.peer.sendall(b"question")
    pair.until(lambda: pair.notes.data == b"question")
    pair.transport.write(b"ans")
    pair.transport.write(b"wer")
    assert pair.peer.recv(100, socket.MSG_WAITALL | socket.MSG_PEEK)[:3] == b"ans"
    pair.transport.close()
    assert pair.transport.is_closing()
    pair.hears("made lost")
    assert pair.notes.error is None
    assert pair.is_closed


def test_what_does_not_fit_waits_and_stalls_the_writer(house: House) -> None:
    pair = house.pair()
    pair.transport.write(HUGE)
    assert pair.notes.said == ["made", "pause"]
    assert pair.transport.get_write_buffer_size() > HIGH_WATER
    pair.transport.write(b"y")
    heard = bytearray()
    pair.peer.setblocking(False)

    def read() -> bool:
        try:
            heard.extend(pair.peer.recv(1 << 20))
        except BlockingIOError:
            return False
        return len(heard) > len(HUGE)

    pair.until(read)
    assert heard == HUGE + b"y"
    assert pair.notes.said == ["made", "pause", "resume"]
    assert pair.transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("how", ["close", "write_eof"])
def test_what_was_written_is_sent_before_the_end(house: House, how: str) -> None:
    pair = house.pair()
    pair.transport.write(HUGE)
    getattr(pair.transport, how)()
    pair.transport.write(b"too late")
    heard = bytearray()
    pair.peer.setblocking(False)

    def read() -> bool:
        try:
            data = pair.peer.recv(1 << 20)
        except BlockingIOError:
            return False
        heard.extend(data)
        return not data

    pair.until(read)
    assert heard == HUGE
    assert pair.transport.is_closing() == (how == "close")


def test_a_paused_reader_leaves_bytes_in_the_kernel(house: House) -> None:
    pair = house.pair()
    pair.transport.pause_reading()
    pair.peer.sendall(b"later")
    for _ in range(20):
        house.turn()
    assert pair.notes.data == b""
    pair.transport.resume_reading()
    pair.until(lambda: pair.notes.data == b"later")


def test_who_pauses_in_the_middle_hears_of_the_end_when_he_resumes(house: House) -> None:
    pair = house.pair()
    pair.notes.on_data = lambda _: pair.transport.pause_reading()
    pair.peer.sendall(b"last")
    pair.peer.close()
    pair.until(lambda: pair.notes.data)
    for _ in range(20):
        house.turn()
    assert pair.notes.said == ["made"]
    pair.transport.resume_reading()
    pair.hears("made end lost")


def test_the_end_comes_with_the_last_bytes(house: House) -> None:
    pair = house.pair()
    pair.peer.sendall(b"last")
    pair.peer.close()
    pair.hears("made end lost")
    assert pair.notes.data == b"last"
    assert pair.notes.error is None


def test_an_urgent_byte_ends_nothing(house: House) -> None:
    pair = house.pair()
    pair.transport.pause_reading()
    pair.peer.sendall(b"before")
    pair.peer.send(b"!", socket.MSG_OOB)
    pair.peer.sendall(b"behind")
    pair.peer.close()
    for _ in range(20):
        house.turn()
    pair.transport.resume_reading()
    pair.hears("made end lost")
    assert pair.notes.data == b"beforebehind"


def test_all_of_much_is_read_before_the_end(house: House) -> None:
    pair = house.pair()
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
    pair.hears("made end lost")
    assert len(pair.notes.data) == len(HUGE)


def test_a_half_closed_connection_can_be_written_to(house: House) -> None:
    pair = house.pair()
    pair.notes.stays_open = True
    pair.peer.sendall(b"question")
    pair.peer.shutdown(socket.SHUT_WR)
    pair.hears("made end")
    # Its end is there to be read for ever, and is told once.
    for _ in range(20):
        house.turn()
    assert pair.notes.said == ["made", "end"]
    pair.transport.resume_reading()
    pair.transport.write(b"answer")
    pair.transport.close()
    assert pair.peer.recv(10, socket.MSG_WAITALL) == b"answer"
    pair.hears("made end lost")


def test_a_reset_is_told_with_its_error(house: House) -> None:
    pair = house.pair()
    pair.reset()
    pair.hears("made lost")
    assert isinstance(pair.notes.error, ConnectionResetError)


def test_a_reset_behind_the_last_bytes_is_no_end(house: House) -> None:
    pair = house.pair()
    pair.peer.sendall(b"last")
    pair.reset()
    pair.hears("made lost")
    assert isinstance(pair.notes.error, ConnectionResetError)


def test_writing_to_who_is_gone_is_a_loss_and_no_exception(house: House) -> None:
    pair = house.pair()
    pair.transport.pause_reading()
    pair.reset()
    pair.transport.write(b"anybody?")
    assert pair.notes.said == ["made"], "not in the middle of the call"
    pair.hears("made lost")
    assert isinstance(pair.notes.error, OSError)
    pair.transport.write(b"still?")
    pair.transport.abort()
    house.turn()


def test_what_a_peer_said_before_it_broke_off_can_be_read_until_the_loss_is_told(
    house: House,
) -> None:
    pair = house.pair()
    pair.transport.pause_reading()
    pair.peer.sendall(b"enough")
    said = []

    def lost(error: Exception | None) -> None:
        said.append(os.read(pair.transport.borrow().fileno(), 100))
        Notes.connection_lost(pair.notes, error)

    pair.notes.connection_lost = lost  # type: ignore[method-assign]
    pair.transport.abort()
    pair.hears("made lost")
    assert said == [b"enough"]
    assert pair.is_closed


def test_who_is_let_go_of_in_the_same_turn_is_not_called_any_more(house: House) -> None:
    one, other = house.pair(), house.pair()
    one.notes.on_data = lambda _: other.transport.abort()
    other.notes.on_data = lambda _: one.transport.abort()
    one.peer.sendall(b"x")
    other.peer.sendall(b"x")
    house.until(lambda: "lost" in one.notes.said or "lost" in other.notes.said)
    assert sorted([one.notes.data, other.notes.data]) == [b"", b"x"]


def test_a_protocol_that_fails_costs_its_own_connection(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = house.pair(), house.pair()

    def fail(_: bytes) -> None:
        raise RuntimeError

    bad.notes.on_data = fail
    bad.peer.sendall(b"x")
    bad.hears("made lost")
    assert "could not be handled" in caplog.text
    good.peer.sendall(b"x")
    good.until(lambda: good.notes.data == b"x")


def test_another_protocol_can_take_over(house: House) -> None:
    pair = house.pair()
    heir = Notes()
    pair.transport.set_protocol(heir)
    pair.peer.sendall(b"x")
    pair.until(lambda: heir.data == b"x")
    pair.transport.set_protocol(pair.notes)
    assert pair.notes.data == b""


def test_a_slow_reader_of_much_is_sent_small_pieces(house: House) -> None:
    pair = house.pair()
    sizes: list[int] = []
    pair.notes.on_data = lambda data: sizes.append(len(data))
    pair.peer.setblocking(False)

    def pump(count: int) -> Callable[[], bool]:
        def enough() -> bool:
            try:
                pair.peer.send(HUGE[:500_000])
            except BlockingIOError:
                house.turn()
            return sum(sizes) > count

        return enough

    pair.until(pump(4 << 20))
    fast = max(sizes)
    pair.transport.pause_reading()
    pair.transport.resume_reading()
    del sizes[:]
    house.until(lambda: sizes)
    assert sizes[0] < fast


def test_hundreds_at_once_are_all_served(house: House) -> None:
    pairs = [house.pair(socket.AF_UNIX) for _ in range(300)]
    for pair in pairs:
        pair.notes.on_data = pair.transport.write
        pair.peer.sendall(b"echo")
    house.until(lambda: all(pair.notes.data for pair in pairs))
    assert all(pair.peer.recv(10) == b"echo" for pair in pairs)


def test_what_is_written_in_one_turn_goes_out_when_all_have_been_called(house: House) -> None:
    pairs = [house.pair() for _ in range(5)]
    heard_meanwhile: list[bytes] = []

    def listen(pair: Pair) -> bytes:
        try:
            return os.read(pair.peer.fileno(), 100)
        except BlockingIOError:
            return b""

    def answer(_: bytes) -> None:
        heard_meanwhile.extend(listen(pair) for pair in pairs)
        for pair in pairs:
            pair.transport.write(b"a")
            pair.transport.write(b"b")

    for pair in pairs:
        pair.notes.on_data = answer
        pair.peer.sendall(b"x")
        pair.peer.setblocking(False)
    house.until(lambda: all(pair.notes.data for pair in pairs))
    # The kernel may have found them ready at different times; nobody heard in mid-turn of one.
    assert heard_meanwhile[0] == b""
    assert pairs[0].transport.get_write_buffer_size() == 0
    total = sum(len(listen(pair)) for pair in pairs) + sum(map(len, heard_meanwhile))
    assert total == 2 * len(pairs) * len(pairs)


@pytest.mark.parametrize("how", ["close", "abort", "write_eof"])
def test_what_is_held_goes_out_before_the_end(house: House, how: str) -> None:
    pair = house.pair()

    def answer(_: bytes) -> None:
        pair.transport.write(b"last words")
        assert pair.transport.get_write_buffer_size() == 10
        getattr(pair.transport, how)()

    pair.notes.on_data = answer
    pair.peer.sendall(b"x")
    house.until(lambda: pair.notes.data)
    with pair.peer.makefile("rb") as file:
        assert file.read() == b"last words"


def test_little_and_much_keep_their_order(house: House) -> None:
    pair = house.pair()
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

    pair.notes.on_data = answer
    pair.peer.sendall(b"x")
    house.until(lambda: pair.notes.data)
    wanted, got = b"".join(pieces), bytearray()
    while len(got) < len(wanted):
        house.turn()
        got += pair.peer.recv(1 << 20)
    assert got == wanted


def test_what_was_held_for_who_is_gone_is_a_loss(house: House) -> None:
    pair = house.pair()

    def answer(_: bytes) -> None:
        pair.reset()
        pair.transport.write(b"anybody?")
        assert "lost" not in pair.notes.said

    pair.notes.on_data = answer
    pair.peer.sendall(b"x")
    pair.hears("made lost")
    assert pair.is_closed


def test_what_is_written_while_a_loss_is_told_goes_out(house: House) -> None:
    going, staying = house.pair(), house.pair()

    def lost(error: Exception | None) -> None:
        staying.transport.write(b"it is gone")
        Notes.connection_lost(going.notes, error)

    going.notes.connection_lost = lost  # type: ignore[method-assign]
    going.peer.close()
    going.hears("made end lost")
    assert staying.peer.recv(100) == b"it is gone"


def test_what_broke_off_behind_a_part_of_a_write_may_have_been_read(house: House) -> None:
    pair = house.pair(socket.AF_UNIX)
    pair.transport.write(HUGE)
    assert 0 < pair.transport.get_write_buffer_size() < len(HUGE)
    pair.peer.close()
    house.until(lambda: "lost" in pair.notes.said)
    assert isinstance(pair.notes.error, ConnectionResetError)


def test_an_abort_in_mid_turn_tells_nobody_to_pause(house: House) -> None:
    pair = house.pair(socket.AF_UNIX)
    held: list[int] = []

    def abort(_: bytes) -> None:
        # Nothing fits any more, and it is more than may wait.
        pair.transport.write(b"x" * 10_000)
        held.append(pair.transport.get_write_buffer_size())
        pair.transport.abort()
        held.append(pair.transport.get_write_buffer_size())

    with suppress(BlockingIOError):
        while os.write(pair.fd, HUGE):
            pass
    pair.transport._high = 5_000
    pair.notes.on_data = abort
    pair.peer.sendall(b"x")
    house.until(lambda: "lost" in pair.notes.said)
    assert held == [10_000, 0]
    assert pair.notes.said == ["made", "lost"]
