"""Listeners open their socket, or report in one line why they cannot.

Covers `errors`.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.descriptors import descriptors

from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners import listener as sockets
from penstock_supervisor.listeners.listener import Listener


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def fails(address: str, key: str = "service.web.listen") -> str:
    with pytest.raises(StartError) as failure:
        Listener(address, key)
    text = str(failure.value)
    assert text.startswith(f"cannot listen on {address} ({key}): ")
    assert "\n" not in text
    return text.partition("): ")[2]


def test_a_listener_is_non_blocking_and_has_its_actual_port() -> None:
    with closing(Listener("127.0.0.1:0", "admin")) as listener:
        assert listener.address.port
        assert not listener.socket.getblocking()
        assert not listener.socket.get_inheritable()
        with socket.create_connection(("127.0.0.1", listener.address.port)):
            listener.socket.accept()[0].close()


def test_a_host_can_be_a_name_or_an_ipv6_address() -> None:
    with closing(Listener("localhost:0", "admin")) as listener:
        assert listener.socket.family == socket.AF_INET
    with closing(Listener("[::1]:0", "admin")) as listener:
        assert str(listener.address).startswith("[::1]:")


def test_the_process_that_has_a_port_is_named(taken: socket.socket) -> None:
    reason = fails(f"127.0.0.1:{taken.getsockname()[1]}")
    assert reason.startswith("address already in use by ")
    assert f"(pid {os.getpid()})" in reason


def test_an_unknown_host_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    assert fails("nowhere.invalid:80") == "unknown host"


def test_an_address_of_another_machine_is_refused() -> None:
    # TEST-NET-1 of RFC 5737 belongs to no machine.
    assert fails("192.0.2.1:8000") == "this machine has no such address"


def test_the_error_of_a_low_port_names_the_missing_privilege(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Tests may run as root, which the kernel refuses nothing.
    def refuse(*_: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sockets, "_open_inet", refuse)
    reason = fails("127.0.0.1:80")
    assert reason.startswith("permission denied: ports below ")
    assert "CAP_NET_BIND_SERVICE" in reason


def test_a_unix_socket_is_unlinked_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    listener = Listener(f"unix:{path}", "service.web.listen")
    assert path.is_socket()
    listener.close()
    assert not path.exists()
    listener.close()


def test_a_file_that_has_replaced_the_unix_socket_is_not_unlinked(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    listener = Listener(f"unix:{path}", "service.web.listen")
    path.unlink()
    path.write_text("mine")
    listener.close()
    assert path.read_text() == "mine"


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with (
        closing(Listener(f"unix:{path}", "service.web.listen")) as listener,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(path))
        listener.socket.accept()[0].close()
    assert not path.exists()


def test_a_unix_socket_that_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with closing(Listener(f"unix:{path}", "service.web.listen")):
        assert fails(f"unix:{path}") == "address already in use"
        assert path.is_socket()


def test_a_unix_socket_that_does_not_answer_yet_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with closing(Listener(f"unix:{path}", "service.web.listen", bind_only=True)) as first:
        assert fails(f"unix:{path}") == "address already in use"
        first.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            first.socket.accept()[0].close()


def test_a_lock_file_of_a_dead_run_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    (tmp_path / "web.sock.lock").touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    Listener(f"unix:{path}", "service.web.listen", bind_only=True).close()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_owner_removes_meanwhile_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "web.sock.lock"
    real = fcntl.flock
    taken: list[int] = []

    def after_its_owner(fd: int, operation: int) -> None:
        if not taken:
            lock.unlink()
        taken.append(fd)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", after_its_owner)
    with closing(Listener(f"unix:{tmp_path}/web.sock", "service.web.listen", bind_only=True)):
        assert len(taken) == 2
        assert lock.exists()
        assert fails(f"unix:{tmp_path}/web.sock") == "address already in use"


def test_children_do_not_inherit_the_lock_of_a_unix_socket(tmp_path: Path) -> None:
    with closing(Listener(f"unix:{tmp_path}/web.sock", "service.web.listen")) as listener:
        assert listener._path_lock is not None
        assert not os.get_inheritable(listener._path_lock._fd)


def test_a_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    path.write_text("precious")
    assert fails(f"unix:{path}") == "the file exists and is not a socket"
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named_as_such() -> None:
    assert fails("unix:/no/such/web.sock") == "no such directory"


def test_a_listener_that_fails_leaves_no_descriptor(taken: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = descriptors()
    for _ in range(5):
        fails(f"127.0.0.1:{taken.getsockname()[1]}")
        fails(f"unix:{tmp_path}/file")
    assert descriptors() == before
