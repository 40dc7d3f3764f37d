"""Both ends of a channel for tests: one that records what it gets, and one that is a bare socket.

Also the sockets that are sent over it.
"""

import array
import asyncio
import json
import os
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock_worker.channel.channel import Channel
from penstock_worker.channel.framing import HANDLE

DEADLINE_S = 20.0
ENVELOPE = {"cmd": HANDLE, "type": "net.Socket", "msg": "take it"}


class Peer:
    """A channel whose callbacks record what they get. `close` closes the handles received."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop = loop
        self.messages: list[Any] = []
        self.handles: list[socket.socket] = []
        self.outcomes: list[tuple[int, bool]] = []
        self.disconnects = 0
        self.on_message: Callable[[Any], None] = self.messages.append
        self.channel = Channel(loop, sock, self._receive, self._on_disconnect)

    def _receive(self, message: Any, handle: socket.socket | None) -> None:
        self.on_message(message)
        if handle is not None:
            self.handles.append(handle)

    def _on_disconnect(self) -> None:
        self.disconnects += 1

    def notes(self, number: int) -> Callable[[bool], None]:
        return lambda taken: self.outcomes.append((number, taken))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = self.loop.time() + DEADLINE_S
        while not condition():
            assert self.loop.time() < deadline
            self.loop.run_until_complete(asyncio.sleep(0.001))

    def close(self) -> None:
        self.channel.close()
        for handle in self.handles:
            handle.close()
        self.handles.clear()


def open_targets() -> list[str]:
    """What the open descriptors refer to, so that a leaked one can be recognized."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue  # The descriptor of the listing itself.
    return sorted(found)


def listening(stack: ExitStack) -> socket.socket:
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


def tcp_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    listener = listening(stack)
    client = stack.enter_context(socket.create_connection(listener.getsockname()))
    served = stack.enter_context(listener.accept()[0])
    client.settimeout(DEADLINE_S)
    return served, client


def unix_pair(stack: ExitStack, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, ...]:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    other.settimeout(DEADLINE_S)
    return stack.enter_context(one), stack.enter_context(other)


def bound_udp(stack: ExitStack) -> socket.socket:
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind(("127.0.0.1", 0))
    return made


def accepted(handle: socket.socket) -> socket.socket:
    """The next connection of a non-blocking listener."""
    handle.settimeout(DEADLINE_S)
    return handle.accept()[0]


def rights(*fds: int) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]


def line(message: Any) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def read_line(peer: Peer, sock: socket.socket) -> tuple[Any, int]:
    """The next line, and how many descriptors came with it. The descriptors are closed."""
    data, count = bytearray(), 0

    def came() -> bool:
        nonlocal count
        try:
            piece, fds, _, _ = socket.recv_fds(sock, 1, 4)
        except BlockingIOError:
            return False
        assert piece, "the end, and no line"
        data.extend(piece)
        count += len(fds)
        for fd in fds:
            os.close(fd)
        return piece == b"\n"

    while not came():
        if sock not in select.select([sock], [], [], 0)[0]:
            peer.until(lambda: sock in select.select([sock], [], [], 0)[0])
    return json.loads(data), count


def nothing_happens(peer: Peer) -> None:
    for _ in range(20):
        peer.loop.run_until_complete(asyncio.sleep(0))


def nothing_comes(peer: Peer, sock: socket.socket) -> None:
    """Nothing is sent, however often the loop turns."""
    nothing_happens(peer)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
