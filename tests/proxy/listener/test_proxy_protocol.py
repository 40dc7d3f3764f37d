"""A connection is passed on with its true peer and every byte behind its header, or is rejected.

Covers `net/peer` and `listener/peek`.
"""

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock_proxy.errors import CLIENT_GONE, PROXY_HEADER, PROXY_UNTRUSTED, Fault
from penstock_proxy.listener.proxy_protocol import ProxyProtocolFilter
from penstock_proxy.net.peer import HeaderHandling, Peer
from penstock_proxy.net.timer_wheel import TICK_S, TimerWheel
from penstock_worker.net.proxy_protocol import SIGNATURE, build, build_local
from penstock_worker.net.stream import Stream
from penstock_worker.net.trusted_proxies import TrustedProxies

DEADLINE_S = 10.0
CLIENT = ("203.0.113.9", 4321)
DESTINATION = ("192.0.2.1", 443)
PROXY = ("10.0.0.1", 5555)
V1, V2 = build(1, CLIENT, DESTINATION), build(2, CLIENT, DESTINATION)
LONG = V2[:14] + (12 + 3 + 4000).to_bytes(2, "big") + V2[16:] + b"\4\x0f\xa0" + bytes(4000)
"""Larger than one peek."""


class Harness:
    """A filter, and what it has reported."""

    def __init__(self, handling: HeaderHandling = "consume") -> None:
        self.loop = asyncio.get_running_loop()
        self.timers = TimerWheel(monotonic())
        self.open = 0
        self.passed: list[tuple[bytes, Peer]] = []
        self.rejected: list[tuple[str, Fault | None, str]] = []
        self.streams: list[Stream] = []
        self.peeks = 0
        self.proxy_protocol = ProxyProtocolFilter(
            self.loop,
            self.timers,
            10.0,
            TrustedProxies(["10.0.0.0/8", "unix"]),
            self,
            handling=handling,
        )

    def connection_opened(self) -> None:
        self.open += 1

    def peer_known(self, stream: Stream, peer: Peer) -> None:
        sock = socket.socket(fileno=os.dup(stream.fileno()))
        with sock:
            try:
                rest = sock.recv(1 << 16)
            except BlockingIOError:
                rest = b""
        self.streams.append(stream)
        self.passed.append((rest, peer))

    def connection_rejected(self, address: str, fault: Fault | None, reason: str) -> None:
        self.open -= 1
        self.rejected.append((address, fault, reason))

    def accept(self, sock: socket.socket, peer: object = PROXY) -> None:
        sock.setblocking(False)
        family = int(sock.family)
        self.proxy_protocol.accepted(Stream(sock.detach(), family), peer)

    def pass_time(self, seconds: float) -> None:
        self.timers.tick(self.timers.now + seconds)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 — nothing sets an event for us
                await asyncio.sleep(0.001)

    @property
    def settled(self) -> int:
        return len(self.passed) + len(self.rejected)

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, listener.accept()[0]


PAIRS = (tcp_pair, socket.socketpair)


@pytest.fixture
def clean() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("header", [V1, V2, LONG, b"PROXY UNKNOWN\r\n", build_local()])
@pytest.mark.parametrize("cuts", ["at once", "byte by byte", "in two"])
async def test_the_header_is_consumed_and_nothing_behind_it(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
    header: bytes,
    cuts: str,
    clean: ExitStack,
) -> None:
    harness = Harness()
    clean.callback(harness.close)
    client, server = pair()
    with client:
        step = {"at once": len(header), "in two": 13, "byte by byte": 1}[cuts]
        if header is LONG and step == 1:
            step = 97
        pieces = [header[at : at + step] for at in range(0, len(header) - 1, step)]
        pieces[-1] = header[sum(map(len, pieces[:-1])) :] + b"GET"
        if cuts == "at once":
            client.sendall(pieces[0])
        harness.accept(server)
        for piece in () if cuts == "at once" else pieces:
            assert not harness.settled
            client.sendall(piece)
            await turns(3)
        await harness.until(lambda: harness.settled)
    assert harness.rejected == []
    rest, peer = harness.passed[0]
    assert rest == b"GET"
    if header in (V1, V2, LONG):
        assert peer == Peer(CLIENT, DESTINATION, True)
    else:
        assert peer == Peer(PROXY, None, header == build_local())


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_it_does_not_matter_how_the_bytes_are_split(data: st.DataObject) -> None:
    header = data.draw(
        st.sampled_from((V1, V2, LONG, b"PROXY UNKNOWN x\r\n", build_local(), b"PROXY x\r\n"))
    )
    payload = data.draw(st.binary(min_size=1, max_size=40))
    whole = header + payload
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]
    handling: HeaderHandling = data.draw(st.sampled_from(("consume", "peek")))
    harness = asyncio.run(_sent(pieces, handling, data.draw(st.sampled_from(PAIRS))))
    if header == b"PROXY x\r\n":
        assert [fault for _, fault, _ in harness.rejected] == [PROXY_HEADER]
        return
    rest, peer = harness.passed[0]
    mine = whole if handling == "peek" else payload
    # Some of what comes behind the header may not have come yet.
    assert mine.startswith(rest)
    assert len(rest) >= len(mine) - len(payload)
    assert peer.address == (CLIENT if header in (V1, V2, LONG) else PROXY)


