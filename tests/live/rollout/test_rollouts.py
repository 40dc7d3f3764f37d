"""A roll-out replaces workers without losing a request, and a bad version changes nothing.

Covers `rollout/versions` and `observability/rollout_measurements`.
"""

import re
from typing import TYPE_CHECKING

import pytest
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import (
    QUICK,
    Load,
    Reload,
    is_at,
    reload,
    rollouts,
    served,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.live.rollout.conftest import FirstVersion
    from tests.support.live.cluster import Cluster


def result(run: "Cluster") -> str:
    return str(rollouts(run)[-1]["result"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_good_version_takes_over_under_load_and_no_request_fails(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme)
    before = pids(run)
    load = Load(run)
    write(tmp_path, "good v2")
    done = reload(run)
    assert load.end() == []
    assert done.status == 0, done.said
    assert "failed 0" in done.said
    assert not pids(run) & before
    assert served(run) == "v2"
    assert run.metric("penstock_rollouts_total", result="succeeded") == 1
    assert run.metric("penstock_config_last_reload_successful") == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_old_worker_serves_until_the_new_one_has_warmed_up(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme)
    before = pids(run)
    load = Load(run)
    write(tmp_path, "cold v2")
    going = Reload(run)
    run.until(lambda: is_at(run, "checking"))
    assert served(run) == "v1"
    assert pids(run) == before
    (tmp_path / "warm").touch()
    assert going.end() == 0, going.said
    assert load.end() == []
    assert served(run) == "v2"


BAD = {
    "unimportable v2": "no module named flux_capacitor",
    "never-ready v2": "not ready within",
    "hungry v2": "MemoryError",
    "unhealthy v2": "503",
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bad_versions_are_aborted_and_the_old_workers_stay(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, timeouts={"start": "4s", "stop": "5s"})
    before = pids(run)
    load = Load(run)
    for number, (version, reason) in enumerate(BAD.items(), 1):
        write(tmp_path, version)
        done = reload(run)
        assert done.status == 1, done.said
        assert reason in done.said
        assert f"roll-out {number} is aborted" in run.err
        assert run.metric("penstock_rollouts_total", result="aborted") == number
        assert_nothing_has_happened(run, before)
    # And a good one goes through afterwards.
    write(tmp_path, "good v3")
    again = reload(run)
    assert again.status == 0, again.said
    assert load.end() == [] or scheme == "reuseport"
    assert served(run) == "v3"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_version_that_falls_while_it_is_watched_is_aborted(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, rollout={"watch": "1h"})
    before = pids(run)
    load = Load(run)
    write(tmp_path, "short v2")
    going = Reload(run)
    run.until(lambda: is_at(run, "watching"))
    (tmp_path / "fall").touch()
    assert going.end() == 1, going.said
    assert "in the rotation" in going.said
    assert load.end() == [] or scheme == "reuseport"
    assert_nothing_has_happened(run, before)


def assert_nothing_has_happened(run: "Cluster", before: set[int]) -> None:
    assert pids(run) == before
    assert {worker["restarts"].get("exit", 0) for worker in run.workers()} == {0}
    assert not any(worker["crash_loop"] for worker in run.workers())
    assert result(run) == "aborted"
    assert run.metric("penstock_config_last_reload_successful") == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_version_that_crashes_at_its_first_request_hurts_one_worker_at_a_time(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, workers=3, rollout={"watch": "1h"})
    before = pids(run)
    write(tmp_path, "deadly v2")
    going = Reload(run)
    load = Load(run)
    assert going.end() == 1, going.said
    bad = load.end()
    assert "exited with status 7" in going.said
    assert "cannot serve this" in going.said
    assert pids(run) == before
    if scheme == "ports":
        assert bad == [], "the proxy asks another worker"
    # One process of the new version was there, and it served one request, and never another.
    assert run.metric("penstock_child_exits_total", status="7") == 1
    assert result(run) == "aborted"


def test_one_whose_first_requests_fail_is_ejected_and_that_is_the_reason(
    first_version: "FirstVersion", tmp_path: "Path"
) -> None:
    run = first_version("ports", rollout={"watch": "1h"})
    write(tmp_path, "failing v2")
    going = Reload(run)
    load = Load(run)
    status = going.end()
    load.end()
    assert status == 1, going.said
    why = (
        r"it was in the rotation for [0-9.]+ s: its requests failed \(5 failures in a row\), so it "
    )
    assert re.search(f"{why}was ejected", going.said), going.said


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_a_client_that_asks_for_what_fails_under_both_versions_aborts_nothing(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, ejection={"eject_for": "1s"}, rollout={"watch": "2s"})
    load = Load(run, path=b"/broken")
    run.until(lambda: scheme == "handoff" or "is ejected" in run.err)
    write(tmp_path, "good v2")
    done = reload(run)
    assert load.end(), "all of them fail"
    assert done.status == 0, done.said
    assert served(run) == "v2"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_old_version_that_does_not_leave_is_killed_and_the_roll_out_goes_on(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, workers=1, timeouts={"stop": "2s"})
    write(tmp_path, "stubborn v2")
    assert reload(run).status == 0
    stubborn = pids(run)
    write(tmp_path, "good v3")
    done = reload(run)
    assert done.status == 0, done.said
    assert not pids(run) & stubborn
    assert served(run) == "v3"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_second_reload_is_not_swallowed(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, workers=3)
    write(tmp_path, "cold v2")
    first = Reload(run)
    run.until(lambda: is_at(run, "checking"))
    write(tmp_path, "good v3")
    second = Reload(run)
    run.until(lambda: "somebody else asks for the same" in run.err)
    (tmp_path / "warm").touch()
    assert first.end() == 0, first.said
    assert second.end() == 0, second.said
    for _ in range(12):
        assert served(run) == "v3"
    assert len(rollouts(run)) == 1


def test_only_the_workers_of_a_service_that_is_named_are_replaced(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    write(tmp_path, "good v1")
    table = {"app": "program:app", "workers": 2, "rollout": QUICK, "access_log": "off"}
    run = penstock(services={"web": table, "api": table}, top={"run_dir": str(tmp_path / "run")})
    web = {worker["pid"] for worker in run.workers("web")}
    api = {worker["pid"] for worker in run.workers("api")}
    write(tmp_path, "good v2")
    assert reload(run, "api").status == 0
    assert {worker["pid"] for worker in run.workers("web")} == web
    assert not {worker["pid"] for worker in run.workers("api")} & api
    unknown = reload(run, "apl")
    assert (unknown.status, "apl" in unknown.said) == (2, True)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_slot_has_at_most_two_ports_and_keeps_its_number(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme)
    seen: dict[int, set[str]] = {}
    for number in range(3):
        for worker in run.workers():
            seen.setdefault(worker["slot"], set()).add(str(worker["address"]))
        write(tmp_path, f"good v{number}")
        assert reload(run).status == 0
    assert sorted(seen) == [0, 1]
    for addresses in seen.values():
        assert len(addresses) == (2 if scheme == "ports" else 1)
