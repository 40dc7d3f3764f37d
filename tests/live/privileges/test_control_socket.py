"""Root controls a run over its control socket, and other users cannot connect to it.

Covers `cli/control`.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.support.live.unprivileged import (
    AS_NOBODY,
    DEMO,
    NOBODY,
    Words,
    pids,
    run_penstock,
)

pytestmark = pytest.mark.root


def test_status_reload_and_stop_work_over_the_control_socket(penstock: Any, folder: Path) -> None:
    place = str(folder / "run")
    assert run_penstock("status", "--run-dir", place).returncode == 3
    run = penstock("--run-dir", place, folder=folder, app=DEMO)
    done = run_penstock("status", "--run-dir", place, "--json")
    status = json.loads(done.stdout)
    assert (done.returncode, status["pid"], status["ready"]) == (0, run.process.pid, True)
    before = pids(run, "worker")
    done = run_penstock("reload", "--run-dir", place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("roll-out 1 succeeded: the new version serves\n")
    assert not pids(run, "worker") & before
    done = run_penstock("stop", "--run-dir", place, "--json")
    assert (done.returncode, json.loads(done.stdout)["pid"]) == (0, run.process.pid)
    assert run.ended() == 0
    assert not (folder / "run").exists()
    done = run_penstock("stop", "--run-dir", place)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"penstock: not running: no run in {place}\n"


def test_with_two_runs_a_command_must_name_one(penstock: Any, commons: Path, folder: Path) -> None:
    place = str(folder / "run")
    one = penstock("--run-dir", place, folder=folder, app=DEMO, access_log="off")
    beside = Path(tempfile.mkdtemp(dir=commons))
    other = penstock("--run-dir", place, folder=beside, app=DEMO, access_log="off")
    done = run_penstock("stop", "--run-dir", place)
    assert (done.returncode, "name one with --pid" in done.stderr) == (1, True)
    assert run_penstock("stop", "--run-dir", place, "--pid", str(other.process.pid)).returncode == 0
    assert other.ended() == 0
    assert run_penstock("status", "--run-dir", place).stdout.startswith("penstock ")
    assert one.process.poll() is None


def test_other_users_cannot_connect_to_the_control_socket(
    penstock: Any, folder: Path, under: Words
) -> None:
    place = folder / "run"
    run = penstock("--run-dir", str(place), folder=folder, under=under, app=DEMO,
                   top={"user": "nobody"})  # fmt: skip
    (sock,) = filter(Path.is_socket, place.iterdir())
    assert (place.stat().st_uid, sock.stat().st_mode & 0o777) == (0, 0o600)
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    words = (*under, *AS_NOBODY, sys.executable, "-c", code, str(sock))
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr
    # Not even if the directory were open.
    place.chmod(0o755)
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr
    assert run.get("/")[0] == 200


def test_silent_clients_of_the_control_socket_do_not_block_others(
    penstock: Any, folder: Path
) -> None:
    place = folder / "run"
    run = penstock("--run-dir", str(place), folder=folder, app=DEMO)
    (path,) = filter(Path.is_socket, place.iterdir())
    held = []
    for _ in range(40):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sock.send(b"POST /st")
        held.append(sock)
    assert run_penstock("status", "--run-dir", str(place)).returncode == 0
    assert run.get("/")[0] == 200
    assert run_penstock("stop", "--run-dir", str(place)).returncode == 0
    assert run.ended() == 0
    for sock in held:
        sock.close()


def test_a_directory_of_another_user_is_refused_before_anything_starts(folder: Path) -> None:
    place = folder / "run"
    place.mkdir(0o700)
    os.chown(place, NOBODY.pw_uid, NOBODY.pw_gid)
    done = run_penstock("run", "--admin", "", "-b", "127.0.0.1:0", "--run-dir", str(place))
    line = f"penstock: run_dir: {place}: belongs to uid {NOBODY.pw_uid}, and we are uid 0"
    assert (done.returncode, line in done.stderr) == (1, True), done.stderr
