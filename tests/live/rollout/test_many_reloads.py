"""However often a reload is asked for, and when: the end is that of the last file, and is told."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import (
    HEALTH,
    QUICK,
    Load,
    Reload,
    accepted,
    is_at,
    reload,
    request_reload,
    rollouts,
    served,
    write,
)
from tests.support.live.wire import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.rollout.conftest import FirstVersion


def table(scheme: str, **keys: Any) -> dict[str, Any]:
    return {
        "app": "program:app", "scheme": scheme, "workers": 2, "access_log": "off",
        "health": HEALTH, "rollout": QUICK, **keys,
    }  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_that_changes_again_supersedes_and_no_request_fails(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme)
    load = Load(run, 1)
    write(tmp_path, "cold v2")
    run.configure({"web": table(scheme, env={"N": "2"})})
    first = Reload(run)
    run.until(lambda: is_at(run, "checking"))
    write(tmp_path, "good v3")
    run.configure({"web": table(scheme, env={"N": "3"})})
    second = reload(run)
    assert second.status == 0, second.said
    assert first.end() == 1
    assert "superseded by roll-out 2" in first.said
    # Under reuseport the kernel resets what waits at the socket of a worker that goes.
    assert load.end() == [] or scheme == "reuseport"
    assert {served(run) for _ in range(6)} == {"v3"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_however_many_reloads_come_at_once_one_runs_and_one_waits(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme)
    before = pids(run)
    load = Load(run, 1)
    write(tmp_path, "good v2")
    asked = [request_reload(run) for _ in range(10)]
    # HUP is one more.
    run.process.send_signal(signal.SIGHUP)
    # Who comes when the first one has begun anew already has his own end.
    assert {accepted(one)["rollout"] for one in asked} <= {1, 2}

    def have_all_been_heard() -> bool:
        joined = run.err.count("somebody else asks for the same")
        return joined + len(rollouts(run)) == len(asked) + 1

    run.until(have_all_been_heard)
    run.until(lambda: all(one["result"] == "succeeded" for one in rollouts(run)))
    assert len(rollouts(run)) <= 2
    # Under reuseport the kernel resets what waits at the socket of a worker that goes.
    assert load.end() == [] or scheme == "reuseport"
    assert not pids(run) & before
    assert {served(run) for _ in range(6)} == {"v2"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hup_is_a_reload_whose_end_is_in_the_log(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, workers=1)
    before = pids(run)
    write(tmp_path, "unimportable v2")
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: "roll-out 1 is aborted: web/0: " in run.err)
    assert pids(run) == before
    write(tmp_path, "good v3")
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: "roll-out 2 has succeeded; requests" in run.err)
    assert served(run) == "v3"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_good_version_heals_a_crash_loop(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    restart = {"max_restarts": 1, "backoff": "50ms", "retry_after": "1h"}
    run = first_version(scheme, workers=1, restart=restart)
    write(tmp_path, "unimportable v2")
    os.kill(run.workers()[0]["pid"], signal.SIGKILL)
    run.until(lambda: run.workers()[0]["crash_loop"])
    write(tmp_path, "good v3")
    done = reload(run)
    assert done.status == 0, done.said
    assert served(run) == "v3"
    assert not any(worker["crash_loop"] for worker in run.workers())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_reload_while_the_run_starts_is_refused_and_the_start_goes_on(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    with ThreadPoolExecutor(1) as thread:
        (tmp_path / "wait").touch()
        starting = thread.submit(first_version, scheme, workers=1)
        try:
            until(lambda: list(tmp_path.glob("run/*.sock")), "the control socket")
            (control,) = tmp_path.glob("run/*.sock")
            os.kill(int(control.stem), signal.SIGHUP)
            early = Reload(tmp_path)
            assert early.end() == 1
            assert "the run still starts" in early.said
        finally:
            (tmp_path / "wait").unlink()
        run = starting.result()
    assert served(run) == "v1"
    assert rollouts(run) == []
    write(tmp_path, "good v2")
    done = reload(run)
    assert done.status == 0, done.said
    assert served(run) == "v2"
