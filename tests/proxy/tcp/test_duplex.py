"""Over a unix socket a worker's end is an end, also where a write fails before it is read."""

import asyncio
import socket
from collections import Counter
from types import SimpleNamespace
from typing import Any

from penstock_proxy.config import Timeouts
from penstock_proxy.net.reactor import Reactor
from penstock_proxy.net.socket_transport import adopt
from penstock_proxy.tcp.duplex import ClientHalf
from penstock_worker.net.stream import Stream

WAIT_S = 10.0


class Owner:
    """Notes that both connections are closed."""

    member: Any = None

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def duplex_closed(self, half: ClientHalf) -> None:
        self.closed.set()


async def relay(worker: socket.socket, ours: socket.socket, answer: bytes) -> tuple[str, bytes]:
    """The worker answers and closes in the same turn in which its client sends. Returns how it
    ended, and what the client got."""
    loop = asyncio.get_running_loop()
    client, clients = socket.socketpair()
    for sock in (ours, clients):
        sock.setblocking(False)
    client.settimeout(WAIT_S)
    owner = Owner()
    timers: Any = SimpleNamespace(now=0.0, arm_in=lambda *_: None, disarm=lambda _: None)
    counters: Any = SimpleNamespace(sent=0, received=0, errors=Counter())
    reactor = Reactor(loop)
    half = ClientHalf(reactor, counters, timers, Timeouts(), owner)
    adopt(reactor, half.worker, Stream(ours.detach(), int(socket.AF_UNIX)))
    adopt(reactor, half, Stream(clients.detach(), int(socket.AF_UNIX)))
    worker.sendall(answer)
    worker.close()
    assert half.worker.transport is not None
    # The write comes first, as that of a client whose connection is looked at first.
    half.data_received(b"more")
    async with asyncio.timeout(WAIT_S):
        await owner.closed.wait()
    with client:
        got = b""
        while data := client.recv(1 << 16):
            got += data
    reactor.close()
    return half.outcome, got


def test_what_a_worker_sent_before_its_end_is_delivered_as_complete() -> None:
    worker, ours = socket.socketpair()
    assert asyncio.run(relay(worker, ours, b"x" * 100_000)) == ("ok", b"x" * 100_000)


def test_a_worker_that_leaves_bytes_unread_has_reset_the_connection() -> None:
    worker, ours = socket.socketpair()
    ours.send(b"unread")
    outcome, _ = asyncio.run(relay(worker, ours, b""))
    assert outcome == "worker_reset"
