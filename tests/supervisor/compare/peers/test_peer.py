"""A peer serves the program, its processes are found, and none of them is left behind.

Covers `compare/peers/keeper`.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from penstock_supervisor.compare.measure import warm_up
from penstock_supervisor.compare.peers.peer import Peer
from penstock_supervisor.compare.peers.recipe import Setting
from penstock_supervisor.compare.subject import SubjectError

WAIT_S = 20.0
SERVER = """
import http.server, os, signal, socket, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
if "stubborn" in sys.argv:
    # A child of its own, in a session of its own, and neither of them listens to SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the environment of all that a test starts: nothing of it may be left."""
    name = f"PENSTOCK_TEST_{uuid4().hex}"
    monkeypatch.setenv(name, "1")
    yield name
    _, alive = psutil.wait_procs(marked(name), WAIT_S)
    for process in alive:
        process.kill()
    assert alive == []


def marked(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and name in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


def peer(tmp_path: Path, *arguments: str, workers: int = 2, name: str = "command") -> Peer:
    program = tmp_path / "server.py"
    program.write_text(SERVER)

    def setting(folder: str, ports: tuple[int, ...]) -> Setting:
        return Setting(
            command=(sys.executable, str(program), *arguments), directory=str(tmp_path),
            workers=workers, folder=folder, ports=ports, user="root" if os.geteuid() == 0 else "",
        )  # fmt: skip

    return Peer(name, workers, setting)


def private_files(one: Peer) -> set[str]:
    """In its directory, which nobody else may look into; none if it is gone."""
    folder = Path(one._folder)
    if not folder.exists():
        return set()
    assert folder.stat().st_mode & 0o777 == 0o700
    return {path.name for path in folder.iterdir()}


@asynccontextmanager
async def started(one: Peer) -> AsyncIterator[Peer]:
    try:
        await one.start()
        yield one
    finally:
        await one.stop()


@pytest.mark.needs("nginx")
async def test_a_peer_serves_and_its_processes_have_roles(mark: str, tmp_path: Path) -> None:
    async with started(peer(tmp_path, name="nginx+command")) as one:
        report = await warm_up(one, "/", 0.2)
        roles = await one.roles()
        assert report.requests > 0
        assert set(roles) == {"proxy", "workers"}
        assert len(roles["workers"]) == 2
        assert len(roles["proxy"]) == 2
        files = private_files(one)
        assert {"nginx.conf", "workers.log"} <= files
    assert private_files(one) == set()
    assert marked(mark) == []


async def test_what_a_server_started_is_ended_however_it_hides(mark: str, tmp_path: Path) -> None:
    async with started(peer(tmp_path, "stubborn", workers=1)):
        assert len(marked(mark)) >= 3
    assert marked(mark) == []


async def test_a_peer_does_not_outlive_whoever_started_it(mark: str, tmp_path: Path) -> None:
    one = peer(tmp_path, "stubborn", workers=1)
    await one.start()
    assert one._keeper
    assert one._keeper.stdin
    # As the kernel does when the comparison is killed.
    one._keeper.stdin.close()
    async with asyncio.timeout(WAIT_S):
        await one._keeper.wait()
    assert marked(mark) == []
    await one.stop()


async def test_a_killed_keeper_takes_its_servers_with_it(mark: str, tmp_path: Path) -> None:
    one = peer(tmp_path)
    await one.start()
    assert one._keeper
    one._keeper.send_signal(signal.SIGKILL)
    await one._keeper.wait()
    with pytest.raises(SubjectError, match="its keeper ended"):
        await one.roles()
    await one.stop()


async def test_a_peer_that_does_not_start_says_why(mark: str, tmp_path: Path) -> None:
    broken = peer(tmp_path)
    (tmp_path / "server.py").write_text("raise SystemExit('no database')")
    with pytest.raises(SubjectError, match=r"ended, exit status 1: no database"):
        async with started(broken):
            pass
