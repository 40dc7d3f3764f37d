"""A successor serves beside the worker that it replaces, and takes its place when it is healthy."""

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.support.live.many_clients import SCHEMES, failures, once, pids, request_many, settled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

APP = """
import os
from pathlib import Path
from aiohttp import web

HERE = Path(__file__).parent
VERSION = (HERE / "version").read_text()
if VERSION == "broken":
    raise ImportError("no such thing as a good day")

async def healthz(request):
    if VERSION == "v2" and not (HERE / "warm").exists():
        return web.Response(status=503)
    return web.Response(text="well")

async def hello(request):
    return web.Response(text=f"hello of {VERSION} (pid {os.getpid()})")

app = web.Application()
app.router.add_get("/healthz", healthz)
app.router.add_get("/", hello)
"""


def run_of(penstock: "Penstock", folder: "Path", scheme: str, **keys: Any) -> "Cluster":
    (folder / "app.py").write_text(APP)
    (folder / "version").write_text("v1")
    health = {"path": "/healthz", "interval": "100ms"}
    return penstock(app="app:app", scheme=scheme, workers=2, health=health, **keys)


def successors(run: "Cluster") -> list[dict[str, Any]]:
    return [
        process
        for worker in run.workers()
        for process in worker["processes"]
        if process["part"] == "successor"
    ]


def has_failed(run: "Cluster", times: int) -> bool:
    return run.err.count("is aborted") >= times


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_stays_in_the_rotation_until_its_successor_has_passed_its_first_check(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    run = run_of(penstock, tmp_path, scheme)
    before = pids(run)
    (tmp_path / "version").write_text("v2")
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: [one["health"] for one in successors(run)] == ["down"])
    # It has failed several checks by now, and the worker is none the worse for it.
    checks = run.metric("penstock_health_checks_total", result="failed")
    run.until(lambda: run.metric("penstock_health_checks_total", result="failed") >= checks + 5)
    assert pids(run) == before
    assert all(worker["health"] == "up" for worker in run.workers())
    assert run.metric("penstock_worker_in_rotation") == 2
    answers = asyncio.run(request_many(run.address(), 200))
    assert not failures(answers)
    if scheme in ("ports", "handoff"):
        assert all("v1" in answer for answer in answers), "nobody picks it yet"
    (tmp_path / "warm").touch()
    failed: list[str] = []
    while "has succeeded" not in run.err:
        failed += failures(asyncio.run(request_many(run.address(), 100)))
        run.look()
        assert run.process.poll() is None
    assert not failed
    settled(run, 2, before)
    run.until(lambda: not any(psutil.pid_exists(pid) for pid in before))
    assert "v2" in asyncio.run(once(run.address()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_newcomers_do_is_not_charged_to_the_worker_that_stays(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    run = run_of(penstock, tmp_path, scheme, restart={"max_restarts": 1, "backoff": "10ms"})
    run.may_trace = True
    before = pids(run)
    (tmp_path / "version").write_text("broken")
    for times in (1, 2, 3):
        run.process.send_signal(signal.SIGHUP)
        run.until(partial(has_failed, run, times))
    assert pids(run) == before
    (tmp_path / "version").write_text("v1")
    victim = run.workers()[0]["pid"]
    psutil.Process(victim).kill()
    settled(run, 2, {victim})
    assert not any(worker["crash_loop"] for worker in run.workers())
    assert "is in a crash loop" not in run.err
    assert not failures(asyncio.run(request_many(run.address(), 50)))
