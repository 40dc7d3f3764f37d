"""Memory, descriptors and connections of each process are those that the kernel counts."""

import os
import socket
from typing import Any

import pytest

from penstock_supervisor.kernel import sock_diag
from penstock_supervisor.observability import process_usage
from penstock_supervisor.snapshot import ProcessView


def view(address: str = "", connections: int | None = None, pid: int = 0) -> ProcessView:
    return ProcessView("current", "ready", pid or os.getpid(), address, 1.0, connections)


def test_a_process_has_its_memory_and_descriptors(made: Any) -> None:
    snapshot = made.snapshot(made.worker(processes=(view(),)))
    usage = process_usage.measure(snapshot)[os.getpid()]
    assert usage.memory is not None
    assert usage.memory > 1 << 20
    assert usage.fds is not None
    assert usage.fds > 2
    assert usage.connections is None


def test_the_connections_of_a_program_that_does_not_report_them_are_those_at_its_port(
    made: Any,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with socket.create_connection((host, port)), server.accept()[0]:
            snapshot = made.snapshot(made.worker(processes=(view(f"{host}:{port}"),)))
            assert process_usage.measure(snapshot)[os.getpid()].connections == 1


def test_without_an_answer_of_the_kernel_connections_are_not_known(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sock_diag, "accepted", lambda _: None)
    snapshot = made.snapshot(made.worker(processes=(view("127.0.0.1:1"),)))
    assert process_usage.measure(snapshot)[os.getpid()].connections is None


def test_nothing_is_known_of_a_process_that_has_ended(made: Any) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    snapshot = made.snapshot(made.worker(processes=(view(pid=pid),)))
    assert set(process_usage.measure(snapshot)[pid]) == {None}
