"""A client that still sends when a worker closes its connection reads its response first.

Covers what both servers do about it, too: `servers/aiohttp_server`, `servers/asgi_limits`.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import uvloop
from aiohttp import web
from tests.support.descriptors import descriptors

from penstock_worker.net import lingering_close
from penstock_worker.net.lingering_close import LingeringClients, is_complete
from penstock_worker.net.stream import Stream, adopt
from penstock_worker.servers.aiohttp_server import AiohttpServer
from penstock_worker.servers.asgi_server import AsgiServer

SIZE = 32 << 20
PIECE = b"x" * (64 << 10)
RESET = struct.pack("ii", 1, 0)


class Closing(asyncio.Protocol):
    """Answers the first bytes and closes."""

    transport: asyncio.Transport

    def __init__(self, clients: LingeringClients, *, expected: bool = False) -> None:
        self._clients = clients
        self._expected = expected
        self.lost = False
        self.resets = False

    def is_lost(self) -> bool:
        return self.lost

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        # Nothing more is read, so that the rest is in the kernel when it closes.
        self.transport.pause_reading()
        self.transport.write(b"no")
        if self.resets:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._clients.take_over(self.transport, expected=self._expected)
        self.lost = True


def connected() -> tuple[socket.socket, Stream]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        fd, _ = listener._accept()  # type: ignore[attr-defined]
    client.settimeout(10)
    return client, Stream(fd, int(socket.AF_INET))


async def until(found: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not found():  # noqa: ASYNC110 -- nothing sets an event for us
            await asyncio.sleep(0.005)


def run(main: Any) -> None:
    # The first loop of a kind opens some that stay.
    uvloop.new_event_loop().close()
    before = descriptors()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
    assert descriptors() == before


def upload(client: socket.socket) -> bytes:
    """Send all of a large request, and only then read."""
    with client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for _ in range(SIZE // len(PIECE)):
            client.sendall(PIECE)
        answer = b""
        while data := client.recv(1 << 16):
            answer += data
        return answer


def test_what_the_client_still_sends_is_read_until_it_closes() -> None:
    async def main() -> None:
        running = asyncio.get_running_loop()
        clients = LingeringClients(running)
        client, stream = connected()
        adopt(running, Closing(clients, expected=True), stream)
        assert await asyncio.to_thread(upload, client) == b"no"
        await until(lambda: not clients)

    run(main())


@pytest.mark.parametrize("how", ["quiet", "closed", "reset"])
def test_a_connection_is_closed_at_once_if_nothing_comes(how: str) -> None:
    async def main() -> None:
        running = asyncio.get_running_loop()
        clients = LingeringClients(running)
        client, stream = connected()
        protocol = Closing(clients)
        protocol.resets = how == "reset"
        client.sendall(b"a" if how == "quiet" else b"a" * (1 << 20))
        if how == "closed":
            client.shutdown(socket.SHUT_WR)
        adopt(running, protocol, stream)
        await until(protocol.is_lost)
        if how == "quiet":
            assert not clients
        with client:
            try:
                ended = b"".join(iter(lambda: client.recv(100), b""))
            except ConnectionResetError:
                ended = b""
            assert ended in (b"no", b"")
        await until(lambda: not clients)

    run(main())


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering_close, "IDLE_S", 0.05)
    monkeypatch.setattr(lingering_close, "TOTAL_S", 0.3)

    async def main() -> None:
        running = asyncio.get_running_loop()
        clients = LingeringClients(running)
        silent, stream = connected()
        silent.sendall(b"a")
        adopt(running, Closing(clients, expected=True), stream)
        await until(lambda: clients)
        await until(lambda: not clients)
        silent.close()
        talking, stream = connected()
        talking.setblocking(False)
        talking.send(b"a")
        adopt(running, Closing(clients, expected=True), stream)
        await until(lambda: clients)
        async with asyncio.timeout(10):
            while clients:
                talking.send(b"x")
                await asyncio.sleep(0.01)
        talking.settimeout(10)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            talking.sendall(b"x" * SIZE)
        talking.close()

    run(main())


def test_no_more_than_so_many_linger() -> None:
    async def main() -> None:
        running = asyncio.get_running_loop()
        clients = LingeringClients(running, max_open=2)
        ends = []
        for count in range(1, 5):
            client, stream = connected()
            ends.append(client)
            client.sendall(b"a")
            protocol = Closing(clients, expected=True)
            adopt(running, protocol, stream)
            await until(protocol.is_lost)
            assert len(clients) == min(count, 2)
        clients.close()
        assert not clients
        for client in ends:
            assert client.recv(10) == b"no"
            client.close()

    run(main())


def test_a_read_leaves_the_rest_for_the_next_turn() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                theirs.send(PIECE)
        assert not is_complete(ours)
        theirs.close()
        for _ in range(100):
            if is_complete(ours):
                break
        assert is_complete(ours)


async def refuses(scope: Any, receive: Any, send: Any) -> None:
    """Answers before it has read anything."""
    if scope["type"] != "http":
        return
    head = {"type": "http.response.start", "status": 413}
    await send({**head, "headers": [(b"content-length", b"2"), (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b"no"})


async def refuse(_: web.Request) -> web.Response:
    response = web.Response(status=413, text="no")
    response.force_close()
    return response


def asgi() -> AsgiServer:
    return AsgiServer(refuses, None)


def aiohttp() -> AiohttpServer:
    app = web.Application(client_max_size=1 << 10)
    app.router.add_post("/", refuse)
    return AiohttpServer(app, None)


@pytest.mark.parametrize("make", [asgi, aiohttp])
def test_an_upload_that_a_program_refuses_reads_why(make: Callable[[], Any]) -> None:
    async def main() -> None:
        running = asyncio.get_running_loop()
        server = make()
        await server.start()
        if isinstance(server, AiohttpServer):
            # Its own time for that, which is ten seconds, is over.
            server._server._kwargs["lingering_time"] = 0.0
        for _ in range(3):
            client, stream = connected()
            adopt(running, server.protocol(probe=False), stream)
            answer = await asyncio.to_thread(upload, client)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert answer.endswith(b"no")
        await server.clean_up()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
