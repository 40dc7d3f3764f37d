"""A deploy that swaps a link comes in with the next reload, and not before.

Covers `rollout/directories`.
"""

import shutil
import signal
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.support.live.many_clients import pids
from tests.support.live.versions import (
    HEALTH,
    QUICK,
    Reload,
    ended,
    is_at,
    reload,
    rollouts,
    served,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster


@pytest.fixture
def current(tmp_path: "Path") -> "Path":
    """The link to the release that is in use."""
    for release, version in (("1", "good v1"), ("2", "good v2")):
        (tmp_path / release).mkdir()
        write(tmp_path / release, version)
    link = tmp_path / "current"
    link.symlink_to("1")
    return link


def swap(link: "Path") -> None:
    link.unlink()
    link.symlink_to("2")


def crash(run: "Cluster") -> None:
    """Kill all workers, and wait until others are there."""
    before = pids(run)
    for pid in before:
        psutil.Process(pid).send_signal(signal.SIGKILL)
    run.until(
        lambda: all(one["health"] == "up" and one["pid"] not in before for one in run.workers())
    )


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_a_worker_that_crashes_stays_in_its_release_until_a_reload(
    penstock: "Penstock", tmp_path: "Path", current: "Path", scheme: str
) -> None:
    run = penstock(
        app="program:app", scheme=scheme, health=HEALTH, rollout=QUICK, access_log="off",
        directory="current", top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    swap(current)
    crash(run)
    assert served(run) == "v1"
    done = reload(run)
    assert done.status == 0, done.said
    assert served(run) == "v2"
    crash(run)
    assert served(run) == "v2"


def test_the_link_by_which_the_shell_came_is_followed_at_a_reload(
    penstock: "Penstock", tmp_path: "Path", current: "Path"
) -> None:
    run = penstock(
        app="program:app", health=HEALTH, rollout=QUICK, access_log="off", folder=current,
        under=("env", f"PWD={current}"), top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    run.folder = current.resolve()
    # The file is found over the link, too.
    shutil.copy(tmp_path / "1/penstock.toml", tmp_path / "2")
    swap(current)
    assert served(run) == "v1"
    done = reload(run, "--run-dir", str(tmp_path / "run"))
    assert done.status == 0, done.said
    assert served(run) == "v2"


def test_a_deleted_release_is_refused_and_a_crash_has_the_present_one(
    penstock: "Penstock", tmp_path: "Path", current: "Path"
) -> None:
    run = penstock(
        app="program:app", health=HEALTH, rollout=QUICK, access_log="off",
        directory="current", top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    before = pids(run)
    current.unlink()
    done = reload(run)
    assert done.status == 2
    assert "expected a directory that exists" in done.said
    assert pids(run) == before
    current.symlink_to("2")
    (tmp_path / "1").rename(tmp_path / "gone")
    crash(run)
    assert served(run) == "v2"
    assert "is gone; it is started in" in run.err


def test_a_release_that_was_rejected_does_not_come_back_by_itself(
    penstock: "Penstock", tmp_path: "Path", current: "Path"
) -> None:
    web = {
        "app": "program:app", "workers": 2, "health": HEALTH, "rollout": {"watch": "2s"},
        "access_log": "off", "directory": "current",
    }  # fmt: skip
    run = penstock(services={"web": web}, top={"run_dir": str(tmp_path / "run")})
    before = pids(run)
    swap(current)
    first = Reload(run)
    run.until(lambda: is_at(run, "watching"))
    # So the second one does not come before the first roll-out is superseded.
    (tmp_path / "2/wait").touch()
    run.until(lambda: pids(run) - before)
    run.configure({"web": {**web, "app": "program:missing"}}, run_dir=str(tmp_path / "run"))
    second = Reload(run)
    run.until(lambda: len(rollouts(run)) == 2)
    (tmp_path / "2/wait").unlink()
    first.end()
    assert second.end() == 1, second.said
    assert ended(run, 2)["leftover"] == ""
    assert [one["result"] for one in rollouts(run)] == ["superseded", "aborted"]
    for _ in range(6):
        assert served(run) == "v1"
