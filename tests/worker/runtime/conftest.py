"""A supervisor's end for programs under test, and a socket to send them."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.worker.supervisor import SupervisorEnd


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[SupervisorEnd]:
    loop = asyncio.new_event_loop()
    made = SupervisorEnd(loop, tmp_path)
    yield made
    made.end()
    loop.close()


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        yield made
