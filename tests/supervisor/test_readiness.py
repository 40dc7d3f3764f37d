"""A port that accepts is ready, one that does not is asked again, and a wrong one is found."""

import asyncio
import os
import socket
from itertools import islice
from pathlib import Path

from penstock_proxy.config import Address
from penstock_supervisor.readiness import until_it_answers, waits, where_it_listens


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def closed_port() -> socket.socket:
    """Bound and not listening: a connect is refused, and nobody else gets the number."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


async def test_a_port_that_accepts_is_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with asyncio.timeout(10):
            await until_it_answers(Address("127.0.0.1", server.getsockname()[1]))


async def test_a_port_that_opens_later_is_noticed() -> None:
    with closed_port() as sock:
        address = Address("127.0.0.1", sock.getsockname()[1])
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(until_it_answers(address))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not asking.done()
            sock.listen()


async def test_asking_can_be_ended_and_leaves_nothing_open() -> None:
    before = descriptors()
    with closed_port() as sock:
        address = Address("127.0.0.1", sock.getsockname()[1])
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(until_it_answers(address))
            await asyncio.sleep(0)
            asking.cancel()
    assert descriptors() == before


def test_waits_grow_from_50_ms_to_half_a_second() -> None:
    first = list(islice(waits(), 20))
    assert first[0] == 0.05
    assert first == sorted(first)
    assert first[-1] == 0.5


def test_the_real_port_of_a_process_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert f"127.0.0.1:{server.getsockname()[1]}" in where_it_listens(os.getpid())


def test_a_process_that_is_gone_listens_nowhere() -> None:
    assert where_it_listens(2**22 + 1) == ()
