"""One worker that is replaced by its name gets what is in force: nothing is read or resolved anew.

Covers `rollout/versions`.
"""

import json
import socket
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.versions import HEALTH, QUICK, Reload, reload, rollouts, served, write
from tests.support.live.websocket import WebSocket
from tests.support.live.wire import WAIT_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster


class _Control(HTTPConnection):
    """A connection to the control socket of a run."""

    def __init__(self, run: "Cluster") -> None:
        super().__init__("localhost", timeout=WAIT_S)
        (self._path,) = (run.folder / "run").glob("*.sock")

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(str(self._path))


def replace(run: "Cluster", worker: str) -> tuple[int, Any]:
    connection = _Control(run)
    try:
        connection.request("POST", f"/workers/{worker}/replace")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def table(scheme: str = "ports", **keys: Any) -> dict[str, Any]:
    return {
        "app": "program:app", "scheme": scheme, "workers": 2, "access_log": "off",
        "health": HEALTH, "rollout": QUICK, **keys,
    }  # fmt: skip


def ended(run: "Cluster", number: int) -> str:
    """The result of this roll-out; empty: it has not ended."""
    return next((one["result"] for one in rollouts(run) if one["number"] == number), "")


@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_one_worker_that_is_replaced_is_of_the_release_in_force(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    for release, version in (("1", "good v1"), ("2", "good v2")):
        (tmp_path / release).mkdir()
        write(tmp_path / release, version)
    link = tmp_path / "current"
    link.symlink_to("1")
    # A canary would take an hour.
    keys = table(scheme, directory="current", rollout={**QUICK, "canary": "1h"})
    run = penstock(services={"web": keys}, top={"run_dir": str(tmp_path / "run")})
    before = [worker["pid"] for worker in run.workers()]
    link.unlink()
    link.symlink_to("2")
    assert replace(run, "web/0")[0] == 202
    run.until(lambda: ended(run, 1))
    assert ended(run, 1) == "succeeded"
    after = [worker["pid"] for worker in run.workers()]
    assert (after[0] != before[0], after[1]) == (True, before[1])
    assert {served(run) for _ in range(8)} == {"v1"}
    # Nor does a link that leads nowhere hinder it.
    link.unlink()
    assert replace(run, "web/0")[0] == 202
    run.until(lambda: ended(run, 2))
    assert ended(run, 2) == "succeeded"


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_a_worker_that_a_reload_takes_away_is_not_replaced(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    write(tmp_path, "good v1")
    both = {"api": table(scheme), "web": table(scheme, timeouts={"stop": "3s"})}
    run = penstock(services=both, top={"run_dir": str(tmp_path / "run")})
    run.may_trace = True
    kept = WebSocket(run)
    run.configure({"api": table(scheme, env={"N": "2"})})
    going = Reload(run)
    run.until(lambda: rollouts(run) and rollouts(run)[-1]["state"] != "waiting")
    status, said = replace(run, "web/0")
    assert status == 409, said
    assert "web/0: it is being removed" in said["error"]
    run.until(lambda: rollouts(run)[-1]["state"] == "finishing")
    status, _ = replace(run, "web/0")
    assert status in (404, 409)
    kept.wire.close()
    assert going.end() == 0, going.said
    # It comes back at once, and everything is as if nothing had been.
    run.configure(both)
    done = reload(run)
    assert done.status == 0, done.said
    host, _, port = run.status()["services"]["web"]["listen"].rpartition(":")
    assert run.get_from((host, int(port)))[0] == 200
    assert "a bug of penstock" not in run.err
