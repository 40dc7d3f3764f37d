"""Who has broken or deleted the file of a run can still ask it and stop it, and is told."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.live.many_clients import DEMO
from tests.support.live.wire import WAIT_S

if TYPE_CHECKING:
    from tests.live.conftest import Penstock


def penstock_command(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "penstock_supervisor", *words],
        cwd=folder, capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("broken", ["[service.web\n", 'workers = 9999\nx = "y"\n', "\xff"])
def test_status_and_stop_work_with_a_file_that_is_broken_and_reload_says_what_is_wrong(
    penstock: "Penstock", tmp_path: Path, broken: str
) -> None:
    run = penstock(app=DEMO, workers=1, top={"run_dir": str(tmp_path / "run")})
    file = tmp_path / "penstock.toml"
    file.write_text(f'run_dir = "{tmp_path}/run"\n{broken}', encoding="latin-1")
    run.look()
    for word, status in (("status", 0), ("reload", 2), ("stop", 0)):
        done = penstock_command(tmp_path, word, "-c", "penstock.toml")
        assert done.returncode == status, done.stderr
        assert bool(done.stdout) == (status == 0)
        assert (f"penstock: {file}: " in done.stderr) == (status == 2)
    assert run.ended() == 0


def test_a_file_that_is_gone_means_the_usual_directories(tmp_path: Path) -> None:
    done = penstock_command(tmp_path, "status", "-c", "gone.toml", "--pid", "1")
    assert done.returncode == 3
    note, answer = done.stderr.splitlines()
    assert note == (
        "penstock: gone.toml: No such file or directory; "
        "looking in the directories of runs that have no run_dir"
    )
    assert answer.startswith("penstock: not running: no run with pid 1 in ")
