"""Whoever waits, or was accepted, when a worker leaves is answered.

Who says nothing does not hold it back.
"""

import signal
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from tests.worker.sources.clients import (
    APPS,
    GET,
    answer,
    asked,
    connected,
    get,
    linked,
    passed_on,
    shared,
    until,
)

if TYPE_CHECKING:
    from tests.worker.conftest import Serve


def queued(listener: socket.socket) -> int:
    """How many wait to be accepted: tcpi_unacked."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    (count,) = struct.unpack_from("I", info, 24)
    return int(count)


@pytest.mark.parametrize("spec", APPS)
def test_who_waits_in_the_queue_when_it_leaves_is_answered(
    serve: "Serve", spec: str, listener: socket.socket
) -> None:
    served = shared(serve, spec, listener)
    assert get(listener) == b"hello"
    served.stop()
    clients = [asked(listener) for _ in range(20)]
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGCONT)
    assert [answer(client) for client in clients] == [b"hello"] * 20
    assert served.exit_status() == 0


@pytest.mark.parametrize("spec", APPS)
def test_who_waits_in_the_link_when_it_leaves_is_answered(
    serve: "Serve", spec: str, ends: tuple[socket.socket, socket.socket]
) -> None:
    front, worker = ends
    served = linked(serve, spec, worker)
    served.stop()
    clients = [passed_on(front) for _ in range(5)]
    for client in clients:
        client.sendall(GET % b"/")
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGCONT)
    assert [answer(client) for client in clients] == [b"hello"] * 5
    assert served.exit_status() == 0


@pytest.mark.parametrize("spec", APPS)
def test_who_was_accepted_and_speaks_a_moment_later_is_answered_still(
    serve: "Serve", spec: str, port: socket.socket
) -> None:
    served = shared(serve, spec, port)
    served.stop()
    client = connected(port)
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGCONT)
    # Accepted: nobody else would be now.
    until(lambda: queued(port) == 0)
    client.sendall(GET % b"/")
    assert answer(client) == b"hello"
    assert served.exit_status() == 0


def test_whoever_says_nothing_does_not_hold_it_back(serve: "Serve", port: socket.socket) -> None:
    served = shared(serve, "aio:app", port)
    with connected(port) as silent:
        until(lambda: served.stats()["fds"]["client"] == 1)
        served.signal(signal.SIGTERM)
        assert silent.recv(1) == b""
    assert served.exit_status() == 0
