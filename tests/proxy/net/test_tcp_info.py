"""What the kernel says of a connection tells whether a request was read: over real sockets."""

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.net.tcp_info import ENDED, UNKNOWN, acknowledged, untaken
from penstock_proxy.net.transport import Transport
from penstock_worker.net.stream import Stream

FAMILIES = ["tcp", "unix"]


class Asker:
    """The proxy's end: notes how it ended, while that can still be asked."""

    def __init__(self) -> None:
        self.before = UNKNOWN
        self.answered = asyncio.Event()
        self.ended: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.answered.set()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, error: Exception | None) -> None:
        verdict = untaken(self.transport, self.before, error)
        self.ended.set_result((verdict, type(error).__name__))


class Bare(Transport):
    """It has no socket."""

    def borrow(self) -> None:
        """There is none."""


async def connected(family: str, folder: Path) -> tuple[Asker, socket.socket]:
    """A connection that has carried a request and its answer already, and its other end."""
    if family == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            worker, _ = listener.accept()
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
            listener.listen()
            ours = socket.socket(socket.AF_UNIX)
            ours.connect(str(folder / "socket"))
            worker, _ = listener.accept()
    asker = Asker()
    reactor = Reactor(asyncio.get_running_loop())
    adopt(reactor, asker, Stream(ours.detach(), ours.family))
    asker.transport.write(b"GET")
    assert worker.recv(10) == b"GET"
    worker.send(b"ok")
    await asker.answered.wait()
    asker.before = acknowledged(asker.transport)
    return asker, worker


def closed_before(asker: Asker, worker: socket.socket) -> None:
    worker.close()
    asker.transport.write(b"POST")


def read_and_closed(asker: Asker, worker: socket.socket) -> None:
    asker.transport.write(b"POST")
    assert worker.recv(10) == b"POST"
    worker.close()


def half_read_and_closed(asker: Asker, worker: socket.socket) -> None:
    asker.transport.write(b"POST")
    assert worker.recv(2) == b"PO"
    worker.close()


def not_read_and_closed(asker: Asker, worker: socket.socket) -> None:
    asker.transport.write(b"POST")
    worker.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("happens", "is_sure"),
    [
        (closed_before, True),
        (read_and_closed, False),
        (half_read_and_closed, False),
        (not_read_and_closed, False),
    ],
)
async def test_only_what_came_after_the_end_is_surely_not_read(
    tmp_path: Path,
    family: str,
    happens: Callable[[Asker, socket.socket], None],
    *,
    is_sure: bool,
) -> None:
    asker, worker = await connected(family, tmp_path)
    happens(asker, worker)
    verdict, error = await asker.ended
    assert verdict == is_sure, error


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_end_is_known_before_the_event_loop_hears_of_it(
    tmp_path: Path, family: str
) -> None:
    asker, worker = await connected(family, tmp_path)
    assert acknowledged(asker.transport) == asker.before
    worker.close()
    deadline = time.monotonic() + 10
    while acknowledged(asker.transport) != ENDED:
        assert time.monotonic() < deadline
    await asker.ended


async def test_without_a_socket_nothing_is_known() -> None:
    transport = Bare()
    assert acknowledged(transport) == UNKNOWN
    assert not untaken(transport, 5, None)
    assert not untaken(transport, UNKNOWN, None)
