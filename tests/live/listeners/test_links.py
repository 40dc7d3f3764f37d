"""Proxies reach workers over unix sockets or over ports, and nobody else can tell which."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.support.live.many_clients import DEMO
from tests.support.live.versions import reload

if TYPE_CHECKING:
    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

OVER_A_SOCKET = """
import os, socketserver, sys
from http.server import BaseHTTPRequestHandler

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def address_string(self):
        return "-"

assert sys.argv[1] == os.environ["PENSTOCK_SOCKET"]
socketserver.ThreadingUnixStreamServer(sys.argv[1], Handler).serve_forever()
"""


def tcp_connections(run: "Cluster") -> int:
    """How many the proxy has to workers."""
    (proxy,) = run.status()["proxies"]
    ports = {port for worker in run.workers("web") for port in worker["ports"]}
    connections = psutil.Process(proxy["pid"]).net_connections("tcp")
    return sum(1 for one in connections if one.raddr and one.raddr.port in ports)


def port_of(worker: dict[str, str]) -> tuple[str, int]:
    host, _, port = worker["address"].partition(":")
    return host, int(port)


@pytest.mark.parametrize(("link", "used"), [("auto", "unix"), ("tcp", "tcp")])
def test_a_request_comes_over_the_link_and_the_port_stays_open(
    penstock: "Penstock", tmp_path: Path, link: str, used: str
) -> None:
    run = penstock(app=DEMO, link=link, top={"run_dir": str(tmp_path / "run")})
    for _ in range(4):
        assert run.get("/")[0] == 200
    assert {worker["link"] for worker in run.workers()} == {used}
    assert (tcp_connections(run) == 0) is (used == "unix")
    for worker in run.workers():
        assert run.get_from(port_of(worker))[0] == 200
    assert (run.metric("penstock_ephemeral_ports") == 0) is (used == "unix")
    assert '"peer": "127.0.0.1"' in run.get("/headers")[1]


def test_killed_workers_come_back_at_their_sockets_and_the_run_leaves_none(
    penstock: "Penstock", tmp_path: Path
) -> None:
    run = penstock(app=DEMO, workers=1, top={"run_dir": str(tmp_path / "run")})
    (before,) = run.workers()
    psutil.Process(before["pid"]).send_signal(signal.SIGKILL)
    run.until(lambda: run.workers()[0]["pid"] not in (None, before["pid"]))
    run.until(lambda: run.workers()[0]["health"] == "up")
    assert run.workers()[0]["socket"] == before["socket"]
    assert run.get("/")[0] == 200
    assert Path(before["socket"]).exists()
    run.stop()
    assert not (tmp_path / "run").exists()


def test_a_command_is_told_the_path(penstock: "Penstock", tmp_path: Path) -> None:
    command = [sys.executable, "-c", OVER_A_SOCKET, "{socket}"]
    top = {"run_dir": str(tmp_path / "run")}
    run = penstock(command=command, link="unix", workers=1, top=top, access_log="off")
    assert run.get("/") == (200, "ok")
    (worker,) = run.workers()
    assert worker["link"] == "unix"
    psutil.Process(worker["pid"]).send_signal(signal.SIGKILL)
    run.until(lambda: run.workers()[0]["pid"] not in (None, worker["pid"]))
    run.until(lambda: run.workers()[0]["health"] == "up")
    assert run.get("/") == (200, "ok")


def test_another_link_replaces_the_workers_one_after_the_other(
    penstock: "Penstock", tmp_path: Path
) -> None:
    keys = {"app": DEMO, "access_log": "off"}
    run = penstock(services={"web": keys}, top={"run_dir": str(tmp_path / "run")})
    before = {worker["pid"] for worker in run.workers()}
    run.configure({"web": {**keys, "link": "tcp"}})
    assert reload(run).status == 0
    assert {worker["link"] for worker in run.workers()} == {"tcp"}
    assert before.isdisjoint(worker["pid"] for worker in run.workers())
    assert run.get("/")[0] == 200
