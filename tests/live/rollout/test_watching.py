"""A new process takes a slot only when it is found well after its time, whoever falls meanwhile."""

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import (
    HEALTH,
    Load,
    Reload,
    is_at,
    reload,
    rollouts,
    served,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

    Start = Callable[..., Cluster]


@pytest.fixture
def start(penstock: "Penstock", tmp_path: "Path") -> "Start":
    """A run of the first version."""

    def make(scheme: str, **keys: Any) -> "Cluster":
        write(tmp_path, "good v1")
        given = {"workers": 2, "health": HEALTH, "access_log": "off", **keys}
        proxies = {"proxies": 2} if scheme in ("ports", "handoff") else {}
        top = {"run_dir": str(tmp_path / "run"), **proxies}
        run = penstock(app="program:app", scheme=scheme, top=top, **given)
        run.may_trace = True
        return run

    return make


def processes(run: "Cluster", slot: int) -> dict[int, dict[str, Any]]:
    """Those of a slot, by pid."""
    worker = run.workers()[slot]
    return {process["pid"]: process for process in worker["processes"]}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_version_that_is_well_for_a_second_is_aborted_with_the_times_that_nobody_has_set(
    start: "Start", tmp_path: "Path", scheme: str
) -> None:
    run = start(scheme, health={"path": "/healthz"}, rollout={"watch": "5s"})
    before = pids(run)
    load = Load(run)
    write(tmp_path, "brief v2")
    going = Reload(run)
    assert going.end() == 1, going.said
    assert "database is away" in going.said
    assert load.end() == []
    assert pids(run) == before
    assert rollouts(run)[-1]["result"] == "aborted"


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_a_good_version_does_not_wait_for_its_next_check(
    start: "Start", tmp_path: "Path", scheme: str
) -> None:
    run = start(scheme, health={"path": "/healthz", "interval": "1h"})
    before = pids(run)
    write(tmp_path, "good v2")
    done = reload(run)
    assert done.status == 0, done.said
    assert not pids(run) & before
    assert served(run) == "v2"


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_a_proxy_that_is_started_again_meanwhile_is_asked_for_its_check(
    start: "Start", tmp_path: "Path", scheme: str
) -> None:
    run = start(scheme, health={"path": "/healthz", "interval": "500ms", "fall": 99})
    write(tmp_path, "short v2")
    going = Reload(run)
    run.until(lambda: is_at(run, "watching"))
    (tmp_path / "fall").touch()
    run.until(lambda: is_at(run, "confirming"))
    first = run.status()["proxies"][0]["pid"]
    os.kill(first, signal.SIGKILL)
    run.until(lambda: run.status()["proxies"][0]["pid"] not in (first, None))
    assert is_at(run, "confirming"), "its checks still fail"
    (tmp_path / "fall").unlink()
    assert going.end() == 0, going.said
    assert served(run) == "v2"


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_another_worker_that_hangs_meanwhile_is_replaced_after_the_one_that_is_watched(
    start: "Start", tmp_path: "Path", scheme: str
) -> None:
    run = start(
        scheme, liveness={"timeout": "3s"}, timeouts={"stop": "5s"}, rollout={"watch": "1h"}
    )
    hung = run.workers()[1]["pid"]
    write(tmp_path, "short v2")
    going = Reload(run)
    run.until(lambda: is_at(run, "watching"))
    os.kill(hung, signal.SIGSTOP)
    run.until(lambda: "web/1 is replaced after web/0" in run.err)
    assert is_at(run, "watching")
    assert {slot: len(processes(run, slot)) for slot in (0, 1)} == {0: 2, 1: 1}
    write(tmp_path, "good v3")
    (tmp_path / "fall").touch()
    assert going.end() == 1, going.said
    run.until(lambda: run.workers()[1]["pid"] not in (hung, None))
    run.until(lambda: len(processes(run, 1)) == 1)
    assert {served(run) for _ in range(20)} <= {"v1", "v3"}


@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_an_old_process_that_is_started_again_is_not_picked_beside_its_canary(
    start: "Start", tmp_path: "Path", scheme: str
) -> None:
    run = start(scheme, rollout={"watch": "0s", "canary": "1h"})
    write(tmp_path, "good v2")
    going = Reload(run)
    run.until(lambda: is_at(run, "canary"))
    (step,) = [one for one in rollouts(run)[-1]["steps"] if one["state"] == "canary"]
    slot, first, canary = step["slot"], step["old_pid"], step["new_pid"]
    write(tmp_path, "good v1")
    os.kill(first, signal.SIGKILL)
    run.until(lambda: run.workers()[slot]["pid"] not in (first, None))
    second = run.workers()[slot]["pid"]
    run.until(lambda: run.workers()[slot]["state"] == "ready")
    checks = run.metric("penstock_health_checks_total", result="ok")
    run.until(lambda: run.metric("penstock_health_checks_total", result="ok") > checks + 12)
    assert processes(run, slot)[second]["health"] == "down"
    assert str(second) not in askers(run)
    # When the canary fails the slot is the old version's again.
    os.kill(canary, signal.SIGKILL)
    assert going.end() == 1, going.said
    run.until(lambda: str(second) in askers(run))


def askers(run: "Cluster") -> Counter[str]:
    """The pids that have answered, and how often."""
    answers = (run.get()[1] for _ in range(60))
    return Counter(answer.partition("(pid ")[2].rstrip(")") for answer in answers)
