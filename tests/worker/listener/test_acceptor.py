"""An acceptor takes few connections at a wakeup, all of them at drain, and refuses none too early.

A connection that waits longer than the time limit, for room or for a descriptor, gets 503.

Covers `net/lingering_close`.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.support.descriptors import no_descriptor_left

from penstock_worker.listener.acceptor import ACCEPTS_PER_WAKEUP, Acceptor

QUEUED = 7


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


class Deliveries(list[int]):
    """Takes descriptors and closes them."""

    def __call__(self, fd: int, family: int) -> None:
        assert family == socket.AF_INET
        os.close(fd)
        self.append(fd)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


@contextmanager
def clients(listener: socket.socket, count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        yield


async def read_all(client: socket.socket) -> bytes:
    """All that a non-blocking client receives, up to the end."""
    received = b""
    async with asyncio.timeout(30):
        while piece := await asyncio.get_running_loop().sock_recv(client, 4096):
            received += piece
    return received


async def test_few_connections_of_a_burst_are_accepted_at_a_wakeup(listener: socket.socket) -> None:
    taken = Deliveries()
    acceptor = Acceptor(asyncio.get_running_loop(), listener, taken)
    with clients(listener, QUEUED):
        acceptor.start()
        steps = []
        async with asyncio.timeout(30):
            while len(taken) < QUEUED:
                before = len(taken)
                await asyncio.sleep(0)
                steps.append(len(taken) - before)
    acceptor.close()
    assert max(steps) == ACCEPTS_PER_WAKEUP


async def test_drain_accepts_all_that_wait_and_closes(listener: socket.socket) -> None:
    taken = Deliveries()
    acceptor = Acceptor(asyncio.get_running_loop(), listener, taken)
    with clients(listener, QUEUED):
        acceptor.drain(100)
    assert (len(taken), acceptor.closed, listener.fileno()) == (QUEUED, True, -1)
    acceptor.drain(100)
    acceptor.close()


async def test_drain_accepts_no_more_than_its_bound(listener: socket.socket) -> None:
    taken = Deliveries()
    acceptor = Acceptor(asyncio.get_running_loop(), listener, taken)
    with clients(listener, QUEUED):
        acceptor.drain(3)
    assert len(taken) == 3


async def test_without_free_descriptors_accepting_pauses_and_resumes(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    taken = Deliveries()
    acceptor = Acceptor(asyncio.get_running_loop(), listener, taken)
    acceptor.start()
    with clients(listener, QUEUED):
        with no_descriptor_left():
            await until(lambda: bool(caplog.records))
            assert not taken
        await until(lambda: len(taken) == QUEUED)
    acceptor.close()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"cannot accept: {os.strerror(errno.EMFILE)}; trying again until it can"
    )


async def test_at_the_limit_clients_wait_until_there_is_room(listener: socket.socket) -> None:
    taken = Deliveries()
    loop = asyncio.get_running_loop()
    room = 3
    acceptor = Acceptor(loop, listener, taken, 60.0, lambda: len(taken) < room)
    acceptor.start()
    with clients(listener, QUEUED):
        await until(lambda: len(taken) == room)
        for _ in range(QUEUED):
            await asyncio.sleep(0)
        assert len(taken) == room
        room = QUEUED
        acceptor.resume()
        await until(lambda: len(taken) == QUEUED)
    acceptor.close()


async def test_a_client_that_waits_too_long_at_the_limit_gets_503(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    acceptor = Acceptor(loop, listener, Deliveries(), 0.2, lambda: False)
    with socket.create_connection(listener.getsockname()) as client:
        client.setblocking(False)
        acceptor.start()
        received = await read_all(client)
    assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert received.endswith(b"\r\n\r\ntoo many connections\n")
    acceptor.close()


async def test_a_client_that_waits_too_long_for_a_descriptor_gets_503(
    listener: socket.socket,
) -> None:
    taken = Deliveries()
    loop = asyncio.get_running_loop()
    acceptor = Acceptor(loop, listener, taken, 0.2)
    with socket.create_connection(listener.getsockname()) as client:
        client.setblocking(False)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with no_descriptor_left():
            acceptor.start()
            received = await read_all(client)
    assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert received.endswith(b"\r\n\r\nout of descriptors\n")
    with clients(listener, 2):
        await until(lambda: len(taken) == 2)
    acceptor.close()


async def test_an_acceptor_closed_while_it_pauses_stays_closed(listener: socket.socket) -> None:
    acceptor = Acceptor(asyncio.get_running_loop(), listener, Deliveries())
    with clients(listener, 1), no_descriptor_left():
        acceptor.drain(1)
    assert acceptor.closed
    acceptor.start()
    assert listener.fileno() == -1


async def test_a_listening_socket_that_was_shut_down_is_closed(listener: socket.socket) -> None:
    acceptor = Acceptor(asyncio.get_running_loop(), listener, Deliveries())
    acceptor.start()
    listener.shutdown(socket.SHUT_RDWR)
    await until(lambda: acceptor.closed)
    assert listener.fileno() == -1
