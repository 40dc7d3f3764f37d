"""Another access log, or one whose disk is full, costs no request and no roll-out its end."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import SCHEMES
from tests.support.live.versions import HEALTH, QUICK, Load, reload, rollouts, served, write
from tests.support.live.websocket import WebSocket

if TYPE_CHECKING:
    from tests.live.rollout.conftest import FirstVersion
    from tests.support.live.cluster import Cluster

FULL = "/dev/full"
"""Can be opened, and has no room for a byte."""


def changed(run: "Cluster", scheme: str, log: str) -> None:
    """Reload with another log; it has to succeed."""
    table: dict[str, Any] = {
        "app": "program:app", "scheme": scheme, "workers": 2, "health": HEALTH, "rollout": QUICK,
        "timeouts": {"stop": "1s"},
    }  # fmt: skip
    run.configure({"web": {**table, "access_log": log}})
    done = reload(run)
    assert done.status == 0, done.said


def targets(path: Path) -> set[str]:
    """Of all requests in an access log."""
    if not path.exists():
        return set()
    # A last line may be written only in part yet.
    *lines, _ = path.read_text().split("\n")
    return {json.loads(line)["target"] for line in lines}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lines_go_to_the_new_file_and_connections_live_on(
    first_version: "FirstVersion", tmp_path: Path, scheme: str
) -> None:
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    run = first_version(scheme, access_log=str(one), timeouts={"stop": "1s"})
    open_before = WebSocket(run) if scheme == "ports" else None
    run.get("/?before")
    changed(run, scheme, str(two))
    run.get("/?after")
    run.until(lambda: "/?after" in targets(two))
    run.until(lambda: "/?before" in targets(one))
    assert "/?after" not in targets(one)
    assert "/?before" not in targets(two)
    if open_before is not None:
        # Elsewhere the log is the worker's own, so there are new ones.
        open_before.echo(b"its line is written in the end")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_full_disk_under_the_log_stops_neither_requests_nor_a_roll_out(
    first_version: "FirstVersion", tmp_path: Path, scheme: str
) -> None:
    run = first_version(scheme, access_log=FULL, timeouts={"start": "3s", "stop": "1s"})
    load = Load(run, 1)
    write(tmp_path, "good v2")
    good = reload(run)
    assert good.status == 0, good.said
    write(tmp_path, "unimportable v3")
    bad = reload(run)
    assert bad.status == 1, bad.said
    assert "flux_capacitor" in bad.said
    # Under reuseport the kernel resets what waits at the socket of a worker that goes.
    assert load.end() == [] or scheme == "reuseport"
    assert [one["result"] for one in rollouts(run)] == ["succeeded", "aborted"]
    assert served(run) == "v2"
    # And a log with room is written again.
    write(tmp_path, "good v4")
    changed(run, scheme, str(tmp_path / "roomy.log"))
    run.get("/?after")
    run.until(lambda: "/?after" in targets(tmp_path / "roomy.log"))
