"""A PROXY header is read before the program gets the connection, and gives it the true addresses.

Connections without a valid header, or from untrusted peers, are closed.

Covers `net/trusted_proxies` and `net/stream`.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_worker.contract import ACCEPT_PROXY
from penstock_worker.listener.proxy_header import HEADER, UNTRUSTED, ProxyHeaders
from penstock_worker.net.proxy_protocol import build, build_local
from penstock_worker.net.stream import Stream, adopt
from penstock_worker.net.trusted_proxies import AcceptProxy, format_accept_proxy, parse_accept_proxy
from penstock_worker.telemetry.counters import RequestCounters

WAIT_S = 10.0
SOURCE, DESTINATION = ("203.0.113.9", 4321), ("192.0.2.1", 443)
SOURCE6, DESTINATION6 = ("2001:db8::9", 4321), ("2001:db8::1", 443)


class Program(asyncio.Protocol):
    """Echoes what it receives, and keeps the addresses of its connection."""

    def __init__(self) -> None:
        self.received = b""
        self.addresses: tuple[Any, ...] = ()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        sock = transport.get_extra_info("socket")
        self.addresses = (
            transport.get_extra_info("peername"), transport.get_extra_info("sockname"),
            sock.getpeername(), sock.getsockname(),
        )  # fmt: skip
        assert sock.fileno() >= 0
        assert transport.get_extra_info("nothing", 7) == 7

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.transport.write(data)


class Harness:
    """The header reader as a worker sets it up, without a worker."""

    def __init__(self, seconds: float = WAIT_S, trusted: tuple[str, ...] = ("unix",)) -> None:
        self.loop = asyncio.get_running_loop()
        self.counters = RequestCounters()
        self.made: list[Program] = []
        self.headers = ProxyHeaders(self.loop, AcceptProxy(seconds, trusted), self.counters)
        self.serve = self.headers.wrap(self._program)

    def _program(self, probe: bool) -> asyncio.Protocol:
        self.made.append(Program())
        return self.made[-1]

    def connect(self, *, probe: bool = False) -> socket.socket:
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        theirs.setblocking(False)
        adopt(self.loop, self.serve(probe), Stream(theirs.detach(), int(socket.AF_UNIX)))
        return mine

    async def assert_closed(self, sock: socket.socket) -> None:
        # If bytes were left unread, the kernel resets the connection instead.
        with suppress(ConnectionResetError):
            async with asyncio.timeout(WAIT_S):
                assert await self.loop.sock_recv(sock, 1) == b""


def run(main: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@settings(max_examples=60)
@given(
    st.sampled_from(
        (build(1, SOURCE, DESTINATION), build(2, SOURCE6, DESTINATION6), build_local(), build(1))
    ),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_a_header_is_read_however_its_bytes_are_split(header: bytes, cuts: list[int]) -> None:
    whole = header + b"hello"
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})

    async def main() -> None:
        harness = Harness()
        with harness.connect() as client:
            for start, end in pairwise(places):
                await harness.loop.sock_sendall(client, whole[start:end])
                for _ in range(3):
                    await asyncio.sleep(0)
            async with asyncio.timeout(WAIT_S):
                back = b""
                while len(back) < 5:
                    back += await harness.loop.sock_recv(client, 10)
        (program,) = harness.made
        assert (back, program.received) == (b"hello", b"hello")
        if header == build(1, SOURCE, DESTINATION):
            assert program.addresses == (SOURCE, DESTINATION, SOURCE, DESTINATION)
        elif header == build(2, SOURCE6, DESTINATION6):
            source, destination = (*SOURCE6, 0, 0), (*DESTINATION6, 0, 0)
            assert program.addresses == (source, destination, source, destination)
        else:
            assert not any(program.addresses)
        assert not harness.headers.open

    run(main)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", build(2, SOURCE, DESTINATION)[:20], b"PROXY x\r\n"]
)
def test_a_client_without_a_valid_header_never_reaches_the_program(data: bytes) -> None:
    async def main() -> None:
        harness = Harness()
        with harness.connect() as client:
            await harness.loop.sock_sendall(client, data)
            client.shutdown(socket.SHUT_WR)
            await harness.assert_closed(client)
        assert harness.made == []
        assert harness.counters.rejected == {HEADER: 1, UNTRUSTED: 0}

    run(main)


def test_untrusted_and_silent_peers_are_closed_and_counted() -> None:
    async def main() -> None:
        harness = Harness(trusted=("10.0.0.0/8",))
        with harness.connect() as client:
            await harness.loop.sock_sendall(client, build(1, SOURCE, DESTINATION))
            await harness.assert_closed(client)
        assert harness.counters.rejected == {HEADER: 0, UNTRUSTED: 1}
        quick = Harness(seconds=0.01)
        with quick.connect() as client:
            await quick.assert_closed(client)
        assert quick.counters.rejected == {HEADER: 1, UNTRUSTED: 0}
        assert harness.made == quick.made == []

    run(main)


def test_a_client_that_leaves_without_a_byte_is_not_counted_as_rejected() -> None:
    async def main() -> None:
        harness = Harness()
        harness.connect().close()
        async with asyncio.timeout(WAIT_S):
            while not harness.headers.open:  # noqa: ASYNC110 -- nothing sets an event for us
                await asyncio.sleep(0)
            while harness.headers.open:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert not any(harness.counters.rejected.values())

    run(main)


def test_a_health_check_needs_no_header() -> None:
    async def main() -> None:
        harness = Harness()
        with harness.connect(probe=True) as client:
            await harness.loop.sock_sendall(client, b"GET")
            async with asyncio.timeout(WAIT_S):
                assert await harness.loop.sock_recv(client, 10) == b"GET"

    run(main)


def test_connections_without_a_header_yet_are_closed_with_the_worker() -> None:
    async def main() -> None:
        harness = Harness()
        with harness.connect() as client:
            async with asyncio.timeout(WAIT_S):
                while not harness.headers.open:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            harness.headers.close()
            await harness.assert_closed(client)

    run(main)


def test_untrusted_peers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        harness = Harness(trusted=())
        with caplog.at_level(logging.WARNING):
            for _ in range(50):
                with harness.connect() as client:
                    await harness.assert_closed(client)
        assert harness.counters.rejected[UNTRUSTED] == 50

    run(main)
    assert 1 < len(caplog.records) <= 10


def test_accept_proxy_settings_are_parsed_as_they_were_formatted() -> None:
    accept_proxy = AcceptProxy(2.5, ("10.0.0.0/8", "unix"))
    assert parse_accept_proxy({ACCEPT_PROXY: format_accept_proxy(accept_proxy)}) == accept_proxy
    assert parse_accept_proxy({}) is None
    for wrong in ("", "[]", "[1]", "[null, []]", "x", "{}"):
        with pytest.raises(ValueError, match="says nothing"):
            parse_accept_proxy({ACCEPT_PROXY: wrong})
