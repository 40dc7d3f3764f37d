"""A full worker ends connections without a request, the oldest first, and no others."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from penstock_worker.listener import idle_clients
from penstock_worker.listener.idle_clients import GRACE_S, IdleClients

NOW = 100.0


class Transport:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closing = False
        self.unsent = 0
        self.protocol: Any = None

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self.sock

    def get_protocol(self) -> Any:
        return self.protocol


class Served:
    """A connection, and the protocol that serves it."""

    def __init__(self, sock: socket.socket, client: socket.socket) -> None:
        self.transport = Transport(sock)
        self.transport.protocol = self.protocol = self
        self.client = client
        self.fd = sock.fileno()
        self.opened = NOW - GRACE_S
        self.may_be_ended = True
        self.is_idle = True

    def fileno(self) -> int:
        return self.fd

    @property
    def is_ended(self) -> bool:
        return self.transport.closing


class Worker:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.connections: dict[Any, None] = {}
        self._idle_clients = IdleClients(lambda protocol: bool(protocol.is_idle))

    def connected(self, count: int) -> list[Served]:
        made = []
        for _ in range(count):
            ours, theirs = map(self._stack.enter_context, socket.socketpair())
            made.append(Served(ours, theirs))
            self.connections[made[-1]] = None
        return made

    def end(self, wanted: int) -> int:
        return self._idle_clients.end(self.connections, wanted, NOW)


@pytest.fixture
def worker() -> Iterator[Worker]:
    with ExitStack() as stack:
        yield Worker(stack)


def test_as_many_are_ended_as_wait_and_the_oldest_first(worker: Worker) -> None:
    served = worker.connected(5)
    assert worker.end(2) == 2
    assert [one.is_ended for one in served] == [True, True, False, False, False]
    assert worker.end(10) == 3


def test_who_is_served_or_may_not_be_ended_is_left_alone(worker: Worker) -> None:
    busy, fresh, probe, unsent, asking, closing, upgraded, other = worker.connected(8)
    busy.is_idle = False
    fresh.opened = NOW - GRACE_S + 0.1
    probe.may_be_ended = False
    unsent.transport.unsent = 1
    asking.client.sendall(b"GET")
    closing.transport.closing = True
    # Another protocol has taken over, such as that of a WebSocket.
    upgraded.transport.protocol = busy
    assert worker.end(10) == 1
    assert other.is_ended
    assert not any(one.is_ended for one in (busy, fresh, probe, unsent, asking, upgraded))
    assert asking.transport.sock.recv(10) == b"GET", "nothing was read of it"


def test_a_bounded_number_is_looked_at_and_the_others_next_time(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_clients, "MAX_LOOKS", 3)
    *busy, idle = worker.connected(7)
    for one in busy:
        one.is_idle = False
    assert [worker.end(1) for _ in range(3)] == [0, 0, 1]
    assert idle.is_ended


def test_one_that_was_not_made_yet_is_left_alone(worker: Worker) -> None:
    (one,) = worker.connected(1)
    del one.transport
    assert worker.end(1) == 0


def test_what_was_ended_is_in_the_log(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    worker.connected(4)
    worker.end(2)
    worker.end(1)
    assert caplog.messages == ["connections ended to make room: 2"]
