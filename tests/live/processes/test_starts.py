"""What a start lacks is said in one line: no traceback, and nothing is left."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.support.live.many_clients import DEMO
from tests.support.live.plain_server import SERVER
from tests.support.live.wire import WAIT_S, until

if TYPE_CHECKING:
    from tests.live.conftest import Penstock

SERVES = (
    SERVER
    + """
server.serve_forever()
"""
)
DAEMON = """
import os, signal, socket, time
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
reader, writer = os.pipe()
if os.fork():
    os.read(reader, 1)
    os._exit(0)
os.setsid()
open("daemon", "w").write(str(os.getpid()))
os.write(writer, b"x")
while True:
    signal.pause()
"""
OPTIONS = ("-w", "2", "-b", "127.0.0.1:0", "--admin", "", "--run-dir", "")


def failed(folder: Path, *words: str, script: str = 'exec "$@"') -> str:
    """What a run says that does not start."""
    program = [sys.executable, "-m", "penstock_supervisor", "run", *OPTIONS, "--user", "root"]
    if os.geteuid() != 0:
        program = program[:-2]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *program, *words],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("limit", [20, 64])
def test_a_low_limit_of_descriptors_is_one_line(tmp_path: Path, limit: int) -> None:
    said = failed(tmp_path, DEMO, script=f'ulimit -n {limit}; exec "$@"')
    assert said.startswith(f"penstock: the limit of open files is {limit}, and this run needs ")


@pytest.mark.root
def test_a_missing_proc_is_one_line(tmp_path: Path) -> None:
    said = failed(
        tmp_path,
        DEMO,
        script="""exec unshare -m sh -c 'mount -t tmpfs none /proc; exec "$@"' sh "$@" """,
    )
    assert "penstock: /proc is not mounted here" in said


@pytest.mark.parametrize("program", [[DEMO], ["--", sys.executable, "-c", SERVES]])
def test_a_deleted_start_directory_is_one_line(tmp_path: Path, program: list[str]) -> None:
    said = failed(tmp_path, *program, script='mkdir d; cd d; rmdir ../d; exec "$@"')
    assert "service.web.directory: the directory that this was started in is deleted" in said


def test_a_directory_that_was_replaced_is_entered_by_its_name(
    penstock: "Penstock", tmp_path: Path
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    text = (
        "import os\nfrom aiohttp import web\n"
        "async def which(_): return web.Response(text='{}')\n"
        "app = web.Application()\napp.router.add_get('/', which)\n"
    )
    (folder / "program.py").write_text(text.format("old"))
    run = penstock(folder=folder, app="program:app", workers=1, access_log="off")
    assert run.get() == (200, "old")
    folder.rename(tmp_path / "before")
    run.folder = tmp_path / "before"
    folder.mkdir()
    (folder / "program.py").write_text(text.format("new"))
    # The file is read anew as well, by its name.
    shutil.copy(tmp_path / "before" / "penstock.toml", folder)
    run.process.send_signal(1)
    run.until(lambda: "has succeeded" in run.err)
    assert run.get() == (200, "new")


def test_a_command_that_goes_into_the_background_is_said_to(tmp_path: Path) -> None:
    (tmp_path / "daemon.py").write_text(DAEMON)
    try:
        said = failed(tmp_path, "-w", "1", "--", sys.executable, "daemon.py")
    finally:
        psutil.Process(int((tmp_path / "daemon").read_text())).kill()
    assert "exited with status 0" in said
    assert ": it went into the background, where python" in said
    assert 'a server has to run in the foreground here, as nginx does with "daemon off;"' in said


def test_a_command_that_ends_at_once_without_an_error_is_told_what_is_wanted(
    tmp_path: Path,
) -> None:
    said = failed(tmp_path, "--", "true")
    assert "a server has to run in the foreground here" in said.splitlines()[-1]


@pytest.mark.parametrize("program", [{"app": DEMO}, {"command": ["python3", "server.py"]}])
def test_a_stray_that_takes_a_port_costs_the_slot_its_port_and_nothing_else(
    penstock: "Penstock", tmp_path: Path, program: dict[str, object]
) -> None:
    (tmp_path / "server.py").write_text(SERVES)
    run = penstock(
        **program, workers=2, restart={"backoff": "2s", "max_restarts": 1}, access_log="off"
    )
    first = run.workers()[0]
    host, _, port = first["address"].rpartition(":")
    psutil.Process(first["pid"]).kill()
    with closing(socket.socket()) as stray:
        stray.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        until(lambda: _bind(stray, (host, int(port))))
        stray.listen()
        run.until(lambda: run.workers()[0]["pid"] not in (None, first["pid"]))
        run.until(lambda: run.workers()[0]["health"] == "up")
        assert run.workers()[0]["address"] != first["address"]
        assert all(run.get()[0] == 200 for _ in range(4))
        assert f"web/0: its port {port} is taken by " in run.err
        assert f"(pid {os.getpid()}); it gets " in run.err
    assert "is in a crash loop" not in run.err


def test_a_range_that_is_used_up_is_waited_for_with_the_name_of_who_has_it(
    penstock: "Penstock", tmp_path: Path
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        number = found.getsockname()[1]
    run = penstock(
        app=DEMO, workers=1, worker_ports=f"{number}-{number}",
        restart={"backoff": "2s", "max_restarts": 1},
    )  # fmt: skip
    psutil.Process(run.workers()[0]["pid"]).kill()
    with closing(socket.socket()) as stray:
        stray.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        until(lambda: _bind(stray, ("127.0.0.1", number)))
        stray.listen()
        run.until(lambda: f"port {number} of web/0 is taken by " in run.err)
    run.until(lambda: run.workers()[0]["health"] == "up")
    assert "is in a crash loop" not in run.err


def _bind(sock: socket.socket, address: tuple[str, int]) -> bool:
    try:
        sock.bind(address)
    except OSError:
        return False
    return True
