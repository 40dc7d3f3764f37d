"""What a worker starts is its own until it has ended, and has the rest of the time after that."""

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.support.live.cluster import is_alive
from tests.support.live.many_clients import SCHEMES
from tests.support.live.plain_server import SERVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

CONVERTS = """
import asyncio, os
from aiohttp import web

async def convert(_):
    script = "echo $$ > converting; while [ ! -e go ]; do sleep 0.05; done; echo converted"
    child = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=-1)
    out, _ = await child.communicate()
    return web.Response(status=200 if child.returncode == 0 else 500, text=out.decode())

async def pid(_):
    return web.Response(text=str(os.getpid()))

app = web.Application()
app.router.add_get("/convert", convert)
app.router.add_get("/", pid)
"""
"""A request waits for a process, and that waits for a file."""
LEAVES = """
import os, subprocess
from aiohttp import web

SCRIPT = '''
trap 'echo term >> heard; TERM=1' TERM
echo $$ > child
while [ ! -e go ]; do sleep 0.05; done
echo saved > saved
'''

def app():
    if os.environ["PENSTOCK_SLOT"] == "0" and not os.path.exists("child"):
        subprocess.Popen(["sh", "-c", SCRIPT])
    return web.Application()
"""
"""Its child goes on after TERM, until there is a file."""
FORKS = (
    SERVER
    + """
if not os.path.exists("child"):
    open("child", "w").close()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
server.serve_forever()
"""
)
"""Its child keeps its port, and ignores TERM."""
HEARS = """
import os, signal, socket, sys
def hear(number, _):
    with open("heard", "a") as file:
        file.write(f"{sys.argv[1]} {signal.Signals(number).name}\\n")
    sys.exit()
for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
    signal.signal(number, hear)
if sys.argv[1] == "leader":
    import subprocess
    child = subprocess.Popen([sys.executable, __file__, "child"])
    while not os.path.exists("child"):
        pass
    server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
else:
    open("child", "w").close()
while True:
    signal.pause()
"""


