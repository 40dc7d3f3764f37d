"""A worker that waits for ACCEPT serves checks and takes no client, before it and in a pause."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.conftest import DEADLINE_S

from penstock_worker.contract import (
    ACCEPT,
    AWAIT_ACCEPT,
    LISTEN,
    PAUSE,
    PING,
    PONG,
    PROBE,
    READY,
    SCHEME,
    STOP,
)

if TYPE_CHECKING:
    from tests.worker.conftest import Serve, Served

GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
KEEP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PROGRAMS = ("aio:app", "asg:app")
MANY = 64
"""Clients of a port with two sockets: the kernel gives both some."""


def reuseport(port: int = 0, *, listen: bool) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    if listen:
        sock.listen(512)
    return sock


def waiting(serve: "Serve", spec: str, listener: socket.socket, scheme: str = "shared") -> "Served":
    """A worker that is ready and waits for ACCEPT."""
    return serve(spec, passed=listener, **{SCHEME: scheme, AWAIT_ACCEPT: "1"}).ready()


def in_order(served: "Served", number: int = 7) -> None:
    """All messages so far are carried out when this returns."""
    served.send({"cmd": PING, "seq": number})
    assert served.receive() == {"cmd": PONG, "seq": number}


def ask(address: Any, request: bytes = GET) -> socket.socket:
    client = socket.create_connection(address, timeout=DEADLINE_S)
    client.sendall(request)
    return client


def answer(client: socket.socket) -> bytes:
    with client:
        received = b""
        while data := client.recv(4096):
            received += data
    return received


def response(client: socket.socket) -> bytes:
    """One response of a connection that stays open."""
    received = b""
    while not received.endswith(b"hello"):
        data = client.recv(4096)
        assert data, received
        received += data
    return received


def probe(served: "Served") -> bytes:
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    with theirs:
        served.send({"cmd": PROBE}, theirs)
    ours.sendall(GET)
    return answer(ours)


def is_accepted(listener: socket.socket) -> bool:
    """Has the one who waits in this queue been taken? False: we got it ourselves."""
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("program", PROGRAMS)
def test_before_accept_it_answers_checks_and_takes_no_client(
    serve: "Serve", port: socket.socket, program: str
) -> None:
    served = waiting(serve, program, port)
    with ask(port.getsockname()):
        in_order(served)
        assert probe(served).startswith(b"HTTP/1.1 200")
        assert served.stats()["fds"]["client"] == 0
        # It waits for whoever accepts: here the supervisor's own copy of the socket.
        assert not is_accepted(port)
    client = ask(port.getsockname())
    served.send({"cmd": ACCEPT})
    assert answer(client).endswith(b"hello")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_socket_that_does_not_listen_listens_only_after_accept(
    serve: "Serve", program: str
) -> None:
    # As under reuseport: every socket that listens gets a share of the port's clients.
    with closing(reuseport(listen=True)) as current:
        address = current.getsockname()
        with closing(reuseport(address[1], listen=False)) as own:
            served = waiting(serve, program, own, "reuseport")
            in_order(served)
            assert not own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            with ExitStack() as clients:
                for _ in range(MANY):
                    clients.enter_context(ask(address))
                assert not any(is_accepted(current) for _ in range(MANY))
            served.send({"cmd": ACCEPT})
            in_order(served)
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        current.close()
        assert answer(ask(address)).endswith(b"hello")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_pause_ends_no_connection_and_takes_no_new_one_until_accept(
    serve: "Serve", port: socket.socket, program: str
) -> None:
    served = serve(program, passed=port, **{SCHEME: "shared"}).ready()
    with ask(port.getsockname(), KEEP) as open_one:
        response(open_one)
        served.send({"cmd": PAUSE})
        in_order(served)
        open_one.sendall(KEEP)
        assert response(open_one)
        assert probe(served).startswith(b"HTTP/1.1 200")
        client = ask(port.getsockname())
        in_order(served)
        assert served.stats()["fds"]["client"] == 1
        served.send({"cmd": ACCEPT})
        assert answer(client).endswith(b"hello")
        open_one.sendall(KEEP)
        assert response(open_one)


def test_a_paused_worker_that_leaves_takes_nothing_from_the_queue(
    serve: "Serve", port: socket.socket
) -> None:
    served = serve("aio:app", passed=port, **{SCHEME: "shared"}).ready()
    served.send({"cmd": PAUSE})
    in_order(served)
    with ask(port.getsockname()):
        served.signal(signal.SIGTERM)
        assert served.exit_status() == 0, served.stderr()
        assert not is_accepted(port)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_stop_before_accept_is_a_clean_stop(
    serve: "Serve", port: socket.socket, program: str
) -> None:
    served = waiting(serve, program, port)
    with ask(port.getsockname()):
        served.send({"cmd": STOP, "finish": 10, "within": 20})
        served.signal(signal.SIGTERM)
        assert served.exit_status() == 0, served.stderr()
        assert (served.directory / "cleaned").exists()
        assert not is_accepted(port)


def test_without_its_channel_a_worker_that_waits_ends(serve: "Serve", port: socket.socket) -> None:
    served = waiting(serve, "aio:app", port)
    served.close_channel()
    served.exit_status()
    assert (served.directory / "cleaned").exists()


def test_without_a_supervisor_nobody_could_say_accept(serve: "Serve", port: socket.socket) -> None:
    serve("aio:app", passed=port, supervised=False, **{AWAIT_ACCEPT: "1"})
    assert answer(ask(port.getsockname())).endswith(b"hello")


def test_a_socket_that_comes_while_it_waits_is_accepted_from_after_accept(
    serve: "Serve", port: socket.socket
) -> None:
    served = waiting(serve, "aio:app", port)
    with socket.create_server(("127.0.0.1", 0)) as other:
        served.send({"cmd": LISTEN}, other)
        client = ask(other.getsockname())
        in_order(served)
        assert served.stats()["fds"]["client"] == 0
        served.send({"cmd": ACCEPT})
        assert answer(client).endswith(b"hello")


@pytest.mark.parametrize("messages", [(ACCEPT,), (PAUSE, ACCEPT), (ACCEPT, PAUSE, PAUSE, ACCEPT)])
def test_messages_that_come_before_it_is_ready_hold(
    serve: "Serve", port: socket.socket, messages: tuple[str, ...]
) -> None:
    served = serve("aio:app", passed=port, **{SCHEME: "shared", AWAIT_ACCEPT: "1"})
    for command in messages:
        served.send({"cmd": command})
    served.ready()
    assert answer(ask(port.getsockname())).endswith(b"hello")


def test_a_port_that_another_has_by_then_makes_it_ask_for_a_successor(serve: "Serve") -> None:
    # Bound without SO_REUSEPORT, of two such sockets one can listen.
    with closing(socket.socket()) as own, closing(socket.socket()) as other:
        for sock in (own, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0 if sock is own else own.getsockname()[1]))
        served = waiting(serve, "aio:app", own, "reuseport")
        other.listen()
        served.send({"cmd": ACCEPT})
        message = served.receive()
        assert "address already in use" in message["reason"]


def test_the_variable_is_not_passed_on_to_what_the_program_starts(
    serve: "Serve", port: socket.socket
) -> None:
    served = waiting(serve, "looks:app", port)
    served.send({"cmd": ACCEPT})
    assert AWAIT_ACCEPT.encode() not in answer(ask(port.getsockname()))


# Datagrams


@pytest.fixture
def datagrams() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def client(datagrams: socket.socket) -> Iterator[Callable[[bytes], bytes]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE_S)

        def echo(text: bytes) -> bytes:
            sock.sendto(text, datagrams.getsockname())
            return sock.recv(100)

        yield echo


def test_datagrams_wait_in_the_socket_before_accept_and_in_a_pause(
    serve: "Serve", datagrams: socket.socket, client: Callable[[bytes], bytes]
) -> None:
    served = waiting(serve, "penstock_worker.demo:udp", datagrams)
    datagrams.settimeout(DEADLINE_S)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as early:
        early.sendto(b"early", datagrams.getsockname())
        in_order(served)
        assert datagrams.recv(100) == b"early"
    served.send({"cmd": ACCEPT})
    assert client(b"one") == b"one"
    for _ in range(3):
        served.send({"cmd": PAUSE})
        in_order(served)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            late.sendto(b"late", datagrams.getsockname())
            assert datagrams.recv(100) == b"late"
        served.send({"cmd": ACCEPT})
        assert client(b"two") == b"two"
    links = [str(one.readlink()) for one in Path(f"/proc/{served.process.pid}/fd").iterdir()]
    assert links.count(f"socket:[{os.fstat(datagrams.fileno()).st_ino}]") == 1


def test_a_datagram_worker_that_is_stopped_while_paused_leaves_cleanly(
    serve: "Serve", datagrams: socket.socket, client: Callable[[bytes], bytes]
) -> None:
    served = serve("penstock_worker.demo:udp", passed=datagrams, **{SCHEME: "shared"}).ready()
    assert client(b"one") == b"one"
    served.send({"cmd": PAUSE})
    in_order(served)
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0, served.stderr()


@pytest.mark.parametrize("program", ["breaks:app", "refuses:app"])
def test_a_program_that_does_not_start_says_so_as_without_it(
    serve: "Serve", port: socket.socket, program: str
) -> None:
    served = serve(program, passed=port, **{SCHEME: "shared", AWAIT_ACCEPT: "1"})
    assert READY not in served.commands()
    assert served.exit_status() == 1
