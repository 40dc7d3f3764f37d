"""A child that a program forks is nobody's worker: TERM ends it, and it has none of our sockets."""

import http.client
import json
import os
import signal
import socket
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from penstock_worker import contract

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.worker.conftest import Served

    Serve = Callable[..., Served]

DEADLINE_S = 60.0


def get(port: int, path: str = "/") -> Any:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)) as client:
        client.request("GET", path)
        return json.loads(client.getresponse().read())


def sockets(pid: int) -> set[str]:
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(str(fd.readlink()))
    return {name for name in found if name.startswith("socket:")}


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_child_has_neither_the_workers_handlers_nor_its_sockets(
    serve: "Serve", method: str
) -> None:
    served = serve("forks:app", PENSTOCK_SLOT="0")
    port = served.port()
    with socket.create_connection(("127.0.0.1", port)) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(1000)
        found = get(port, f"/look?method={method}")
        assert found["exitcode"] == -signal.SIGTERM
        assert found["sent"] is False
        assert found["handlers"] == [
            repr(signal.SIG_DFL), repr(signal.default_int_handler), repr(signal.SIG_DFL)
        ]  # fmt: skip
        assert found["blocked"] == []
        # The parent's listener, channel and connections, but for pairs that only it uses.
        shared = set(found["open"]) & set(found["ours"]) & set(network_inodes(served))
        assert shared == set()
        assert len(network_inodes(served)) >= 3
        # The worker has noticed nothing.
        assert get(port) == served.process.pid
    served.send({"cmd": contract.PING, "seq": 1})
    assert served.receive()["cmd"] == contract.PONG


def network_inodes(served: "Served") -> set[str]:
    """Of the worker's sockets: those of TCP, and its end of the channel."""
    lines = Path(f"/proc/{served.process.pid}/net/tcp").read_text().splitlines()[1:]
    tcp = {f"socket:[{line.split()[9]}]" for line in lines}
    inherited = {f"socket:[{served.channel_inode}]"}
    return sockets(served.process.pid) & (tcp | inherited)


def test_terminate_right_after_the_start_always_ends_the_child_and_never_the_worker(
    serve: "Serve",
) -> None:
    served = serve("forks:app")
    port = served.port()
    assert get(port, "/many?n=50") == [-signal.SIGTERM] * 50
    assert get(port) == served.process.pid


# Since Python 3.14 the loop runs no more in a forked child, and carries no status out of it.
EXIT = 9 if sys.version_info < (3, 14) else 1


@pytest.mark.parametrize(("way", "status"), [("exit", EXIT), ("return", 1)])
def test_a_child_that_comes_back_to_the_workers_loop_ends_and_serves_nobody(
    serve: "Serve", way: str, status: int
) -> None:
    served = serve("forks:app")
    port = served.port()
    assert get(port, f"/raw?way={way}") == status
    assert get(port) == served.process.pid
    assert ("has to end by os._exit" in served.stderr()) == (status == 1)
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0


def test_a_child_that_outlives_the_worker_keeps_neither_port_nor_connection(
    serve: "Serve",
) -> None:
    served = serve("forks:app")
    port = served.port()
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(1000)
        child = get(port, "/stays")
        try:
            # At the exit multiprocessing would wait for it.
            served.signal(signal.SIGKILL)
            assert served.exit_status() == -signal.SIGKILL
            assert idle.recv(1000) == b"", "the worker's end is closed, although the child lives"
            assert served.commands() == [], "so is the channel"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{child}/cmdline").exists() and time.monotonic() < deadline:
        if not Path(f"/proc/{child}/cmdline").read_bytes():
            break
        time.sleep(0.01)
