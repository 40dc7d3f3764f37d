"""A connection enters with its true peer and every byte behind its header, or does not enter."""

import asyncio
import os
import socket
import struct
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
TRUE = ("203.0.113.9", 4321)
HERE = ("192.0.2.1", 443)
PROXY = ("10.0.0.1", 5555)
V1, V2 = build(1, TRUE, HERE), build(2, TRUE, HERE)
LONG = V2[:14] + (12 + 3 + 4000).to_bytes(2, "big") + V2[16:] + b"\4\x0f\xa0" + bytes(4000)
"""Larger than one look."""


class House:
    """An entrance, and what came of those who arrived."""

    def __init__(self, handling: HeaderHandling = "consume") -> None:
        self.loop = asyncio.get_running_loop()
        self.timers = TimerWheel(monotonic())
        self.inside = 0
        self.came: list[tuple[bytes, Peer]] = []
        self.away: list[tuple[str, Fault | None, str]] = []
        self.streams: list[Stream] = []
        self.looks = 0
        self.proxy_protocol = ProxyProtocolFilter(
            self.loop,
            self.timers,
            10.0,
            TrustedProxies(["10.0.0.0/8", "unix"]),
            self,
            handling=handling,
        )

    def arrived(self) -> None:
        self.inside += 1

    def entered(self, stream: Stream, peer: Peer) -> None:
        sock = socket.socket(fileno=os.dup(stream.fileno()))
        with sock:
            try:
                rest = sock.recv(1 << 16)
            except BlockingIOError:
                rest = b""
        self.streams.append(stream)
        self.came.append((rest, peer))

    def turned_away(self, address: str, fault: Fault | None, reason: str) -> None:
        self.inside -= 1
        self.away.append((address, fault, reason))

    def arrive(self, sock: socket.socket, peer: object = PROXY) -> None:
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
        return len(self.came) + len(self.away)

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
async def test_the_header_is_taken_and_nothing_behind_it(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
    header: bytes,
    cuts: str,
    clean: ExitStack,
) -> None:
    house = House()
    clean.callback(house.close)
    client, server = pair()
    with client:
        step = {"at once": len(header), "in two": 13, "byte by byte": 1}[cuts]
        if header is LONG and step == 1:
            step = 97
        pieces = [header[at : at + step] for at in range(0, len(header) - 1, step)]
        pieces[-1] = header[sum(map(len, pieces[:-1])) :] + b"GET"
        if cuts == "at once":
            client.sendall(pieces[0])
        house.arrive(server)
        for piece in () if cuts == "at once" else pieces:
            assert not house.settled
            client.sendall(piece)
            await turns(3)
        await house.until(lambda: house.settled)
    assert house.away == []
    rest, peer = house.came[0]
    assert rest == b"GET"
    if header in (V1, V2, LONG):
        assert peer == Peer(TRUE, HERE, True)
    else:
        assert peer == Peer(PROXY, None, header == build_local())


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_it_does_not_matter_how_the_bytes_are_cut(data: st.DataObject) -> None:
    header = data.draw(
        st.sampled_from((V1, V2, LONG, b"PROXY UNKNOWN x\r\n", build_local(), b"PROXY x\r\n"))
    )
    payload = data.draw(st.binary(min_size=1, max_size=40))
    whole = header + payload
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]
    handling: HeaderHandling = data.draw(st.sampled_from(("consume", "peek")))
    house = asyncio.run(_sent(pieces, handling, data.draw(st.sampled_from(PAIRS))))
    if header == b"PROXY x\r\n":
        assert [fault for _, fault, _ in house.away] == [PROXY_HEADER]
        return
    rest, peer = house.came[0]
    mine = whole if handling == "peek" else payload
    # Some of what comes behind the header may not have come yet.
    assert mine.startswith(rest)
    assert len(rest) >= len(mine) - len(payload)
    assert peer.address == (TRUE if header in (V1, V2, LONG) else PROXY)


