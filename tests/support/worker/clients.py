"""Clients of a worker, and the proxy's end of a link over which it gets connections."""

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock_worker.handoff import protocol

if TYPE_CHECKING:
    from tests.worker.conftest import Served

Start = Callable[..., "Served"]

DEADLINE_S = 30.0
DEMO = "penstock_worker.demo:app"
APPS = ("aio:app", "asg:app")
GET = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def connected(listener: socket.socket) -> socket.socket:
    client = socket.socket(listener.family)
    client.settimeout(DEADLINE_S)
    client.connect(listener.getsockname())
    return client


def answer(client: socket.socket) -> bytes:
    """The body of a response, read to its end."""
    with client:
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), received
    return body


def exchange(client: socket.socket, path: bytes = b"/") -> bytes:
    client.sendall(GET % path)
    return answer(client)


def asked(listener: socket.socket, path: bytes = b"/") -> socket.socket:
    client = connected(listener)
    client.sendall(GET % path)
    return client


def get(listener: socket.socket, path: bytes = b"/") -> bytes:
    return exchange(connected(listener), path)


class Link:
    """A link whose proxy is the test."""

    def __init__(self) -> None:
        self.proxy, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.proxy.setblocking(False)

    def client(self, kind: bytes = protocol.CLIENT) -> socket.socket:
        """A client whose connection was sent over the link."""
        mine, theirs = socket.socketpair()
        mine.settimeout(DEADLINE_S)
        with theirs:
            protocol.send(self.proxy, kind, [theirs.fileno()])
        return mine

    def reported(self, taken: int, ended: int) -> None:
        """Wait until the worker has reported exactly that."""
        totals = [0, 0]

        def is_complete() -> bool:
            report = protocol.read_reports(self.proxy)
            if report is not None:
                totals[0] += report.taken
                totals[1] += report.ended
            return totals == [taken, ended]

        until(is_complete)

    def close(self) -> None:
        self.proxy.close()
        self.worker.close()
