"""What leads to a process is made before it, and nothing of it is left when it cannot be."""

import os
import resource
from typing import Any, cast

import pytest

from penstock_supervisor.processes import SpawnError
from penstock_supervisor.schemes import ChildPlan
from penstock_supervisor.services import Restart
from penstock_supervisor.spawning import spawn

LINKS = 64


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 — names, not paths


@pytest.mark.parametrize("most", [0, 70, 120])
def test_a_process_for_which_there_are_no_descriptors_is_not_started(most: int) -> None:
    plan = ChildPlan(
        role="worker", service="web", slot=0, scheme="handoff", argv=("true",), environment={},
        ours=True, links=LINKS, start_s=1, stop_s=1, restart=Restart(),
    )  # fmt: skip
    before = descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        with pytest.raises(SpawnError, match="for it: Too many open files") as failure:
            # It does not come to what is done with the run.
            spawn(plan, (), cast("Any", None), lambda _: None)
        assert failure.value.passing
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert descriptors() == before
