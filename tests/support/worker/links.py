"""Links for tests: pairs of sockets, and how one is filled."""

import socket
from collections.abc import Callable
from contextlib import suppress


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def fill(send_one: Callable[[], object]) -> None:
    """Send until the kernel takes no more."""
    with suppress(BlockingIOError):
        while True:
            send_one()
