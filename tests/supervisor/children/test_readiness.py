"""A port that accepts is ready, another one is tried again, and a wrong port is found.

A program that inherited a socket is ready when it waits for it, by any system call.

Covers `kernel/procfs`.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from tests.support.descriptors import descriptors

from penstock_proxy.net.address import Address
from penstock_supervisor.children.readiness import (
    is_held_by_other,
    listening_addresses,
    retry_delays,
    until_it_accepts,
    until_it_waits_for_socket,
    waits_for_socket,
)


def closed_port() -> socket.socket:
    """Bound and not listening: a connect is refused, and no other process gets the port."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


async def test_a_port_that_accepts_is_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with asyncio.timeout(10):
            await until_it_accepts(Address("127.0.0.1", server.getsockname()[1]))
        with server.accept()[0] as asked:
            assert asked.recv(1) == b"", "it was asked, and no more"


async def test_a_port_that_opens_later_is_noticed() -> None:
    with closed_port() as sock:
        address = Address("127.0.0.1", sock.getsockname()[1])
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(until_it_accepts(address))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not asking.done()
            sock.listen()


async def test_waiting_can_be_cancelled_and_leaves_no_descriptor() -> None:
    before = descriptors()
    with closed_port() as sock:
        address = Address("127.0.0.1", sock.getsockname()[1])
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(until_it_accepts(address))
            await asyncio.sleep(0)
            asking.cancel()
    assert descriptors() == before


def test_delays_grow_from_50_ms_to_half_a_second() -> None:
    first = list(islice(retry_delays(), 20))
    assert first[0] == 0.05
    assert first == sorted(first)
    assert first[-1] == 0.5


def test_the_real_port_of_a_process_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert f"127.0.0.1:{server.getsockname()[1]}" in listening_addresses(os.getpid())


def test_an_ended_process_has_no_listening_port() -> None:
    assert listening_addresses(2**22 + 1) == ()


WAITS = {
    "accept": "s.accept()",
    "accept in a thread": "import threading; threading.Thread(target=s.accept).start()",
    "accept with a time limit": "s.settimeout(1000); s.accept()",
    "select": "import select; select.select([s], [], [])",
    "poll": "import select; p = select.poll(); p.register(s, 1); p.poll()",
    "epoll": "import select; p = select.epoll(); p.register(s, 1); p.poll()",
    "asyncio": """
import asyncio
async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), sock=s)
    await server.serve_forever()
asyncio.run(main())
""",
    "a child of a child": "import os, time\nif os.fork(): time.sleep(1000)\nelse: s.accept()",
}
IGNORED = {
    "sleeps": "import time; time.sleep(1000)",
    "closes it": "import time; s.close(); time.sleep(1000)",
    "listens elsewhere": """
import select
own = socket.create_server(("127.0.0.1", 0))
p = select.poll(); p.register(own); p.poll()
""",
    "waits for something else": """
import select
a, b = socket.socketpair()
p = select.epoll(); p.register(a, 1); p.poll()
""",
}


@contextmanager
def started(sock: socket.socket, argv: Sequence[str]) -> Iterator[int]:
    """A program that has the socket as its descriptor 3, in a session of its own."""

    def place() -> None:
        os.dup2(sock.fileno(), 3)

    process = subprocess.Popen(
        argv,
        preexec_fn=place,  # noqa: PLW1509 — a test has no other thread
        pass_fds=(3,),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", f"import socket; s = socket.socket(fileno=3)\n{code}"


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def in_call(pid: int) -> str:
    return Path(f"/proc/{pid}/syscall").read_text().split()[0]


async def assert_waits_for_socket(sock: socket.socket, argv: Sequence[str]) -> None:
    with started(sock, argv) as pid:
        async with asyncio.timeout(60):
            await until_it_waits_for_socket(pid, inode(sock))


async def waits_for_something(pid: int) -> None:
    """Until the program has started, and does what it does for ever."""
    async with asyncio.timeout(60):
        # clock_nanosleep, poll, epoll_wait, epoll_pwait: of x86-64, then of arm64.
        while in_call(pid) not in {"230", "7", "232", "281", "115", "73", "22"}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("code", WAITS.values(), ids=WAITS)
async def test_a_program_is_ready_however_it_waits_for_its_socket(
    listening: socket.socket, code: str
) -> None:
    await assert_waits_for_socket(listening, python(code))


@pytest.mark.needs("node")
async def test_a_node_program_is_ready_when_it_waits_for_its_socket(
    listening: socket.socket,
) -> None:
    code = 'require("net").createServer().listen({ fd: 3 })'
    await assert_waits_for_socket(listening, ("node", "-e", code))


@pytest.mark.parametrize("code", ["s.recvfrom(9)", WAITS["poll"], WAITS["epoll"]])
async def test_a_program_may_wait_for_datagrams_too(code: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        await assert_waits_for_socket(sock, python(code))


@pytest.mark.parametrize("code", IGNORED.values(), ids=IGNORED)
async def test_a_program_that_ignores_its_socket_is_not_ready(
    listening: socket.socket, code: str
) -> None:
    with started(listening, python(code)) as pid:
        await waits_for_something(pid)
        assert not waits_for_socket(pid, inode(listening))


async def test_another_program_that_waits_for_the_same_socket_does_not_count(
    listening: socket.socket,
) -> None:
    with (
        started(listening, python(WAITS["epoll"])) as other,
        started(listening, python(IGNORED["sleeps"])) as pid,
    ):
        async with asyncio.timeout(60):
            await until_it_waits_for_socket(other, inode(listening))
        await waits_for_something(pid)
        assert not waits_for_socket(pid, inode(listening))


async def test_an_inherited_socket_does_not_count_as_a_port_that_the_program_opened(
    listening: socket.socket,
) -> None:
    with started(listening, python(IGNORED["listens elsewhere"])) as pid:
        await waits_for_something(pid)
        port = listening.getsockname()[1]
        everything = listening_addresses(pid)
        assert f"127.0.0.1:{port}" in everything
        (elsewhere,) = listening_addresses(pid, inode(listening))
        assert {elsewhere, f"127.0.0.1:{port}"} == set(everything)


def test_an_ended_process_waits_for_no_socket() -> None:
    assert not waits_for_socket(2**22 + 1, 1)


def test_the_port_of_an_older_stranger_does_not_make_a_program_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        address = Address("127.0.0.1", ours.getsockname()[1])
        # A moment later, as /proc tells it: in ticks.
        child = subprocess.Popen(
            [sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True
        )
        try:
            assert is_held_by_other(address, child.pid)
            with pytest.raises(TimeoutError):
                asyncio.run(asyncio.wait_for(until_it_accepts(address, child.pid), 0.5))
            # Our own port is no stranger's to ourselves, and neither to a parent of ours.
            assert not is_held_by_other(address, os.getpid())
            assert not is_held_by_other(address, os.getppid())
        finally:
            child.kill()
            child.wait()


def test_a_port_that_nobody_has_is_not_held_by_another() -> None:
    assert not is_held_by_other(Address("127.0.0.1", 1), os.getpid())
