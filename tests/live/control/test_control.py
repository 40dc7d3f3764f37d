"""A real curl can change a run over the control socket, and not over the admin port."""

import http.client
import json
import subprocess
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.wire import WAIT_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

ORDERS = (
    "/reload", "/stop", "/stop?now=1", "/reopen", "/workers/web/0/replace",
    "/workers/web/0/terminate", "/workers/web/0/kill",
)  # fmt: skip


@pytest.fixture
def run(penstock: "Penstock", tmp_path: "Path") -> "Cluster":
    top = {"run_dir": str(tmp_path / "run")}
    return penstock(top=top, app="penstock_worker.demo:app", workers=2, restart={"backoff": "50ms"})


def order(run: "Cluster", target: str) -> tuple[int, Any]:
    """What curl gets: status and JSON."""
    (path,) = (run.folder / "run").glob("*.sock")
    done = subprocess.run(
        [
            "curl", "-sS", "--unix-socket", str(path), "-X", "POST", "-w", "\n%{http_code}",
            f"http://localhost{target}",
        ],
        capture_output=True, text=True, timeout=WAIT_S, check=True,
    )  # fmt: skip
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


def pids(run: "Cluster") -> list[int]:
    return [worker["pid"] for worker in run.workers()]


def exits(run: "Cluster", status: str) -> float:
    return run.metric("penstock_child_exits_total", role="worker", slot="0", status=status)


def changes(run: "Cluster", what: str, status: str) -> None:
    """That order ends the first worker in that way; another takes its place."""
    first, ended = pids(run)[0], exits(run, status)
    said = order(run, f"/workers/web/0/{what}")
    assert said == (202, {"pid": run.process.pid, "done": f"web/0: {what}"})

    def is_another() -> bool:
        found = run.workers()[0]
        assert run.get()[0] == 200
        return found["pid"] not in (None, first) and found["health"] == "up"

    run.until(is_another, what)
    run.until(lambda: exits(run, status) == ended + 1, what)


@pytest.mark.needs("curl")
def test_one_worker_can_be_replaced_or_stopped_by_its_name(run: "Cluster") -> None:
    other = pids(run)[1]
    for what, status in (("replace", "0"), ("terminate", "0"), ("kill", "SIGKILL")):
        changes(run, what, status)
    assert pids(run)[1] == other
    assert order(run, "/workers/web/7/kill")[0] == 404
    # The log that was moved away is written no further.
    before = run.folder / "access.log.1"
    (run.folder / "access.log").rename(before)
    assert order(run, "/reopen")[0] == 202
    run.until((run.folder / "access.log").exists)
    size = before.stat().st_size
    assert run.get("/behind")[0] == 404
    run.until(lambda: any(line["target"] == "/behind" for line in run.log))
    assert before.stat().st_size == size


def test_the_admin_port_accepts_no_command(run: "Cluster") -> None:
    before = pids(run)
    for method, target in product(("POST", "PUT", "DELETE", "PATCH", "GET", "HEAD"), ORDERS):
        admin = http.client.HTTPConnection(*run.address("admin"), timeout=WAIT_S)
        admin.request(method, target)
        assert admin.getresponse().status == (404 if method in ("GET", "HEAD") else 405)
        admin.close()
    assert pids(run) == before
    assert run.get()[0] == 200
