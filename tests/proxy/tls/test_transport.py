"""TLS is a transport like any other: it tells what came, sends what it is given, keeps what is
not wanted yet, and every way to end looks like what it is. Over real sockets."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trustme
import uvloop
from tests.support.proxy.notes import Notes

from penstock_proxy.config import Limits, ServiceConfig, Timeouts
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TICK_S, TimerWheel
from penstock_proxy.tls.contexts import Contexts, Credential, Terms
from penstock_proxy.tls.handshake import Handshake, TlsAcceptor
from penstock_proxy.tls.transport import TlsConnection
from penstock_worker.net.stream import Stream

AUTHORITY = trustme.CA()
MADE = AUTHORITY.issue_cert("a.example")
CREDENTIAL = Credential(
    MADE.cert_chain_pems[0].bytes().decode(), MADE.private_key_pem.bytes().decode(), ("a.example",)
)
CLIENT = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())


class Peer:
    """The client: OpenSSL and a socket that never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = CLIENT.wrap_bio(self.incoming, self.outgoing, server_hostname="a.example")
        self.got = b""
        self.notified = self.closed = self.done = False

    def step(self) -> None:
        """Take what has come, send what there is."""
        try:
            while data := self.sock.recv(1 << 16):
                self.incoming.write(data)
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        try:
            if not self.done:
                self.tls.do_handshake()
                self.done = True
            while data := self.tls.read(1 << 16):
                self.got += data
            self.notified = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.notified = True
        self.flush()

    def flush(self) -> None:
        if self.outgoing.pending and self.sock.fileno() >= 0:
            self.sock.setblocking(True)
            self.sock.sendall(self.outgoing.read())
            self.sock.setblocking(False)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view) :]
        self.flush()

    def finish(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.flush()


class House:
    """A service's handshakes, and the loop that they run in."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.timers = TimerWheel(1000.0)
        self.now = 1000.0
        self.reactor = Reactor(loop)
        self.counters = ServiceCounters()
        self.timeouts = Timeouts(handshake=5.0)
        self.config = ServiceConfig(
            name="web", listeners=(), targets=(), tls=True, limits=Limits(handshakes=3)
        )
        self.lost = 0
        self.carried: list[Notes] = []
        self.handshakes = TlsAcceptor(cast("Any", self), self.secured)
        self.handshakes.contexts = Contexts(Terms(), [CREDENTIAL])
        self.sockets: list[socket.socket] = []

    def secured(self, _handshake: Handshake, connection: TlsConnection) -> None:
        notes = Notes()
        self.carried.append(notes)
        connection.carry(notes)

    def client_closed(self, _address: str) -> None:
        self.lost += 1

    def connect(self) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as door:
            peer = socket.create_connection(door.getsockname())
            ours, address = door.accept()
        self.sockets.append(peer)
        # Or the kernel would take megabytes.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        stream = Stream(ours.detach(), socket.AF_INET)
        self.handshakes.accepted(stream, address, b"", 0, "", believed=True)
        return peer

    def open(self) -> tuple[Peer, Notes]:
        peer = Peer(self.connect())
        self.until(lambda: peer.done and len(self.carried) == 1, peer)
        return peer, self.carried[0]

    def until(self, condition: Any, *peers: Peer) -> None:
        deadline = self.loop.time() + 20
        while not condition():
            assert self.loop.time() < deadline, "it never came true"
            for peer in peers:
                peer.step()
            self.turn()

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0.001))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds + 2 * TICK_S
        self.timers.tick(self.now)

    def ended(self, result: str) -> int:
        return self.counters.handshakes[result]


@pytest.fixture
def house() -> Iterator[House]:
    loop = uvloop.new_event_loop()
    house = House(loop)
    yield house
    for sock in house.sockets:
        sock.close()
    house.until(lambda: house.lost + sum("lost" in one.said for one in house.carried)
                == len(house.sockets))  # fmt: skip
    assert house.handshakes.pending == 0
    house.reactor.close()
    loop.close()


def test_bytes_go_both_ways(house: House) -> None:
    peer, notes = house.open()
    peer.send(b"question")
    house.until(lambda: notes.data == b"question", peer)
    notes.transport.write(b"ans")
    notes.transport.write(b"wer")
    notes.transport.write(b"")
    house.until(lambda: peer.got == b"answer", peer)
    assert house.ended("ok") == 1
    assert peer.tls.version() == "TLSv1.3"
    assert notes.transport.borrow() is not None
    assert not notes.transport.is_resumed
    assert notes.transport.certificate_field() == b""


def test_much_arrives_whole_though_its_reader_is_slow(house: House) -> None:
    peer, notes = house.open()
    data = bytes(range(256)) * (4 << 12)
    notes.transport.write(data)
    assert "pause" in notes.said
    assert notes.transport.get_write_buffer_size() > 0
    house.until(lambda: peer.got == data, peer)
    assert notes.said[-1] == "resume"
    notes.on_data = lambda _: notes.transport.pause_reading()
    sender = data[: 1 << 18]
    peer.send(sender)
    for _ in range(len(sender) >> 14):
        size = len(notes.data)
        house.until(lambda size=size: len(notes.data) > size, peer)
        assert len(notes.data) - size <= 16 << 10
        assert not notes.transport.is_reading()
        notes.transport.resume_reading()
    house.until(lambda: notes.data == sender, peer)


def test_each_side_ends_by_itself(house: House) -> None:
    peer, notes = house.open()
    notes.stays_open = True
    peer.finish()
    house.until(lambda: notes.said == ["made", "end"], peer)
    # What comes behind the end is nobody's.
    peer.sock.sendall(bytes(1000))
    notes.transport.write(b"still")
    notes.transport.write_eof()
    notes.transport.write(b"too late")
    house.until(lambda: peer.notified and peer.closed, peer)
    assert peer.got == b"still"
    notes.transport.close()
    house.until(lambda: "lost" in notes.said)
    assert notes.error is None


def test_an_end_of_ours_leaves_the_other_direction_open(house: House) -> None:
    peer, notes = house.open()
    notes.transport.pause_reading()
    peer.send(b"on its way")
    house.turn()
    notes.transport.write_eof()
    house.until(lambda: peer.notified, peer)
    peer.send(b", and more")
    notes.transport.resume_reading()
    house.until(lambda: notes.data == b"on its way, and more")
    peer.finish()
    house.until(lambda: "lost" in notes.said)
    assert notes.error is None


@pytest.mark.parametrize(
    ("how", "notified"), [("close", True), ("break_off", False), ("abort", False)]
)
def test_a_cut_is_no_end(house: House, how: str, notified: bool) -> None:
    peer, notes = house.open()
    notes.transport.write(b"half")
    getattr(notes.transport, how)()
    house.until(lambda: peer.closed, peer)
    assert peer.notified is notified
    assert how == "abort" or peer.got == b"half"
    notes.transport.write(b"nobody hears")
    notes.transport.close()
    assert notes.transport.is_closing()


def test_a_client_that_goes_without_a_word_has_broken_off(house: House) -> None:
    peer, notes = house.open()
    peer.send(b"half")
    peer.sock.close()
    house.until(lambda: "lost" in notes.said)
    assert notes.data == b"half"
    assert notes.said == ["made", "lost"]
    assert isinstance(notes.error, ConnectionResetError)


def test_a_record_that_was_tampered_with_ends_the_connection(house: House) -> None:
    peer, notes = house.open()
    peer.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    house.until(lambda: "lost" in notes.said)
    assert isinstance(notes.error, ConnectionResetError)
    assert notes.data == b""


def test_another_protocol_can_take_over(house: House) -> None:
    peer, notes = house.open()
    after = Notes()
    notes.transport.set_protocol(after)
    peer.send(b"to whom?")
    house.until(lambda: after.data == b"to whom?")
    peer.sock.close()
    house.until(lambda: after.said == ["lost"])
    assert (notes.data, notes.said) == (b"", ["made"]), "the first hears nothing more"
    notes.said.append("lost")  # for the account at the end


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not_tls"),
        (b"\x00\x01", "not_tls"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "failed"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "failed"),
        (b"", "gone"),
        (b"\x16\x03\x01", "gone"),
    ],
)
def test_who_shakes_no_hands_is_counted_by_why(house: House, data: bytes, result: str) -> None:
    peer = house.connect()
    peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
    house.until(lambda: house.lost == 1)
    assert house.ended(result) == 1
    peer.settimeout(10)
    said = peer.recv(1000)
    assert said.startswith({"not_tls": b"HTTP/1.1 400" if data[:1] == b"G" else b"",
                            "failed": b"\x15\x03"}.get(result, b""))  # fmt: skip


def test_who_refuses_our_certificate_is_counted_so(house: House) -> None:
    peer = Peer(house.connect())
    peer.tls = ssl.create_default_context().wrap_bio(
        peer.incoming, peer.outgoing, server_hostname="a.example"
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        house.until(lambda: False, peer)
    peer.flush()
    peer.sock.close()
    house.until(lambda: house.lost == 1)
    assert house.ended("refused") == 1


def test_who_takes_too_long_is_cut(house: House) -> None:
    house.connect()
    house.pass_time(4)
    assert house.handshakes.pending == 1
    house.pass_time(2)
    house.until(lambda: house.lost == 1)
    assert house.ended("timeout") == 1


def test_beyond_the_bound_the_oldest_makes_room(house: House) -> None:
    waiting = [house.connect() for _ in range(5)]
    house.until(lambda: house.lost == 2)
    assert house.ended("displaced") == 2
    assert house.handshakes.pending == 3
    for sock in waiting[:2]:
        sock.settimeout(10)
        assert sock.recv(1) == b""
    _, notes = house.open()
    assert notes.said == ["made"]


def test_a_refused_one_that_does_not_leave_is_cut(house: House) -> None:
    peer = house.connect()
    peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
    peer.setblocking(False)
    said: list[bytes] = []

    def is_over() -> bool:
        with suppress(BlockingIOError):
            said.append(peer.recv(1000))
        return b"" in said

    house.until(is_over)
    assert house.lost == 0
    house.pass_time(2)
    house.until(lambda: house.lost == 1)
    assert house.ended("not_tls") == 1


def test_who_floods_us_with_what_wants_an_answer_and_takes_none_is_cut(house: House) -> None:
    peer, notes = house.open()
    connection = notes.transport
    lower = cast("Any", connection)._lower
    connection.pause_writing()
    cast("Any", connection)._lower = SimpleNamespace(
        write=lambda data: None,
        get_write_buffer_size=lambda: 2 << 20,
        abort=lower.abort,
        pause_reading=lower.pause_reading,
    )
    # A client that asks for new keys wants them answered; Python's cannot, so it is said here.
    cast("Any", connection)._outgoing.write(b"answers")
    peer.send(b"x")
    house.until(lambda: "lost" in notes.said)
    assert lower.is_closing()
    assert notes.data == b"x"
