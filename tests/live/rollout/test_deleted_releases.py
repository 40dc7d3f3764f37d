"""A release whose directory is deleted: what runs serves on, and a reload says what is missing."""

import shutil
from typing import TYPE_CHECKING

import pytest
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import HEALTH, QUICK, Load, reload, served, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_reload_without_a_release_changes_nothing_and_one_with_another_deploys_it(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, f"good {name}")
    current = tmp_path / "current"
    current.symlink_to("one")
    run = penstock(
        app="program:app", scheme=scheme, workers=2, health=HEALTH, rollout=QUICK,
        access_log="off", directory="./current", top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    before = pids(run)
    load = Load(run, 1)
    shutil.rmtree(tmp_path / "one")
    refused = reload(run)
    assert refused.status == 2, refused.said
    assert "current" in refused.said
    assert pids(run) == before
    current.unlink()
    current.symlink_to("two")
    done = reload(run)
    assert done.status == 0, done.said
    # Under reuseport the kernel resets what waits at the socket of a worker that goes.
    assert load.end() == [] or scheme == "reuseport"
    assert not pids(run) & before
    assert {served(run) for _ in range(6)} == {"two"}
