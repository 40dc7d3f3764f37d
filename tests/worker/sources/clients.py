"""Clients of a worker, and both ends of what it gets its connections from."""

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock_worker import handoff

if TYPE_CHECKING:
    from tests.worker.conftest import Serve, Served


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
    """All that comes; the body of a response."""
    with client:
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), received
    return body


def asked(listener: socket.socket, path: bytes = b"/") -> socket.socket:
    client = connected(listener)
    client.sendall(GET % path)
    return client


def get(listener: socket.socket, path: bytes = b"/") -> bytes:
    return answer(asked(listener, path))


def passed_on(front: socket.socket, kind: bytes = handoff.CLIENT) -> socket.socket:
    """A client whose connection was sent over the link."""
    mine, theirs = socket.socketpair()
    mine.settimeout(DEADLINE_S)
    with theirs:
        handoff.send(front, kind, [theirs.fileno()])
    return mine


def shared(serve: "Serve", spec: str, listener: socket.socket, slot: int = 0) -> "Served":
    return serve(
        spec,
        passed=listener,
        PENSTOCK_SCHEME="shared",
        PENSTOCK_SERVICE="web",
        PENSTOCK_SLOT=str(slot),
    ).ready()


def linked(serve: "Serve", spec: str, worker: socket.socket) -> "Served":
    return serve(
        spec, link=worker, PENSTOCK_SCHEME="handoff", PENSTOCK_SERVICE="web", PENSTOCK_SLOT="0"
    ).ready()
