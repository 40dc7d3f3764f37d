"""Clients that wait, or were accepted, when a worker gets TERM are answered before it exits.

A client that sends nothing does not delay the exit.
"""

import signal
import socket
import struct

import pytest
from tests.support.worker import clients
from tests.support.worker.clients import APPS, GET, Link, Start, until


def queued(listener: socket.socket) -> int:
    """How many wait to be accepted: tcpi_unacked."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    (count,) = struct.unpack_from("I", info, 24)
    return int(count)


@pytest.mark.parametrize("spec", APPS)
def test_clients_in_the_accept_queue_at_term_are_answered(
    shared: Start, spec: str, listener: socket.socket
) -> None:
    served = shared(spec, listener)
    assert clients.get(listener) == b"hello"
    served.stop()
    waiting = [clients.asked(listener) for _ in range(20)]
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGCONT)
    assert [clients.answer(client) for client in waiting] == [b"hello"] * 20
    assert served.exit_status() == 0


@pytest.mark.parametrize("spec", APPS)
def test_clients_in_the_link_at_term_are_answered(linked: Start, spec: str, link: Link) -> None:
    served = linked(spec)
    served.stop()
    waiting = [link.client() for _ in range(5)]
    for client in waiting:
        client.sendall(GET % b"/")
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGCONT)
    assert [clients.answer(client) for client in waiting] == [b"hello"] * 5
    assert served.exit_status() == 0


@pytest.mark.parametrize("spec", APPS)
def test_an_accepted_client_that_sends_its_request_after_term_is_answered(
    shared: Start, spec: str, port: socket.socket
) -> None:
    served = shared(spec, port)
    served.stop()
    client = clients.connected(port)
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGCONT)
    # The client was accepted: the worker accepts no more from now on.
    until(lambda: queued(port) == 0)
    assert clients.exchange(client) == b"hello"
    assert served.exit_status() == 0


def test_a_client_that_sends_nothing_does_not_delay_the_exit(
    shared: Start, port: socket.socket
) -> None:
    served = shared("aio:app", port)
    with clients.connected(port) as silent:
        until(lambda: served.stats()["fds"]["client"] == 1)
        served.signal(signal.SIGTERM)
        assert silent.recv(1) == b""
    assert served.exit_status() == 0
