"""Proxies come over a unix socket beside the worker's port, and a program sees no difference.

Covers `net/named_transport`.
"""

import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.support.worker.clients import DEMO, Start

from penstock_worker import contract
from penstock_worker.listener import sources
from penstock_worker.listener.sources import ListenError

GET = (
    b"GET /headers HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n"
)


def ask(family: int, where: Any) -> bytes:
    with socket.socket(family) as sock:
        sock.settimeout(10)
        sock.connect(where)
        sock.sendall(GET)
        got = b""
        while data := sock.recv(1 << 16):
            got += data
    return got.partition(b"\r\n\r\n")[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("app", [DEMO, "asg:app"])
def test_a_program_sees_over_the_socket_what_it_sees_over_the_port(
    serve: Start, tmp_path: Path, app: str
) -> None:
    path, port = tmp_path / "worker.sock", free_port()
    worker = serve(app, PORT=str(port), PENSTOCK_SOCKET=str(path)).ready()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    over_port = ask(socket.AF_INET, ("127.0.0.1", port))
    # uvicorn takes the client from the field, because it comes from this machine.
    assert (b"127.0.0.1" if app == DEMO else b"('203.0.113.9', 0)") in over_port
    assert ask(socket.AF_UNIX, str(path)) == over_port
    worker.signal(signal.SIGTERM)
    assert worker.exit_status() == 0
    with socket.socket(socket.AF_UNIX) as late:
        assert late.connect_ex(str(path)) != 0


def test_it_refuses_until_it_listens_and_is_no_ones_who_has_not_the_port(tmp_path: Path) -> None:
    path = tmp_path / "worker.sock"
    source = sources.find_source({"PORT": "0", contract.SOCKET: str(path)})
    assert source.link is not None
    with socket.socket(socket.AF_UNIX) as early:
        assert early.connect_ex(str(path)) != 0
    source.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    with pytest.raises(ListenError, match="address already in use") as no:
        sources.find_source({"PORT": "0", contract.SOCKET: str(path)})
    assert no.value.in_use
    source.close()
    with pytest.raises(ListenError, match="no such file or directory"):
        sources.find_source({"PORT": "0", contract.SOCKET: str(tmp_path / "none" / "a")})
