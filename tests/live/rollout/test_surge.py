"""Several workers are replaced at a time, and never more; as many serve as there have to be."""

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import Load, Reload, rollouts, served, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.rollout.conftest import FirstVersion

WORKERS, SURGE = 4, 2
BESIDE = ("starting", "checking", "watching", "draining")
"""States in which a step has two processes, or is about to."""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_more_than_the_surge_are_replaced_at_a_time_and_all_others_serve(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    rollout = {"surge": SURGE, "watch": "200ms"}
    run = first_version(scheme, workers=WORKERS, rollout=rollout)
    before = pids(run)
    load = Load(run, 1)
    write(tmp_path, "good v2")
    going = Reload(run)
    processes, together = [], []

    def is_over() -> bool:
        workers: list[dict[str, Any]] = run.workers()
        processes.append(sum(len(worker["processes"]) for worker in workers))
        assert [worker["state"] for worker in workers] == ["ready"] * WORKERS
        assert {worker["health"] for worker in workers} == {"up"}
        steps = [step for one in rollouts(run) for step in one["steps"]]
        together.append(sum(step["state"] in BESIDE for step in steps))
        return any(one["result"] for one in rollouts(run))

    run.until(is_over)
    assert going.end() == 0, going.said
    # Under reuseport the kernel resets what waits at the socket of a worker that goes.
    assert load.end() == [] or scheme == "reuseport"
    assert min(processes) >= WORKERS
    assert max(processes) <= WORKERS + SURGE
    assert max(together) == SURGE
    assert not pids(run) & before
    assert {served(run) for _ in range(8)} == {"v2"}
