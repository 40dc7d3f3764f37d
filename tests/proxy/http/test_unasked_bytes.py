"""What a worker sends unasked never answers a request: its connection is not used again.

With the real reactor and real sockets; `net/test_socket_transport` proves the order of reads.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.proxy.conftest import Harness, Wire
from tests.support.proxy.running_proxy import Client, RunningProxy, running_proxy, until

from penstock_proxy.config import Retries, Target

WAIT_S = 5.0
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
PUT_CHUNKS = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
GARBAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


class Upstream:
    """A worker whose every byte the test sends."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []

    async def accept(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        sock, _ = await asyncio.wait_for(loop.sock_accept(self.listener), WAIT_S)
        sock.setblocking(False)
        self.accepted.append(sock)
        return sock

    async def serve(self, client: Client, request: bytes) -> socket.socket:
        """Answer a request over a new connection, which is idle then."""
        client.send(request)
        loop = asyncio.get_running_loop()
        sock = await self.accept()
        # The connection of a health check asks for nothing.
        while not await asyncio.wait_for(loop.sock_recv(sock, 1 << 16), WAIT_S):
            sock = await self.accept()
        sock.send(OK)
        assert await client.answer() == b"ok"
        return sock

    def close(self) -> None:
        for sock in (self.listener, *self.accepted):
            sock.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[RunningProxy, Upstream]]:
    upstream = Upstream()
    try:
        async with running_proxy() as run:
            target = Target(
                member=1, slot=0, address=f"127.0.0.1:{upstream.port}", joined=True, up=True
            )
            await run.start(run.service("web", target))
            yield run, upstream
    finally:
        upstream.close()


@pytest.mark.parametrize("unasked", [TIMEOUT, GARBAGE, b""], ids=["408", "200", "end"])
async def test_what_comes_in_the_same_turn_as_a_request_does_not_answer_it(unasked: bytes) -> None:
    async with proxied() as (run, upstream):
        client = await run.client("web")
        idle = await upstream.serve(client, GET)
        for request in (POST, PUT_CHUNKS, GET):
            for request_first in (True, False):
                # The proxy's loop is this one: it sees both in one poll, in this order.
                if request_first:
                    client.send(request)
                if unasked:
                    idle.send(unasked)
                else:
                    idle.shutdown(socket.SHUT_WR)
                idle = await upstream.serve(client, b"" if request_first else request)
                assert client.head.startswith(b"HTTP/1.1 200 ")
        counters = run.proxy.services.by_name["web"].counters
        assert (counters.retries, counters.stale, sum(counters.errors.values())) == (0, 0, 0)


async def test_what_comes_while_it_is_idle_ends_the_connection() -> None:
    async with proxied() as (run, upstream):
        client = await run.client("web")
        idle = await upstream.serve(client, GET)
        idle.send(TIMEOUT)
        counters = run.proxy.services.by_name["web"].counters
        await until(lambda: counters.upstreams == 0)
        # Its client has not heard of it.
        assert (counters.active, counters.stale, sum(counters.errors.values())) == (1, 0, 0)
        await upstream.serve(client, GET)
        assert client.head.startswith(b"HTTP/1.1 200 ")


def test_a_queued_request_is_not_sent_behind_bytes_that_wait(harness: Harness) -> None:
    harness.build(queue=2.0, per_worker=1)
    first, second = harness.client(), harness.client()
    first.send(GET)
    second.send(GET)
    worker = harness.worker
    worker.arrive(b"")
    worker.deliver_in_turn(OK)
    worker.arrive(TIMEOUT)
    harness.loop.run()
    assert first.received() == OK
    assert len(harness.network.wires) == 2
    harness.worker.send(OK)
    assert second.received() == OK


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (GET, OK + b"x"),
        (GET, OK + OK),
        (GET, OK[:-2] + b"\r\n" + OK),
        (b"HEAD" + GET[3:], OK),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n" + OK),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok"),
        (GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + OK),
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_a_connection_with_bytes_behind_its_response_is_not_used_again(
    harness: Harness, request_: bytes, answer: bytes, *, split: bool
) -> None:
    client = harness.client()
    client.send(request_)
    head, end, body = answer.partition(b"\r\n\r\n")
    if split:
        harness.worker.deliver_in_turn(head + end)
        harness.worker.send(body)
    else:
        harness.worker.send(answer)
    client.received()
    harness.loop.run()
    assert harness.worker.lost
    client.send(GET)
    assert len(harness.network.wires) == 2
    harness.worker.send(OK)
    assert client.received() == OK


def served_once(harness: Harness) -> Wire:
    client = harness.client()
    client.send(GET)
    harness.worker.send(OK)
    assert client.received() == OK
    return client


@pytest.mark.parametrize("split", [False, True])
def test_a_408_that_crosses_a_request_is_not_its_answer(harness: Harness, *, split: bool) -> None:
    client = served_once(harness)
    client.send(GET)
    at = 20 if split else len(TIMEOUT)
    idle = harness.worker
    idle.send(TIMEOUT[:at])
    if split:
        idle.send(TIMEOUT[at:])
    assert idle.lost
    assert len(harness.network.wires) == 2
    harness.worker.send(OK)
    assert client.received() == OK
    counters = harness.service.counters
    assert counters.stale == 1
    assert harness.service.pool.members[0].total_failures == 0


def test_a_408_on_a_new_connection_is_an_answer(harness: Harness) -> None:
    client = served_once(harness)
    client.send(GET)
    harness.worker.send(TIMEOUT)
    harness.worker.send(TIMEOUT)
    assert client.received().startswith(b"HTTP/1.1 408 ")
    assert len(harness.network.wires) == 2


@pytest.mark.parametrize(
    ("request_", "answer", "on"),
    [
        (POST, TIMEOUT, ("connect", "reset")),
        (GET, TIMEOUT.replace(b"Connection: close\r\n", b""), ("connect", "reset")),
        (GET, TIMEOUT, ("connect",)),
    ],
    ids=["not idempotent", "kept", "not wanted"],
)
def test_a_408_that_cannot_be_a_mistake_or_be_repaired_is_passed_on(
    harness: Harness, request_: bytes, answer: bytes, on: Any
) -> None:
    harness.build(retries=Retries(on=on))
    client = served_once(harness)
    client.send(request_)
    harness.worker.send(answer)
    assert client.received().startswith(b"HTTP/1.1 408 ")
    assert len(harness.network.wires) == 1
