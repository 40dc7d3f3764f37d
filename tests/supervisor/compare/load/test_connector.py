"""A connection is opened at once or fails with its reason, and leaves no descriptor behind."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from penstock_supervisor.compare.load import connector
from penstock_supervisor.compare.load.connector import Connector


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_server((host, 0)) as listener:
        yield listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"


def test_a_connection_never_blocks_and_is_not_inherited() -> None:
    with listening() as listener:
        sock = Connector(address_of(listener)).connect()
        try:
            assert sock.gettimeout() == 0
            assert not os.get_blocking(sock.fileno())
            assert not os.get_inheritable(sock.fileno())
            accepted, peer = listener.accept()
            accepted.close()
            assert peer == sock.getsockname()
        finally:
            sock.close()


def test_a_unix_socket_that_is_missing_fails_with_its_reason(tmp_path: Path) -> None:
    descriptors = psutil.Process().num_fds()
    opener = Connector(f"unix:{tmp_path}/nobody")
    with pytest.raises(OSError, match="not connected") as raised:
        opener.connect()
    assert raised.value.errno == errno.ENOENT
    assert psutil.Process().num_fds() == descriptors


@pytest.mark.parametrize("rounds", [1, 2])
def test_sources_are_used_in_turn_and_the_first_one_again_after_the_last(
    monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    monkeypatch.setattr(connector, "_CONNECTIONS_PER_SOURCE", 2)
    monkeypatch.setattr(connector, "_SOURCES", 3)
    hosts = []
    with listening() as listener:
        opener = Connector(address_of(listener))
        for _ in range(6 * rounds):
            sock = opener.connect()
            hosts.append(sock.getsockname()[0])
            sock.close()
    assert set(hosts) == {"127.0.0.1", "127.0.0.2", "127.0.0.3"}
    assert max(map(hosts.count, hosts)) <= 2 * rounds + 1


def test_an_address_without_a_free_port_is_left_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([errno.EADDRNOTAVAIL, errno.EINPROGRESS])
    sources = []

    def start(self: Connector, _: socket.SocketType) -> int:
        sources.append(self._source)
        return next(answers)

    monkeypatch.setattr(Connector, "_start", start)
    Connector("127.0.0.1:1").connect().close()
    assert sources == [None, ("127.0.0.2", 0)]


def test_a_remote_subject_without_a_free_port_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connector, "_start", lambda *_: errno.EADDRNOTAVAIL)
    descriptors = psutil.Process().num_fds()
    with pytest.raises(OSError, match="not connected") as raised:
        Connector("192.0.2.1:1").connect()
    assert raised.value.errno == errno.EADDRNOTAVAIL
    assert psutil.Process().num_fds() == descriptors