async def _sent(
    pieces: list[bytes],
    handling: HeaderHandling,
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> Harness:
    harness = Harness(handling)
    client, server = pair()
    with client, closing(harness):
        harness.accept(server)
        for piece in pieces:
            # A client that is rejected early does not send the rest.
            with suppress(OSError):
                client.sendall(piece)
            await turns(2)
        async with asyncio.timeout(DEADLINE_S):
            while not harness.settled:
                harness.pass_time(TICK_S / 2)
                await asyncio.sleep(0)
    return harness


@pytest.mark.parametrize("pair", PAIRS)
async def test_a_header_that_is_peeked_at_stays_on_the_connection(
    pair: Callable[[], tuple[socket.socket, socket.socket]], clean: ExitStack
) -> None:
    harness = Harness("peek")
    clean.callback(harness.close)
    client, server = pair()
    with client:
        harness.accept(server)
        client.sendall(V2[:20])
        await turns()
        client.sendall(V2[20:] + b"GET")
        async with asyncio.timeout(DEADLINE_S):
            while not harness.settled:
                harness.pass_time(TICK_S)
                await asyncio.sleep(0.001)
        assert harness.passed == [(V2 + b"GET", Peer(CLIENT, DESTINATION, True))]
        found = socket.socket(fileno=os.dup(harness.streams[0].fileno()))
        with found:
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


@pytest.mark.parametrize("handling", ["consume", "peek"])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("closes", [False, True])
async def test_a_partial_header_causes_no_busy_loop(
    handling: HeaderHandling,
    pair: Callable[[], tuple[socket.socket, socket.socket]],
    clean: ExitStack,
    *,
    closes: bool,
) -> None:
    harness = Harness(handling)
    clean.callback(harness.close)
    client, server = pair()
    with client:
        harness.accept(server)
        client.sendall(V1[:30])
        await turns()
        (reader,) = harness.proxy_protocol.waiting
        peeks = 0
        kind: Any = type(reader)
        original = kind._header

        def counted(self: object) -> object:
            nonlocal peeks
            peeks += 1
            return original(self)

        patch = pytest.MonkeyPatch()
        patch.setattr(kind, "_header", counted)
        clean.callback(patch.undo)
        if closes:
            client.shutdown(socket.SHUT_WR)
        await turns(50)
        assert peeks <= 1
        harness.pass_time(TICK_S)
        assert len(harness.rejected) == closes
        harness.pass_time(11)
    assert [fault for _, fault, _ in harness.rejected] == [PROXY_HEADER]
    assert (harness.open, harness.proxy_protocol.waiting) == (0, {})


async def test_an_untrusted_peer_is_rejected_before_a_byte_is_read(clean: ExitStack) -> None:
    harness = Harness()
    clean.callback(harness.close)
    client, server = tcp_pair()
    with client:
        client.sendall(V1)
        harness.accept(server, ("192.0.2.77", 1))
        assert harness.rejected == [
            ("192.0.2.77", PROXY_UNTRUSTED, "it is none of trusted_proxies")
        ]
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert harness.open == 0


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02", SIGNATURE + b"\x31\x11\0\x0c", b"\0"]
)
async def test_what_is_no_header_is_rejected(data: bytes, clean: ExitStack) -> None:
    harness = Harness()
    clean.callback(harness.close)
    client, server = tcp_pair()
    with client:
        harness.accept(server)
        client.sendall(data)
        await harness.until(lambda: harness.settled)
    assert [(one[0], one[1]) for one in harness.rejected] == [("10.0.0.1", PROXY_HEADER)]


@pytest.mark.parametrize(
    ("sent", "reset", "fault"),
    [
        (b"", False, None),
        (b"", True, None),
        (V1[:20], False, PROXY_HEADER),
        (V1[:20], True, CLIENT_GONE),
    ],
)
async def test_a_client_that_closes_early_is_reported(
    sent: bytes, fault: Fault | None, clean: ExitStack, *, reset: bool
) -> None:
    harness = Harness()
    clean.callback(harness.close)
    client, server = tcp_pair()
    harness.accept(server)
    client.sendall(sent)
    await turns()
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    await harness.until(lambda: harness.settled)
    assert [one[1] for one in harness.rejected] == [fault]
    assert harness.open == 0


async def test_silence_has_a_time_limit_and_a_shorter_one_when_draining(clean: ExitStack) -> None:
    harness = Harness()
    clean.callback(harness.close)
    first, server = tcp_pair()
    with first:
        harness.accept(server)
        harness.pass_time(9)
        assert not harness.settled
        harness.pass_time(2)
        assert [one[1] for one in harness.rejected] == [PROXY_HEADER]
    second, server = tcp_pair()
    with second:
        harness.accept(server)
        deque(harness.proxy_protocol.draining())
        harness.pass_time(1.5)
        assert len(harness.rejected) == 2


async def test_a_filter_that_ignores_headers_only_checks_the_peer(clean: ExitStack) -> None:
    harness = Harness("ignore")
    clean.callback(harness.close)
    for peer, size in ((PROXY, 1), (("192.0.2.1", 1), 1), ("", 2)):
        client, server = socket.socketpair()
        with client:
            client.sendall(V1)
            harness.accept(server, peer)
            assert len(harness.passed) == size
    assert [came[0] for came in harness.passed] == [V1, V1]
