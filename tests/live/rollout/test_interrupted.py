"""A process that is killed, hangs or retires in the middle of a roll-out does not spoil it."""

import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import Load, ended, is_at, served, step_at, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.rollout.conftest import FirstVersion
    from tests.support.live.cluster import Cluster

LONG = {"watch": "4s"}
"""Enough to see it, and to do something meanwhile."""
PROXIED = ("ports", "handoff")


def watched(run: "Cluster", slot: int) -> Any:
    """Wait until the successor in that slot is watched; the step."""

    def is_watched() -> bool:
        step = step_at(run, "watching")
        return step is not None and step["slot"] == slot

    run.until(is_watched, f"web/{slot} to be watched")
    return step_at(run, "watching")


@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_an_old_worker_that_is_killed_or_hangs_while_its_successor_is_watched(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, rollout=LONG, timeouts={"stop": "1s"})
    before = pids(run)
    write(tmp_path, "good v2")
    run.process.send_signal(signal.SIGHUP)
    os.kill(watched(run, 0)["old_pid"], signal.SIGKILL)
    os.kill(watched(run, 1)["old_pid"], signal.SIGSTOP)
    assert ended(run)["result"] == "succeeded"
    assert not pids(run) & before
    assert {served(run) for _ in range(6)} == {"v2"}


@pytest.mark.parametrize("what", ["is killed", "hangs", "retires"])
@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_a_new_worker_that_does_not_stand_its_watch_aborts(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str, what: str
) -> None:
    run = first_version(scheme, rollout={"watch": "1h"}, timeouts={"stop": "1s"})
    before = pids(run)
    write(tmp_path, "good v2")
    run.process.send_signal(signal.SIGHUP)
    new = watched(run, 0)["new_pid"]
    if what == "retires":
        (tmp_path / f"retire-{new}").touch()
    else:
        os.kill(new, signal.SIGKILL if what == "is killed" else signal.SIGSTOP)
    assert ended(run)["result"] == "aborted"
    assert pids(run) == before
    assert {served(run) for _ in range(6)} == {"v1"}
    assert not any(worker["crash_loop"] for worker in run.workers())
    assert sum(worker["restarts"].get("signal", 0) for worker in run.workers()) == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_that_retires_meanwhile_is_replaced_and_no_request_fails(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, rollout=LONG)
    before = pids(run)
    load = Load(run, 1)
    write(tmp_path, "good v2")
    run.process.send_signal(signal.SIGHUP)
    # The old one of a slot that is being replaced, and the new one that has taken it.
    first = watched(run, 0)
    (tmp_path / f"retire-{first['old_pid']}").touch()
    watched(run, 1)
    retired = first["new_pid"]
    (tmp_path / f"retire-{retired}").touch()
    assert ended(run)["result"] == "succeeded", run.err
    run.until(lambda: retired not in pids(run), "the successor of one that retired")
    run.until(lambda: {worker["health"] for worker in run.workers()} == {"up"})
    # Under reuseport the kernel resets what waits at the socket of a worker that goes.
    assert load.end() == [] or scheme == "reuseport"
    assert not pids(run) & before
    assert {served(run) for _ in range(6)} == {"v2"}


def killed(run: "Cluster") -> None:
    """Kill the proxy, and wait until there is another one."""
    old = run.proxy
    old.kill()
    run.until(partial(is_another, run, old.pid), "another proxy")


def is_another(run: "Cluster", old: int) -> bool:
    (proxy,) = run.status()["proxies"]
    return proxy["state"] == "ready" and proxy["pid"] not in (old, None)


@pytest.mark.parametrize("scheme", PROXIED)
def test_a_proxy_that_is_killed_at_any_step_does_not_end_the_roll_out(
    first_version: "FirstVersion", tmp_path: "Path", scheme: str
) -> None:
    run = first_version(scheme, rollout={"watch": "8s"}, timeouts={"stop": "20s"}, workers=1)
    before = pids(run)
    write(tmp_path, "cold v2")
    run.process.send_signal(signal.SIGHUP)
    run.until(lambda: is_at(run, "checking"))
    killed(run)
    (tmp_path / "warm").touch()
    watched(run, 0)
    killed(run)
    # Whichever worker has it: what the old one has holds its end.
    uploads = [run.connect() for _ in range(8)]
    for upload in uploads:
        upload.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
    run.until(lambda: is_at(run, "draining"))
    killed(run)
    if scheme == "handoff":
        # The workers have the connections themselves.
        for upload in uploads:
            upload.send(b"cd")
            answer = upload.answer()
            assert (answer.status, answer.body) == (200, b"4")
    assert ended(run)["result"] == "succeeded"
    assert not pids(run) & before
    assert {served(run) for _ in range(6)} == {"v2"}
