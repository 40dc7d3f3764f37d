"""A canary is compared with the others: it goes on, or is rolled back and says why."""

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import Load, ended, reload, served, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.rollout.conftest import FirstVersion
    from tests.support.live.cluster import Cluster

CLIENTS = 12
"""Enough that a version that takes a second for each answer is asked often in that time."""
WORSE = {"slow v2": "longer than", "failing v2": "requests failed"}


def table(scheme: str, canary: str) -> dict[str, Any]:
    # The proxy itself would soon ask a worker that fails no more.
    ejection = {"ejection": {"failures": 0, "share": "0%"}}
    has_proxy = scheme in ("ports", "handoff")
    return {"rollout": {"watch": "0s", "canary": canary}, **(ejection if has_proxy else {})}


def assert_all_are_new(run: "Cluster", before: set[int]) -> None:
    assert not pids(run) & before
    assert {served(run) for _ in range(8)} == {"v2"}


@pytest.mark.parametrize("version", WORSE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_canary_that_is_worse_is_rolled_back(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str, version: str
) -> None:
    run = first_version(scheme, **table(scheme, "10s"))
    before = pids(run)
    write(tmp_path, version)
    load = Load(run, CLIENTS if version == "slow v2" else 2)
    done = reload(run)
    load.end()
    assert done.status == 1, done.said
    assert "web/0, the canary: " in done.said
    assert WORSE[version] in done.said
    assert ended(run)["result"] == "rolled_back"
    assert run.metric("penstock_rollouts_total", result="rolled_back") == 1
    assert pids(run) == before
    assert {served(run) for _ in range(4)} == {"v1"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_canary_that_is_no_worse_lets_the_roll_out_go_on(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, **table(scheme, "3s"))
    before = pids(run)
    write(tmp_path, "good v2")
    # On a busy machine, too, the canary has to be asked a hundred times.
    load = Load(run, CLIENTS)
    done = reload(run)
    # Under reuseport the kernel resets what waits at the socket of a worker that goes.
    assert load.end() == [] or scheme == "reuseport"
    assert done.status == 0, done.said
    assert "web/0, the canary: 0 of its " in done.said
    assert "the others' " in done.said
    assert_all_are_new(run, before)


@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_a_canary_that_nobody_asks_is_no_worse(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, **table(scheme, "300ms"))
    before = pids(run)
    write(tmp_path, "good v2")
    done = reload(run)
    assert done.status == 0, done.said
    verdict = "web/0, the canary: too few requests: 0 of the new version"
    assert verdict in done.said
    assert verdict in run.err
    assert ended(run)["verdicts"][0].startswith(verdict)
    assert_all_are_new(run, before)


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_where_there_is_nobody_to_compare_it_with_there_is_no_canary(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, workers=1, **table(scheme, "1h"))
    before = pids(run)
    write(tmp_path, "good v2")
    done = reload(run)
    assert done.status == 0, done.said
    assert_all_are_new(run, before)
