"""Exceptions that nobody caught, and children that an app forks, take no worker away.

Whatever a client causes in the background of a program, the same processes go on serving.
"""

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.support.live.many_clients import SCHEMES, failures, once, pids, request_many, settled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

APP = """
import asyncio, multiprocessing, os, sys, threading, time
from aiohttp import web

class WebSocketDisconnect(Exception):
    pass

async def ticker():
    raise WebSocketDisconnect(1001)

def raises():
    raise WebSocketDisconnect(1001)

class Finalized:
    def __del__(self):
        raises()

async def leave():
    sys.exit(3)

async def throw(request):
    kind, loop = request.match_info["kind"], asyncio.get_running_loop()
    for _ in range(int(request.query.get("n", 1))):
        if kind == "task":
            loop.create_task(ticker())
        elif kind == "callback":
            loop.call_soon(raises)
        elif kind == "thread":
            threading.Thread(target=raises).start()
        elif kind == "finalizer":
            Finalized()
        elif kind == "exit":
            loop.create_task(leave())
    return web.Response(text=f"hello {os.getpid()}")

async def fork(request):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    child.start()
    child.terminate()
    await asyncio.to_thread(child.join)
    return web.Response(text=f"hello {child.exitcode}")

async def hello(request):
    return web.Response(text=f"hello {os.getpid()}")

app = web.Application()
app.router.add_get("/", hello)
app.router.add_get("/throw/{kind}", throw)
app.router.add_get("/fork", fork)
"""
METRIC = "penstock_worker_uncaught_exceptions_total"


@pytest.fixture
def start(penstock: "Penstock", tmp_path: "Path") -> Any:
    (tmp_path / "throws.py").write_text(APP)

    def make(scheme: str, **keys: Any) -> "Cluster":
        run = penstock(app="throws:app", scheme=scheme, workers=2, **keys)
        run.may_trace = True
        return run

    return make


@pytest.mark.parametrize("kind", ["task", "callback", "thread", "finalizer"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hundred_exceptions_in_the_background_are_logged_and_counted_and_that_is_all(
    start: Any, scheme: str, kind: str
) -> None:
    run = start(scheme)
    before = pids(run)

    async def throw() -> list[str]:
        return [await once(run.address(), f"/throw/{kind}".encode()) for _ in range(100)]

    assert not failures(asyncio.run(throw()))
    run.until(lambda: run.metric(METRIC, service="web") == 100)
    assert pids(run) == before
    assert "an exception that nobody caught, in " in run.err
    assert run.err.count("| Traceback (most recent call last)") <= 4
    assert "WebSocketDisconnect: 1001" in run.err
    assert run.metric("penstock_child_restarts_total") == 0
    assert 1 <= run.metric("penstock_child_events_total", event="error") <= 4
    assert not failures(asyncio.run(request_many(run.address(), 50)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_flood_of_exceptions_delays_nobody_for_long_and_floods_no_log(
    start: Any, scheme: str
) -> None:
    run = start(scheme)
    before = pids(run)
    assert run.get("/throw/callback?n=20000")[0] == 200
    assert not failures(asyncio.run(request_many(run.address(), 200)))
    run.until(lambda: run.metric(METRIC, service="web") == 20_000)
    assert pids(run) == before
    assert len(run.err) < 20_000


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_count_outlives_the_process(start: Any, scheme: str) -> None:
    run = start(scheme)
    before = pids(run)
    for _ in range(10):
        assert run.get("/throw/task")[0] == 200
    # Those of the last moment are in the worker's own last message.
    run.process.send_signal(signal.SIGHUP)
    settled(run, 2, before)
    run.until(lambda: not any(psutil.pid_exists(pid) for pid in before))
    assert run.metric(METRIC, service="web") == 10


@pytest.mark.parametrize("scheme", SCHEMES)
def test_where_it_retires_one_worker_is_replaced_and_no_request_is_lost(
    start: Any, scheme: str
) -> None:
    run = start(scheme, on_uncaught="retire")
    before = pids(run)

    async def load() -> list[str]:
        answers = await request_many(run.address(), 100)
        answers.append(await once(run.address(), b"/throw/task"))
        return answers + await request_many(run.address(), 1000)

    answers = asyncio.run(load())
    assert not failures(answers)
    gone = int(answers[100].split()[1])
    settled(run, 2, {gone})
    run.until(lambda: not psutil.pid_exists(gone))
    assert before - pids(run) == {gone}
    assert "retires: WebSocketDisconnect: 1001" in run.err


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sys_exit_in_a_task_loses_no_request(start: Any, scheme: str) -> None:
    run = start(scheme)

    async def load() -> list[str]:
        answers = [await once(run.address(), b"/throw/exit")]
        return answers + await request_many(run.address(), 1000)

    answers = asyncio.run(load())
    assert not failures(answers)
    gone = int(answers[0].split()[1])
    settled(run, 2, {gone})
    run.until(lambda: not psutil.pid_exists(gone))
    run.until(lambda: "exited with status 3" in run.err)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_child_that_an_app_forks_is_ended_by_terminate_and_the_worker_is_not(
    start: Any, scheme: str
) -> None:
    run = start(scheme)
    before = pids(run)
    codes = {run.get("/fork")[1] for _ in range(20)}
    assert codes == {f"hello {-signal.SIGTERM}"}
    assert pids(run) == before
    assert not failures(asyncio.run(request_many(run.address(), 50)))
