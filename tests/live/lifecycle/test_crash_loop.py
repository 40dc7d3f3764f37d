"""A service whose workers all crash is back by itself when the cause is gone, under every scheme.

What is told meanwhile is true: states, probes, events, the log and the exit status.
"""

import asyncio
import http.client
import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.support.live.many_clients import SCHEMES, failures, once, request_many

if TYPE_CHECKING:
    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

FAULTY = """
import os, time
if os.path.exists("broken") or os.path.exists("broken " + os.environ["PENSTOCK_SLOT"]):
    os._exit(7)
if os.path.exists("half deployed"):
    import a_part_of_the_shop
while os.path.exists("slow"):
    time.sleep(0.01)
from aiohttp import web

async def hello(request):
    return web.Response(text=f"hello from {os.getpid()}")

async def die(request):
    os._exit(9)

app = web.Application()
app.router.add_get("/", hello)
app.router.add_get("/die", die)
"""
QUICK = {"max_restarts": 1, "backoff": "10ms", "backoff_max": "300ms", "retry_after": "600ms"}
FOR_GOOD = {**QUICK, "retry_after": "0s"}


@pytest.fixture
def faulty(tmp_path: Path) -> str:
    """An application that fails as the files beside it say."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    return "faulty:app"


def workers(run: "Cluster", name: str = "web") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run.workers(name)
    return found


def kill_all(run: "Cluster", name: str = "web") -> None:
    for worker in workers(run, name):
        if worker["pid"] is not None:
            os.kill(worker["pid"], signal.SIGKILL)


def until_all_loop(run: "Cluster", name: str = "web") -> None:
    run.until(lambda: all(worker["crash_loop"] for worker in workers(run, name)))


def break_all(run: "Cluster", folder: Path) -> None:
    """No worker of `web` can start any more."""
    (folder / "broken").touch()
    kill_all(run)
    until_all_loop(run)


def until_ready(run: "Cluster") -> None:
    run.until(lambda: run.get("/readyz", "admin")[0] == 200)


def giveups(run: "Cluster") -> float:
    return run.metric("penstock_child_events_total", event="giveup")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_who_ends_all_workers_by_requests_makes_nobody_wait_for_the_next_start(
    penstock: "Penstock", faulty: str, scheme: str
) -> None:
    """The pause of the crash loop would be an hour."""
    slow = {**QUICK, "retry_after": "1h", "backoff_max": "30s"}
    run = penstock(app=faulty, scheme=scheme, workers=2, restart=slow)

    def are_all_given_up() -> bool:
        kill_ready(run)
        return giveups(run) >= 2

    run.until(are_all_given_up)
    for _ in range(3):
        kill_ready(run)
        run.until(lambda: answers(run), "a worker that serves again")
    assert "is started now: nobody of web serves" in run.said
    assert giveups(run) == 2, "it is still the same crash loop"


def kill_ready(run: "Cluster") -> None:
    """As a request does: only who serves can be reached by one."""
    for worker in workers(run):
        if worker["state"] == "ready":
            with suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)


def answers(run: "Cluster") -> bool:
    try:
        return run.get()[0] == 200
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_service_whose_workers_all_crash_is_back_when_the_cause_is_gone(
    penstock: "Penstock", faulty: str, tmp_path: Path, scheme: str
) -> None:
    run = penstock(app=faulty, scheme=scheme, workers=2, restart=QUICK)
    break_all(run, tmp_path)
    run.until(lambda: "still in the crash loop, next start in" in run.err)
    run.until(lambda: {worker["state"] for worker in workers(run)} == {"crash_loop"})
    status, text = run.get("/readyz", "admin")
    assert status == 503
    assert re.match(r"not ready: no worker in rotation for web: (crash loop|web/0)", text)
    status, text = run.get("/healthz", "admin")
    assert (status, text.splitlines()[0]) == (200, "ok")
    assert "web/1" in text
    if scheme == "ports":
        assert run.get()[0] == 503
    assert giveups(run) == 2
    assert run.metric("penstock_child_crash_loop", service="web") == 2
    assert len(re.findall(r"CRITICAL web/\d is in a crash loop: ", run.said)) == 2
    for worker in workers(run):
        assert re.match(r"exited with status 7 after", worker["last_exit_reason"])

    (tmp_path / "broken").unlink()
    until_ready(run)
    assert run.get()[0] == 200
    run.until(lambda: not any(worker["crash_loop"] for worker in workers(run)))
    assert run.said.count("has left the crash loop") == 2
    assert giveups(run) == 2
    assert {worker["state"] for worker in workers(run)} == {"ready"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_a_retry_a_run_in_which_nothing_is_left_ends_with_status_1(
    penstock: "Penstock", faulty: str, tmp_path: Path, scheme: str
) -> None:
    run = penstock(app=faulty, scheme=scheme, workers=2, restart=FOR_GOOD)
    (tmp_path / "broken").touch()
    kill_all(run)
    assert run.ended() == 1
    (line,) = [line for line in run.err.splitlines() if line.startswith("penstock: ")]
    assert line == (
        "penstock: nothing is left that serves web: all ended too often, "
        "and restart.retry_after is 0"
    )
    assert "it is not started again, as restart.retry_after is 0" in run.err


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_import_that_fails_at_a_restart_is_tried_again_until_it_succeeds(
    penstock: "Penstock", faulty: str, tmp_path: Path, scheme: str
) -> None:
    run = penstock(app=faulty, scheme=scheme, workers=2, restart={**QUICK, "max_restarts": 2})
    (tmp_path / "half deployed").touch()
    kill_all(run)
    until_all_loop(run)
    for worker in workers(run):
        assert "No module named 'a_part_of_the_shop'" in worker["last_exit_reason"]
    (tmp_path / "half deployed").unlink()
    until_ready(run)
    assert run.get()[0] == 200


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_program_that_crashes_at_its_first_request_is_tried_again_for_ever(
    penstock: "Penstock", faulty: str, scheme: str
) -> None:
    run = penstock(app=faulty, scheme=scheme, workers=1, restart={**QUICK, "max_restarts": 3})

    def again() -> bool:
        asyncio.run(once(run.address(), b"/die"))
        return run.said.count("still in the crash loop") >= 2

    run.until(again)
    assert giveups(run) == 1
    until_ready(run)
    assert run.get()[0] == 200


def test_a_service_in_a_crash_loop_leaves_the_others_alone(
    penstock: "Penstock", faulty: str, tmp_path: Path
) -> None:
    demo = {"app": "penstock_worker.demo:app", "access_log": "off"}
    run = penstock(
        services={
            "web": {"app": faulty, "workers": 2, "restart": FOR_GOOD, "access_log": "off"},
            "api": demo,
        }
    )
    break_all(run, tmp_path)
    run.until(lambda: run.get("/readyz", "admin")[0] == 503)
    text = run.get("/readyz", "admin")[1]
    assert text == (
        "not ready: no worker in rotation for web: crash loop, not started again by itself\n"
    )
    assert run.get(name="api")[0] == 200
    (tmp_path / "broken").unlink()
    run.process.send_signal(signal.SIGHUP)
    until_ready(run)
    run.until(lambda: not any(worker["crash_loop"] for worker in workers(run)), "from zero")


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_a_proxy_that_is_killed_takes_no_service_without_a_proxy_out_of_readiness(
    penstock: "Penstock", scheme: str
) -> None:
    demo = {"app": "penstock_worker.demo:app", "access_log": "off"}
    run = penstock(services={"web": demo, "api": {**demo, "scheme": scheme}})
    until_ready(run)
    before = run.proxy.pid
    run.proxy.kill()
    run.until(lambda: run.status()["proxies"][0]["pid"] not in (None, before))
    until_ready(run)
    assert [run.get("/", name)[0] for name in ("web", "api")] == [200, 200]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_tries_of_a_worker_in_a_crash_loop_cost_no_request_of_the_others(
    penstock: "Penstock", faulty: str, tmp_path: Path, scheme: str
) -> None:
    run = penstock(app=faulty, scheme=scheme, workers=2, restart={**QUICK, "retry_after": "100ms"})
    break_all(run, tmp_path)
    (tmp_path / "broken 1").touch()
    (tmp_path / "broken").unlink()
    until_ready(run)
    run.until(lambda: workers(run)[1]["state"] == "crash_loop")
    before = run.said.count("web/1 exited with status 7")
    failed: list[str] = []
    while run.said.count("web/1 exited with status 7") < before + 5:
        failed += failures(asyncio.run(request_many(run.address(), 50)))
        run.look()
    assert not failed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stop_in_a_crash_loop_is_a_stop(
    penstock: "Penstock", faulty: str, tmp_path: Path, scheme: str
) -> None:
    run = penstock(app=faulty, scheme=scheme, workers=2, restart=QUICK)
    break_all(run, tmp_path)
    assert run.stop() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stop_while_a_worker_starts_again_is_a_stop(
    penstock: "Penstock", faulty: str, tmp_path: Path, scheme: str
) -> None:
    run = penstock(app=faulty, scheme=scheme, workers=2, restart=QUICK)
    (tmp_path / "slow").touch()
    kill_all(run)
    run.until(lambda: all(worker["state"] == "starting" for worker in workers(run)))
    assert run.stop() == 0


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_a_status_shows_the_process_that_drains_beside_the_one_that_serves(
    penstock: "Penstock", program: str, scheme: str
) -> None:
    # Its handler goes on when the client has left, until this time is over.
    run = penstock(app=program, scheme=scheme, workers=1, timeouts={"stop": "10s"})
    (before,) = workers(run)
    wire = run.connect()
    wire.send(b"GET /slow?s=600 HTTP/1.1\r\nHost: x\r\n\r\n")
    run.until(lambda: run.metric("penstock_worker_in_flight", service="web") == 1)
    run.process.send_signal(signal.SIGHUP)

    def is_replaced() -> bool:
        (worker,) = workers(run)
        parts = [process["part"] for process in worker["processes"]]
        return parts == ["current", "draining"] and worker["health"] == "up"

    run.until(is_replaced)
    (worker,) = workers(run)
    current, draining = worker["processes"]
    assert (current["part"], current["state"], current["pid"]) == (
        "current", "ready", worker["pid"],
    )  # fmt: skip
    assert (draining["part"], draining["state"]) == ("draining", "draining")
    assert draining["pid"] == before["pid"] != worker["pid"]
    assert draining["connections"] == 1
    assert draining["age"] > current["age"]
    assert draining["memory"] > 1 << 20
    assert draining["fds"] > 3
    # One set of figures for the slot, of the current process.
    name = "penstock_process_resident_memory_bytes"
    memory = run.metric(name, service="web", slot="0")
    rss = psutil.Process(worker["pid"]).memory_info().rss
    assert memory == pytest.approx(rss, rel=0.5)
    wire.close()
    run.until(lambda: len(workers(run)[0]["processes"]) == 1)
    run.until(lambda: "after it was told to stop" in str(workers(run)[0]["last_exit_reason"]))
