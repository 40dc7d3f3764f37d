"""TCP_INFO shows whether a request may have been read, over real sockets."""

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.net.tcp_info import (
    CLOSED,
    UNKNOWN,
    acknowledged,
    is_unacknowledged,
    is_unread,
)
from penstock_proxy.net.transport import FirstReceiver, Transport
from penstock_worker.net.stream import Stream

FAMILIES = ["tcp", "unix"]


class Prober(FirstReceiver):
    """The proxy's end; asks the kernel while the connection is being lost."""

    def __init__(self) -> None:
        self.before = UNKNOWN
        self.unacknowledged = False
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
        unread = is_unread(self.transport, self.before, error)
        self.unacknowledged = is_unacknowledged(self.transport, len(b"POST"), error)
        self.ended.set_result((unread, type(error).__name__))


class WithoutSocket(Transport):
    """A transport that has no socket."""

    def borrow(self) -> None:
        """There is none."""


async def connected(family: str, folder: Path) -> tuple[Prober, socket.socket]:
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
    prober = Prober()
    reactor = Reactor(asyncio.get_running_loop())
    adopt(reactor, prober, Stream(ours.detach(), ours.family))
    prober.transport.write(b"GET")
    assert worker.recv(10) == b"GET"
    worker.send(b"ok")
    await prober.answered.wait()
    prober.before = acknowledged(prober.transport)
    return prober, worker


def closed_before(prober: Prober, worker: socket.socket) -> None:
    worker.close()
    prober.transport.write(b"POST")


def read_and_closed(prober: Prober, worker: socket.socket) -> None:
    prober.transport.write(b"POST")
    assert worker.recv(10) == b"POST"
    worker.close()


def half_read_and_closed(prober: Prober, worker: socket.socket) -> None:
    prober.transport.write(b"POST")
    assert worker.recv(2) == b"PO"
    worker.close()


def not_read_and_closed(prober: Prober, worker: socket.socket) -> None:
    prober.transport.write(b"POST")
    worker.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("happens", "certain"),
    [
        (closed_before, True),
        (read_and_closed, False),
        (half_read_and_closed, False),
        (not_read_and_closed, False),
    ],
)
async def test_only_what_came_after_the_end_is_certainly_unread(
    tmp_path: Path,
    family: str,
    happens: Callable[[Prober, socket.socket], None],
    *,
    certain: bool,
) -> None:
    prober, worker = await connected(family, tmp_path)
    happens(prober, worker)
    unread, error = await prober.ended
    assert unread == certain, error
    # The same without having asked before. A unix socket does not know.
    assert prober.unacknowledged == (certain and family == "tcp")


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_end_is_known_before_the_event_loop_reports_it(
    tmp_path: Path, family: str
) -> None:
    prober, worker = await connected(family, tmp_path)
    assert acknowledged(prober.transport) == prober.before
    worker.close()
    deadline = time.monotonic() + 10
    while acknowledged(prober.transport) != CLOSED:
        assert time.monotonic() < deadline
    await prober.ended


async def test_without_a_socket_nothing_is_known() -> None:
    transport = WithoutSocket()
    assert acknowledged(transport) == UNKNOWN
    assert not is_unread(transport, 5, None)
    assert not is_unread(transport, UNKNOWN, None)
    assert not is_unacknowledged(transport, 5, None)
