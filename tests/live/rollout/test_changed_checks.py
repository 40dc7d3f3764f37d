"""Other checks come with the new version, or have to suit the workers that are there."""

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import pids
from tests.support.live.versions import HEALTH, QUICK, Load, reload, rollouts, served, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.rollout.conftest import FirstVersion

UNKNOWN = {**HEALTH, "path": "/only-new"}
"""A path that the first version answers with 404."""
FALLEN = "failed 2 checks in a row"
"""What the log says of a worker that has gone down."""
OF_V2 = """
app_of_v1 = app

def app():
    made = app_of_v1()
    made.router.add_get("/only-new", health)
    return made
"""


def table(scheme: str, **keys: Any) -> dict[str, Any]:
    return {
        "app": "program:app", "scheme": scheme, "workers": 2, "access_log": "off",
        "health": HEALTH, "rollout": QUICK, **keys,
    }  # fmt: skip


@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_a_version_with_a_check_of_its_own_comes_in_and_no_worker_goes_down(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    # Long enough for the old workers to fall, if they were checked in the new way.
    watched = {"rollout": {"watch": "1s"}}
    run = first_version(scheme, **watched)
    before = pids(run)
    load = Load(run)
    write(tmp_path, "good v2")
    with (tmp_path / "program.py").open("a") as program:
        program.write(OF_V2)
    run.configure({"web": table(scheme, **watched, health=UNKNOWN, env={"RELEASE": "2"})})
    done = reload(run)
    assert done.status == 0, done.said
    assert load.end() == []
    assert not pids(run) & before
    assert served(run) == "v2"
    assert FALLEN not in run.said
    assert "too few workers" not in run.said


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_a_check_that_the_workers_do_not_pass_is_taken_back(
    first_version: "FirstVersion", scheme: str
) -> None:
    run = first_version(scheme)
    before = pids(run)
    load = Load(run)
    run.configure({"web": table(scheme, health=UNKNOWN)})
    done = reload(run)
    assert done.status == 1, done.said
    assert "does not pass its check by the new settings: HTTP 404" in done.said
    assert load.end() == []
    (last,) = rollouts(run)
    assert (last["result"], last["steps"]) == ("aborted", [])
    assert pids(run) == before
    assert run.get("/readyz", "admin")[0] == 200
    assert FALLEN not in run.said
    run.configure({"web": table(scheme)})
    assert reload(run).status == 0
