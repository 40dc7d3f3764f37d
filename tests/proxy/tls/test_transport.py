"""TLS is a transport like any other: it delivers, sends, pauses, and detects every way to close.

The tests use real sockets.
Covers `tls/handshake`.
"""

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
from tests.support.proxy.recorder import Recorder

from penstock_proxy.config import Limits, ServiceConfig, Timeouts
from penstock_proxy.metrics import ServiceCounters
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.timer_wheel import TICK_S, TimerWheel
from penstock_proxy.tls.contexts import Certificate, Contexts, TlsSettings
from penstock_proxy.tls.handshake import Handshake, TlsAcceptor
from penstock_proxy.tls.transport import TlsConnection
from penstock_worker.net.stream import Stream

AUTHORITY = trustme.CA()
MADE = AUTHORITY.issue_cert("a.example")
CERTIFICATE = Certificate(
    MADE.cert_chain_pems[0].bytes().decode(), MADE.private_key_pem.bytes().decode(), ("a.example",)
)
CONTEXT = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())


class Client:
    """The client: OpenSSL and a socket that never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = CONTEXT.wrap_bio(self.incoming, self.outgoing, server_hostname="a.example")
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


class Harness:
    """The TLS acceptor of a service, its clock and its event loop."""

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
        self.connections: list[Recorder] = []
        self.acceptor = TlsAcceptor(cast("Any", self), self.on_connection)
        self.acceptor.contexts = Contexts(TlsSettings(), [CERTIFICATE])
        self.sockets: list[socket.socket] = []

    def on_connection(self, _handshake: Handshake, connection: TlsConnection) -> None:
        recorder = Recorder()
        self.connections.append(recorder)
        connection.attach(recorder)

    def client_closed(self, _address: str) -> None:
        self.lost += 1

    def connect(self) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            ours, address = listener.accept()
        self.sockets.append(client)
        # By default the kernel would buffer megabytes.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        stream = Stream(ours.detach(), socket.AF_INET)
        self.acceptor.accepted(stream, address, b"", 0, "", may_be_trusted=True)
        return client

    def open(self) -> tuple[Client, Recorder]:
        client = Client(self.connect())
        self.until(lambda: client.done and len(self.connections) == 1, client)
        return client, self.connections[0]

    def until(self, condition: Any, *clients: Client) -> None:
        deadline = self.loop.time() + 20
        while not condition():
            assert self.loop.time() < deadline, "it never came true"
            for client in clients:
                client.step()
            self.turn()

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0.001))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds + 2 * TICK_S
        self.timers.tick(self.now)

    def ended(self, result: str) -> int:
        return self.counters.handshakes[result]


@pytest.fixture
def harness() -> Iterator[Harness]:
    loop = uvloop.new_event_loop()
    harness = Harness(loop)
    yield harness
    for sock in harness.sockets:
        sock.close()
    harness.until(lambda: harness.lost + sum("lost" in one.calls for one in harness.connections)
                == len(harness.sockets))  # fmt: skip
    assert harness.acceptor.in_progress == 0
    harness.reactor.close()
    loop.close()


def test_bytes_go_both_ways(harness: Harness) -> None:
    client, recorder = harness.open()
    client.send(b"question")
    harness.until(lambda: recorder.data == b"question", client)
    recorder.transport.write(b"ans")
    recorder.transport.write(b"wer")
    recorder.transport.write(b"")
    harness.until(lambda: client.got == b"answer", client)
    assert harness.ended("ok") == 1
    assert client.tls.version() == "TLSv1.3"
    assert recorder.transport.borrow() is not None
    assert not recorder.transport.is_resumed
    assert recorder.transport.client_cert_field() == b""


def test_large_data_arrives_whole_though_its_reader_is_slow(harness: Harness) -> None:
    client, recorder = harness.open()
    data = bytes(range(256)) * (4 << 12)
    recorder.transport.write(data)
    assert "pause" in recorder.calls
    assert recorder.transport.get_write_buffer_size() > 0
    harness.until(lambda: client.got == data, client)
    assert recorder.calls[-1] == "resume"
    recorder.on_data = lambda _: recorder.transport.pause_reading()
    sender = data[: 1 << 18]
    client.send(sender)
    for _ in range(len(sender) >> 14):
        size = len(recorder.data)
        harness.until(lambda size=size: len(recorder.data) > size, client)
        assert len(recorder.data) - size <= 16 << 10
        assert not recorder.transport.is_reading()
        recorder.transport.resume_reading()
    harness.until(lambda: recorder.data == sender, client)


def test_a_large_write_is_encrypted_and_sent_in_pieces_that_stay_small(harness: Harness) -> None:
    client, recorder = harness.open()
    connection = recorder.transport
    sizes: list[int] = []
    below = connection._transport

    def write(data: bytes) -> None:
        sizes.append(len(data))
        below.write(data)

    connection._transport = SimpleNamespace(write=write)
    data = bytes(range(256)) * (1 << 10)
    connection.write(data)
    connection._transport = below
    assert max(sizes) < 40 << 10
    assert len(sizes) == len(data) // (32 << 10)
    harness.until(lambda: client.got == data, client)


@pytest.mark.parametrize("size", [1, (32 << 10) - 1, 32 << 10, (32 << 10) + 1, (64 << 10) + 1])
def test_a_write_of_any_size_arrives_whole(harness: Harness, size: int) -> None:
    client, recorder = harness.open()
    data = (bytes(range(251)) * 300)[:size]
    recorder.transport.write(data)
    harness.until(lambda: len(client.got) >= size, client)
    assert client.got == data


def test_each_direction_is_closed_by_itself(harness: Harness) -> None:
    client, recorder = harness.open()
    recorder.stays_open = True
    client.finish()
    harness.until(lambda: recorder.calls == ["made", "end"], client)
    # Bytes after close_notify are ignored.
    client.sock.sendall(bytes(1000))
    recorder.transport.write(b"still")
    recorder.transport.write_eof()
    recorder.transport.write(b"too late")
    harness.until(lambda: client.notified and client.closed, client)
    assert client.got == b"still"
    recorder.transport.close()
    harness.until(lambda: "lost" in recorder.calls)
    assert recorder.error is None


def test_a_close_notify_of_ours_leaves_the_other_direction_open(harness: Harness) -> None:
    client, recorder = harness.open()
    recorder.transport.pause_reading()
    client.send(b"on its way")
    harness.turn()
    recorder.transport.write_eof()
    harness.until(lambda: client.notified, client)
    client.send(b", and more")
    recorder.transport.resume_reading()
    harness.until(lambda: recorder.data == b"on its way, and more")
    client.finish()
    harness.until(lambda: "lost" in recorder.calls)
    assert recorder.error is None


@pytest.mark.parametrize(
    ("how", "notified"), [("close", True), ("break_off", False), ("abort", False)]
)
def test_a_truncation_is_no_clean_end(harness: Harness, how: str, notified: bool) -> None:
    client, recorder = harness.open()
    recorder.transport.write(b"half")
    getattr(recorder.transport, how)()
    harness.until(lambda: client.closed, client)
    assert client.notified is notified
    assert how == "abort" or client.got == b"half"
    recorder.transport.write(b"too late")
    recorder.transport.close()
    assert recorder.transport.is_closing()


def test_a_client_that_closes_without_close_notify_has_broken_off(harness: Harness) -> None:
    client, recorder = harness.open()
    client.send(b"half")
    client.sock.close()
    harness.until(lambda: "lost" in recorder.calls)
    assert recorder.data == b"half"
    assert recorder.calls == ["made", "lost"]
    assert isinstance(recorder.error, ConnectionResetError)


def test_a_record_that_was_tampered_with_ends_the_connection(harness: Harness) -> None:
    client, recorder = harness.open()
    client.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    harness.until(lambda: "lost" in recorder.calls)
    assert isinstance(recorder.error, ConnectionResetError)
    assert recorder.data == b""


def test_another_protocol_can_take_over(harness: Harness) -> None:
    client, recorder = harness.open()
    after = Recorder()
    recorder.transport.set_protocol(after)
    client.send(b"data")
    harness.until(lambda: after.data == b"data")
    client.sock.close()
    harness.until(lambda: after.calls == ["lost"])
    assert (recorder.data, recorder.calls) == (b"", ["made"]), "the first one gets nothing more"
    recorder.calls.append("lost")  # for the check at the end


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
def test_a_handshake_that_fails_is_counted_by_its_reason(
    harness: Harness, data: bytes, result: str
) -> None:
    client = harness.connect()
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    harness.until(lambda: harness.lost == 1)
    assert harness.ended(result) == 1
    client.settimeout(10)
    answer = client.recv(1000)
    assert answer.startswith({"not_tls": b"HTTP/1.1 400" if data[:1] == b"G" else b"",
                            "failed": b"\x15\x03"}.get(result, b""))  # fmt: skip


def test_a_client_that_refuses_our_certificate_is_counted_so(harness: Harness) -> None:
    client = Client(harness.connect())
    client.tls = ssl.create_default_context().wrap_bio(
        client.incoming, client.outgoing, server_hostname="a.example"
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        harness.until(lambda: False, client)
    client.flush()
    client.sock.close()
    harness.until(lambda: harness.lost == 1)
    assert harness.ended("refused") == 1


def test_a_handshake_that_takes_too_long_is_cut(harness: Harness) -> None:
    harness.connect()
    harness.pass_time(4)
    assert harness.acceptor.in_progress == 1
    harness.pass_time(2)
    harness.until(lambda: harness.lost == 1)
    assert harness.ended("timeout") == 1


def test_beyond_the_bound_the_oldest_is_evicted(harness: Harness) -> None:
    waiting = [harness.connect() for _ in range(5)]
    harness.until(lambda: harness.lost == 2)
    assert harness.ended("displaced") == 2
    assert harness.acceptor.in_progress == 3
    for sock in waiting[:2]:
        sock.settimeout(10)
        assert sock.recv(1) == b""
    _, recorder = harness.open()
    assert recorder.calls == ["made"]


def test_a_refused_client_that_does_not_close_is_cut(harness: Harness) -> None:
    client = harness.connect()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    client.setblocking(False)
    answer: list[bytes] = []

    def is_over() -> bool:
        with suppress(BlockingIOError):
            answer.append(client.recv(1000))
        return b"" in answer

    harness.until(is_over)
    assert harness.lost == 0
    harness.pass_time(2)
    harness.until(lambda: harness.lost == 1)
    assert harness.ended("not_tls") == 1


def test_a_client_that_asks_for_answers_and_reads_none_is_cut(harness: Harness) -> None:
    client, recorder = harness.open()
    connection = recorder.transport
    below = cast("Any", connection)._transport
    connection.pause_writing()
    cast("Any", connection)._transport = SimpleNamespace(
        write=lambda data: None,
        get_write_buffer_size=lambda: 2 << 20,
        abort=below.abort,
        pause_reading=below.pause_reading,
    )
    # A key update asks for an answer; Python's client cannot send one, so an answer is put here.
    cast("Any", connection)._outgoing.write(b"answers")
    client.send(b"x")
    harness.until(lambda: "lost" in recorder.calls)
    assert below.is_closing()
    assert recorder.data == b"x"
