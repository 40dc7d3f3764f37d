"""Listening sockets and links for workers, and workers that serve from them."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.worker.clients import Link, Start

if TYPE_CHECKING:
    from tests.worker.conftest import Served


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
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.close()


@pytest.fixture
def shared(serve: Start) -> Start:
    """Start a worker that accepts from a socket that others may share; it serves already."""

    def start(spec: str, listener: socket.socket, slot: int = 0, **settings: Any) -> "Served":
        settings = {"PENSTOCK_SERVICE": "web", "PENSTOCK_SLOT": str(slot), **settings}
        return serve(spec, passed=listener, PENSTOCK_SCHEME="shared", **settings).ready()

    return start


@pytest.fixture
def linked(serve: Start, link: Link) -> Start:
    """Start a worker that gets its connections over `link`; it serves already."""

    def start(spec: str) -> "Served":
        identity = {"PENSTOCK_SERVICE": "web", "PENSTOCK_SLOT": "0"}
        return serve(spec, link=link.worker, PENSTOCK_SCHEME="handoff", **identity).ready()

    return start