def in_background(ask: "Callable[[], Any]") -> "Callable[[], Any]":
    """Start it; the result waits for its end."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()

    def result() -> Any:
        thread.join()
        return answers[0]

    return result


@pytest.fixture
def converting(penstock: "Penstock", tmp_path: Path) -> "Callable[..., Cluster]":
    def make(scheme: str) -> "Cluster":
        (tmp_path / "program.py").write_text(CONVERTS)
        return penstock(app="program:app", scheme=scheme, workers=1, health={"interval": "100ms"})

    return make


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_request_that_waits_for_a_process_is_answered_at_a_reload(
    converting: "Callable[..., Cluster]", scheme: str
) -> None:
    run = converting(scheme)
    before = run.workers()[0]["pid"]
    answer = in_background(lambda: run.get("/convert"))
    run.until(lambda: (run.folder / "converting").exists())
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: run.workers()[0]["pid"] not in (before, None))
    # The old one is told to leave, and it waits for its request.
    run.until(lambda: signal.SIGTERM not in _pending(before))
    (run.folder / "go").touch()
    assert answer() == (200, "converted\n")
    run.until(lambda: not psutil.pid_exists(before))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_request_that_waits_for_a_process_is_answered_at_a_stop(
    converting: "Callable[..., Cluster]", scheme: str
) -> None:
    run = converting(scheme)
    answer = in_background(lambda: run.get("/convert"))
    run.until(lambda: (run.folder / "converting").exists())
    run.look()
    run.process.send_signal(signal.SIGTERM)
    run.until(lambda: "stopping: " in run.err)
    (run.folder / "go").touch()
    assert answer() == (200, "converted\n")
    assert run.ended() == 0


def leaving(penstock: "Penstock", folder: Path, stop: str, scheme: str = "ports") -> "Cluster":
    """A run of one worker whose child goes on after TERM; its child is there."""
    (folder / "program.py").write_text(LEAVES)
    run = penstock(app="program:app", scheme=scheme, workers=1, timeouts={"stop": stop})
    run.until(lambda: (folder / "child").exists())
    run.look()
    return run


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_an_app_started_is_told_when_the_app_has_ended_and_may_finish(
    penstock: "Penstock", tmp_path: Path, scheme: str
) -> None:
    run = leaving(penstock, tmp_path, "50s", scheme)
    run.process.send_signal(signal.SIGTERM)
    run.until(lambda: "web/0 exited with status 0" in run.err)
    run.until(lambda: (tmp_path / "heard").exists())
    run.until(lambda: "web/0: what it started goes on" in run.err)
    assert not (tmp_path / "saved").exists()
    (tmp_path / "go").touch()
    assert run.ended() == 0
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert (tmp_path / "heard").read_text() == "term\n"
    assert "killed" not in run.err


def test_what_goes_on_at_the_deadline_is_killed_then_and_is_in_the_log(
    penstock: "Penstock", tmp_path: Path
) -> None:
    run = leaving(penstock, tmp_path, "2s")
    assert run.stop() == 0
    assert "web/0: what it started is killed at the deadline: sh (pid" in run.err
    assert (tmp_path / "heard").read_text() == "term\n"
    assert not (tmp_path / "saved").exists()


def test_a_second_signal_kills_what_goes_on(penstock: "Penstock", tmp_path: Path) -> None:
    run = leaving(penstock, tmp_path, "1h")
    run.process.send_signal(signal.SIGTERM)
    run.until(lambda: "web/0: what it started goes on" in run.err)
    assert run.stop() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_at_once_is_at_once_for_what_a_worker_started_as_well(
    penstock: "Penstock", tmp_path: Path, scheme: str
) -> None:
    run = leaving(penstock, tmp_path, "1h", scheme)
    run.process.send_signal(signal.SIGQUIT)
    assert run.ended() == 0
    assert not (tmp_path / "saved").exists()


def test_a_worker_that_crashed_is_back_before_what_it_left_has_ended(
    penstock: "Penstock", tmp_path: Path
) -> None:
    (tmp_path / "server.py").write_text(FORKS)
    run = penstock(
        command=["python3", "server.py"], workers=1, timeouts={"stop": "3s"},
        restart={"backoff": "10ms"},
    )  # fmt: skip
    (first,) = run.workers()
    run.until(lambda: psutil.Process(first["pid"]).children())
    (left,) = psutil.Process(first["pid"]).children()
    os.kill(first["pid"], signal.SIGKILL)
    run.until(lambda: run.workers()[0]["health"] == "up" and run.workers()[0] != first)
    (second,) = run.workers()
    assert run.get()[0] == 200
    # The one that was left has the port until it is killed.
    assert second["address"] != first["address"]
    assert "is taken by" in run.err
    run.until(lambda: not is_alive(left))
    assert "is in a crash loop" not in run.err


@pytest.mark.parametrize(
    ("keys", "heard"),
    [
        ({}, {"leader SIGTERM", "child SIGTERM"}),
        ({"stop_signal": "QUIT"}, {"leader SIGQUIT", "child SIGQUIT"}),
        # When the leader has ended, what is left gets TERM.
        (
            {"stop_signal": "SIGUSR1", "stop_to": "leader"},
            {"leader SIGUSR1", "child SIGTERM"},
        ),
    ],
)
def test_a_command_is_told_by_its_own_signal_and_to_whom(
    penstock: "Penstock", tmp_path: Path, keys: dict[str, str], heard: set[str]
) -> None:
    (tmp_path / "hears.py").write_text(HEARS)
    command = ["python3", str(tmp_path / "hears.py"), "leader"]
    run = penstock(command=command, workers=1, mode="tcp", access_log="off", **keys)
    assert run.stop() == 0
    assert set((tmp_path / "heard").read_text().splitlines()) == heard
    assert "killed" not in run.err


def _pending(pid: int) -> set[int]:
    """Signals that the process has not received yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return {number for number in range(1, 65) for mask in masks if mask >> (number - 1) & 1}
