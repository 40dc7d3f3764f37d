"""A datagram worker changes to a new socket without losing a datagram, and closes the old one."""

import contextlib
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil
from tests.worker.conftest import DEADLINE_S

from penstock_worker.channel import framing
from penstock_worker.contract import LISTEN

if TYPE_CHECKING:
    from tests.worker.conftest import Serve, Served

CLIENTS = 50
"""So many that the kernel's hash of their ports spreads them over every socket of a port."""


def sister(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    return sock


def ask(clients: Sequence[socket.socket], address: tuple[str, int]) -> None:
    for client in clients:
        client.settimeout(DEADLINE_S)
        client.sendto(b"echo", address)


def answers(clients: Sequence[socket.socket]) -> set[bytes]:
    return {client.recv(16) for client in clients}


def sockets(served: "Served") -> int:
    return len(psutil.Process(served.process.pid).net_connections("udp"))


def test_a_socket_that_replaces_another_is_served_and_the_other_closed(serve: "Serve") -> None:
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(CLIENTS)
        ]
        old = stack.enter_context(sister(("127.0.0.1", 0)))
        address = old.getsockname()
        served = serve("penstock_worker.demo:udp", passed=old, PENSTOCK_SCHEME="reuseport").ready()
        old.close()
        ask(clients, address)
        assert answers(clients) == {b"echo"}

        served.stop()
        new = stack.enter_context(sister(address))
        line = framing.encode(framing.envelope({"cmd": LISTEN}, new))
        socket.send_fds(served.link, [line], [new.fileno()])
        new.close()
        ask(clients, address)
        served.signal(signal.SIGCONT)
        assert served.receive() == {"cmd": framing.ACK}
        assert answers(clients) == {b"echo"}, "from both sockets"

        deadline = time.monotonic() + DEADLINE_S
        while sockets(served) != 1:
            assert time.monotonic() < deadline
            assert served.stats()["fds"]["listener"] == 1
        ask(clients, address)
        assert answers(clients) == {b"echo"}
