"""A roll-out succeeds only if all that it replaced serves, and waits while one of them does not."""

import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.versions import HEALTH, QUICK, Reload, is_at, reload, rollouts, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

    Start = Callable[..., Cluster]

BRIEF = """
import os, pathlib, threading, time
from aiohttp import web

SLOT = os.environ["PENSTOCK_SLOT"]

def ends_when_told():
    while not pathlib.Path(f"end-{SLOT}").exists():
        time.sleep(0.02)
    print("the licence is not valid", flush=True)
    time.sleep(0.3)
    os._exit(3)

async def health(request):
    return web.Response(status=200 if pathlib.Path(f"warm-{SLOT}").exists() else 503)

async def hello(request):
    return web.Response(text=f"hello from v2 (pid {os.getpid()})")

def app():
    threading.Thread(target=ends_when_told, daemon=True).start()
    made = web.Application()
    made.router.add_get("/", hello)
    made.router.add_get("/healthz", health)
    return made
"""
"""It serves when `warm-SLOT` is there, and ends a moment after each start when `end-SLOT` is."""


@pytest.fixture
def start(penstock: "Penstock", tmp_path: "Path") -> "Start":
    """A run of the first version; the next one is `BRIEF`."""

    def make(scheme: str, **keys: Any) -> "Cluster":
        write(tmp_path, "good v1")
        given = {"health": HEALTH, "rollout": QUICK, "access_log": "off", "app": "program:app"}
        run = penstock(scheme=scheme, top={"run_dir": str(tmp_path / "run")}, **{**given, **keys})
        run.may_trace = True
        (tmp_path / "program.py").write_text(BRIEF)
        return run

    return make


def steps(run: "Cluster") -> dict[int, Any]:
    """Of the last roll-out, by slot."""
    return {step["slot"]: step for step in rollouts(run)[-1]["steps"]}


def pid(run: "Cluster", slot: int) -> Any:
    return {worker["slot"]: worker["pid"] for worker in run.workers()}[slot]


def warm(run: "Cluster", slot: int) -> None:
    (run.folder / f"warm-{slot}").touch()


def first_is_replaced(run: "Cluster") -> Reload:
    """The roll-out has replaced web/0, and web/1 is not warm yet."""
    warm(run, 0)
    going = Reload(run)
    run.until(lambda: is_at(run, "done") and steps(run)[1]["state"] == "checking")
    return going


@contextmanager
def stopped(process: int) -> "Iterator[None]":
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_a_version_that_ends_soon_after_each_start_is_aborted_while_later_ones_roll(
    start: "Start", scheme: str
) -> None:
    run = start(scheme, workers=3, restart={"max_restarts": 2, "backoff": "100ms"})
    third = pid(run, 2)
    going = first_is_replaced(run)
    (run.folder / "end-0").touch()
    run.until(lambda: "web/0, which was replaced already, does not serve" in run.err)
    warm(run, 1)
    assert going.end() == 1, going.said
    assert "web/0, which was replaced already, does not serve: exited with status 3" in going.said
    assert "it is in a crash loop" in going.said
    assert "the licence is not valid" in going.said
    assert rollouts(run)[-1]["result"] == "aborted"
    assert pid(run, 2) == third
    assert run.metric("penstock_config_last_reload_successful") == 0


@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_one_that_does_not_come_back_in_time_is_told_before_success_is(
    start: "Start", scheme: str
) -> None:
    run = start(scheme, workers=2, timeouts={"start": "5s"})
    going = first_is_replaced(run)
    with stopped(pid(run, 0)):
        warm(run, 1)
        assert going.end() == 1, going.said
    assert "web/0, which was replaced already, does not serve: " in going.said
    assert "it was not back for good within 5 s" in going.said


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_one_that_is_back_lets_the_roll_out_go_on(start: "Start", scheme: str) -> None:
    run = start(scheme, workers=3)
    third = pid(run, 2)
    going = first_is_replaced(run)
    with stopped(pid(run, 0)):
        run.until(lambda: "web/0, which was replaced already, does not serve" in run.err)
        warm(run, 2)
        warm(run, 1)
        run.until(lambda: steps(run)[1]["state"] == "done")
        assert pid(run, 2) == third
        assert steps(run)[2]["state"] == "waiting"
    assert going.end() == 0, going.said
    assert "web/0, which was replaced already, serves again" in run.err
    assert pid(run, 2) != third


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_one_that_is_stopped_in_its_watch_does_not_take_the_slot(
    start: "Start", scheme: str
) -> None:
    # Without a path of its own: a connect to a stopped process succeeds.
    keys = {"health": {"interval": "1s"}, "timeouts": {"start": "8s", "stop": "2s"}}
    run = start(scheme, workers=1, rollout={"watch": "4s"}, **keys)
    old = pid(run, 0)
    warm(run, 0)
    going = Reload(run)
    run.until(lambda: is_at(run, "watching"))
    with stopped(int(steps(run)[0]["new_pid"])):
        run.until(lambda: rollouts(run)[-1]["reason"])
    assert going.end() == 1, going.said
    assert "web/0: it was in the rotation for" in going.said
    assert pid(run, 0) == old


@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_an_import_that_hangs_is_told_with_the_place(
    start: "Start", tmp_path: "Path", scheme: str
) -> None:
    run = start(scheme, workers=2, timeouts={"start": "4s"})
    write(tmp_path, "never-ready v2")
    done = reload(run)
    assert done.status == 1, done.said
    place = f"not ready within 4 s; it was at {tmp_path / 'program.py'}, line "
    assert place in done.said
    assert "most recent call first" in done.said
