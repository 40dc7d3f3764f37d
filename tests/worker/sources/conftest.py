"""Where a worker's connections come from: a socket that it is given, or a link."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(params=["tcp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    if request.param == "tcp":
        sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "socket"))
        sock.listen(512)
    with sock:
        yield sock


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield sock


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A link: the front's end and the worker's."""
    front, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with front, worker:
        front.setblocking(False)
        yield front, worker