async def _sent(
    pieces: list[bytes],
    handling: HeaderHandling,
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> House:
    house = House(handling)
    client, server = pair()
    with client, closing(house):
        house.arrive(server)
        for piece in pieces:
            # Who is turned away early does not take the rest.
            with suppress(OSError):
                client.sendall(piece)
            await turns(2)
        async with asyncio.timeout(DEADLINE_S):
            while not house.settled:
                house.pass_time(TICK_S / 2)
                await asyncio.sleep(0)
    return house


@pytest.mark.parametrize("pair", PAIRS)
async def test_what_is_only_looked_at_stays_for_who_gets_the_connection(
    pair: Callable[[], tuple[socket.socket, socket.socket]], clean: ExitStack
) -> None:
    house = House("peek")
    clean.callback(house.close)
    client, server = pair()
    with client:
        house.arrive(server)
        client.sendall(V2[:20])
        await turns()
        client.sendall(V2[20:] + b"GET")
        async with asyncio.timeout(DEADLINE_S):
            while not house.settled:
                house.pass_time(TICK_S)
                await asyncio.sleep(0.001)
        assert house.came == [(V2 + b"GET", Peer(TRUE, HERE, True))]
        found = socket.socket(fileno=os.dup(house.streams[0].fileno()))
        with found:
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


@pytest.mark.parametrize("handling", ["consume", "peek"])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("leaves", [False, True])
async def test_a_part_of_a_header_does_not_make_us_spin(
    handling: HeaderHandling,
    pair: Callable[[], tuple[socket.socket, socket.socket]],
    clean: ExitStack,
    *,
    leaves: bool,
) -> None:
    house = House(handling)
    clean.callback(house.close)
    client, server = pair()
    with client:
        house.arrive(server)
        client.sendall(V1[:30])
        await turns()
        (arrival,) = house.proxy_protocol.inside
        looks = 0
        kind: Any = type(arrival)
        original = kind._header

        def counted(self: object) -> object:
            nonlocal looks
            looks += 1
            return original(self)

        patch = pytest.MonkeyPatch()
        patch.setattr(kind, "_header", counted)
        clean.callback(patch.undo)
        if leaves:
            client.shutdown(socket.SHUT_WR)
        await turns(50)
        assert looks <= 1
        house.pass_time(TICK_S)
        assert len(house.away) == leaves
        house.pass_time(11)
    assert [fault for _, fault, _ in house.away] == [PROXY_HEADER]
    assert (house.inside, house.proxy_protocol.inside) == (0, set())


async def test_a_stranger_is_closed_and_told_of_before_a_byte_is_read(clean: ExitStack) -> None:
    house = House()
    clean.callback(house.close)
    client, server = tcp_pair()
    with client:
        client.sendall(V1)
        house.arrive(server, ("192.0.2.77", 1))
        assert house.away == [("192.0.2.77", PROXY_UNTRUSTED, "it is none of trusted_proxies")]
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert house.inside == 0


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02", SIGNATURE + b"\x31\x11\0\x0c", b"\0"]
)
async def test_what_is_no_header_is_closed(data: bytes, clean: ExitStack) -> None:
    house = House()
    clean.callback(house.close)
    client, server = tcp_pair()
    with client:
        house.arrive(server)
        client.sendall(data)
        await house.until(lambda: house.settled)
    assert [(away[0], away[1]) for away in house.away] == [("10.0.0.1", PROXY_HEADER)]


@pytest.mark.parametrize(
    ("said", "reset", "fault"),
    [
        (b"", False, None),
        (b"", True, None),
        (V1[:20], False, PROXY_HEADER),
        (V1[:20], True, CLIENT_GONE),
    ],
)
async def test_one_that_leaves_is_let_go(
    said: bytes, fault: Fault | None, clean: ExitStack, *, reset: bool
) -> None:
    house = House()
    clean.callback(house.close)
    client, server = tcp_pair()
    house.arrive(server)
    client.sendall(said)
    await turns()
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    await house.until(lambda: house.settled)
    assert [away[1] for away in house.away] == [fault]
    assert house.inside == 0


async def test_silence_has_an_end_and_a_shorter_one_when_we_stop(clean: ExitStack) -> None:
    house = House()
    clean.callback(house.close)
    first, server = tcp_pair()
    with first:
        house.arrive(server)
        house.pass_time(9)
        assert not house.settled
        house.pass_time(2)
        assert [away[1] for away in house.away] == [PROXY_HEADER]
    second, server = tcp_pair()
    with second:
        house.arrive(server)
        house.proxy_protocol.drain()
        house.pass_time(1.5)
        assert len(house.away) == 2


async def test_an_entrance_that_reads_nothing_only_asks_who_knocks(clean: ExitStack) -> None:
    house = House("ignore")
    clean.callback(house.close)
    for peer, size in ((PROXY, 1), (("192.0.2.1", 1), 1), ("", 2)):
        client, server = socket.socketpair()
        with client:
            client.sendall(V1)
            house.arrive(server, peer)
            assert len(house.came) == size
    assert [came[0] for came in house.came] == [V1, V1]
