"""A roll-out of a service that relays connections, or whose program gets datagrams."""

import re
import socket
from typing import TYPE_CHECKING

import pytest
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import Load, reload, served, write
from tests.support.live.websocket import WebSocket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.live.rollout.conftest import FirstVersion
    from tests.support.live.cluster import Cluster

DATAGRAMS = """
import asyncio, pathlib
VERSION = pathlib.Path("version").read_text().strip()
if VERSION.startswith("bad"):
    raise ImportError("no module named flux_capacitor")

class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, client):
        self.transport.sendto(data + b" from " + VERSION.encode(), client)
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_connections_in_mode_tcp_get_the_new_version_and_never_a_bad_one(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, mode="tcp", timeouts={"start": "2s", "stop": "500ms"})
    first = pids(run)
    open_before = WebSocket(run)
    load = Load(run, 1)
    write(tmp_path, "unhealthy v2")
    bad = reload(run)
    assert bad.status == 1, bad.said
    assert "503" in bad.said
    assert pids(run) == first
    open_before.echo(b"the old worker was never touched")
    write(tmp_path, "good v3")
    good = reload(run)
    assert good.status == 0, good.said
    # Under reuseport the kernel resets what waits at the socket of a worker that goes.
    assert load.end() == [] or scheme == "reuseport"
    assert not pids(run) & first
    assert {served(run) for _ in range(6)} == {"v3"}


def answer(run: "Cluster") -> bytes:
    """To one datagram."""
    match = re.search(r"^web on (?:udp://)?([\d.]+):(\d+)", run.err, re.MULTILINE)
    assert match
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.connect((match[1], int(match[2])))
        sock.send(b"answer")
        return sock.recv(4096)


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_datagrams_get_the_new_version_and_never_a_bad_one(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    (tmp_path / "program.py").write_text(DATAGRAMS)
    (tmp_path / "version").write_text("v1")
    run = penstock(
        app="program:Echo", mode="udp", scheme=scheme, workers=2,
        top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    run.may_trace = True
    first = pids(run)
    (tmp_path / "version").write_text("bad v2")
    bad = reload(run)
    assert bad.status == 1, bad.said
    assert "flux_capacitor" in bad.said
    assert pids(run) == first
    assert {answer(run) for _ in range(8)} == {b"answer from v1"}
    (tmp_path / "version").write_text("v3")
    good = reload(run)
    assert good.status == 0, good.said
    assert not pids(run) & first
    # None is lost: where nobody reads yet, datagrams wait in the socket.
    assert {answer(run) for _ in range(8)} == {b"answer from v3"}
