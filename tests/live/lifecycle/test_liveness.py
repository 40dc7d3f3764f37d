"""A process that hangs or stays unhealthy gets no new client and is replaced, one at a time.

Workers hang in each way that there is, and the service is back without anybody's help.
"""

import asyncio
import re
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.support.live.fallible import FALLIBLE, PLAIN
from tests.support.live.many_clients import SCHEMES, failures, pids, request_many, settled

if TYPE_CHECKING:
    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SOON: dict[str, Any] = {"liveness": {"timeout": "4s"}, "timeouts": {"stop": "1s"}}
OFTEN = {"path": "/healthz", "interval": "100ms", "timeout": "500ms", "fall": 2, "rise": 2}
KINDS = [
    *((scheme, "app") for scheme in SCHEMES),
    *((scheme, "command") for scheme in SCHEMES if scheme != "handoff"),
]


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The keys for each kind of program."""
    (tmp_path / "fallible.py").write_text(FALLIBLE)
    (tmp_path / "plain.py").write_text(PLAIN)
    return {
        "app": {"app": "fallible:app"},
        "command": {"command": [sys.executable, str(tmp_path / "plain.py")]},
    }


def worker(run: "Cluster", slot: int) -> psutil.Process:
    return psutil.Process(run.workers()[slot]["pid"])


def asked(run: "Cluster", count: int = 60) -> list[str]:
    """What became of requests, each on a connection of its own, that were no success."""
    return failures(asyncio.run(request_many(run.address(), count)))


def replaced_for(run: "Cluster", reason: str) -> float:
    return run.metric("penstock_child_restarts_total", role="worker", reason=reason)


def is_ready(run: "Cluster") -> bool:
    return run.get("/readyz", "admin")[0] == 200


@pytest.mark.parametrize(("scheme", "kind"), KINDS)
def test_a_stopped_worker_gets_nothing_new_and_is_replaced(
    penstock: "Penstock", programs: dict[str, Any], scheme: str, kind: str
) -> None:
    run = penstock(scheme=scheme, workers=3, **SOON, **programs[kind])
    stopped = worker(run, 1)
    stopped.suspend()
    run.until(lambda: "web/1 is down" in run.err)
    assert asked(run) == []
    settled(run, 3, {stopped.pid})
    assert asked(run) == []
    run.until(lambda: not psutil.pid_exists(stopped.pid))
    words = "has not answered for 3 s" if kind == "app" else "has been stopped for 3 s"
    assert f"web/1 {words}" in run.err
    assert "web/1 has not answered for 4 s; replacing it" in run.err
    assert replaced_for(run, "liveness") == 1
    assert is_ready(run)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_that_answers_again_in_time_is_back_and_is_not_replaced(
    penstock: "Penstock", programs: dict[str, Any], scheme: str
) -> None:
    run = penstock(scheme=scheme, workers=2, **programs["app"])
    before, stopped = pids(run), worker(run, 1)
    stopped.suspend()
    run.until(lambda: "web/1 is down" in run.err)
    assert "has not answered for" in run.workers()[1]["reason"]
    assert run.metric("penstock_worker_alive", slot="1") == 0
    assert asked(run) == []
    stopped.resume()
    run.until(lambda: "web/1 answers again" in run.err)
    run.until(lambda: run.workers()[1]["health"] == "up")
    answers: list[str] = []

    def serves_again() -> bool:
        answers.extend(asyncio.run(request_many(run.address(), 60)))
        return any(f"pid {stopped.pid}" in answer for answer in answers)

    run.until(serves_again)
    assert failures(answers) == []
    assert pids(run) == before
    assert run.metric("penstock_worker_alive", slot="1") == 1


def test_a_command_that_lost_its_own_socket_meanwhile_is_replaced(
    penstock: "Penstock", programs: dict[str, Any]
) -> None:
    run = penstock(scheme="reuseport", workers=2, **programs["command"])
    stopped = worker(run, 1)
    stopped.suspend()
    run.until(lambda: "web/1 is down" in run.err)
    stopped.resume()
    settled(run, 2, {stopped.pid})
    assert "web/1: its socket was closed while it did not answer" in run.err
    assert asked(run) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_whose_loop_is_blocked_is_replaced_and_its_stacks_are_logged(
    penstock: "Penstock", programs: dict[str, Any], scheme: str
) -> None:
    run = penstock(scheme=scheme, workers=2, **SOON, **programs["app"])
    before = pids(run)
    wire = run.connect()
    wire.send(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
    run.until(lambda: re.search(r"web/\d is down", run.err))
    assert asked(run) == []
    run.until(lambda: replaced_for(run, "liveness") == 1)
    run.until(lambda: len(pids(run) - before) == 1)
    run.until(lambda: all(one["health"] == "up" for one in run.workers()))
    assert asked(run) == []
    run.until(lambda: re.search(r"web/\d \| .*[Tt]hread 0x", run.err))
    assert re.search(r"web/\d \| .* in block", run.err)


@pytest.mark.parametrize(("scheme", "kind"), KINDS)
def test_when_all_workers_hang_they_are_replaced_one_after_the_other(
    penstock: "Penstock", programs: dict[str, Any], scheme: str, kind: str
) -> None:
    run = penstock(scheme=scheme, workers=3, **SOON, **programs[kind])
    before = pids(run)
    for slot in range(3):
        worker(run, slot).suspend()
    run.until(lambda: replaced_for(run, "liveness") == 3)
    settled(run, 3, before)
    run.until(lambda: is_ready(run))
    assert asked(run) == []
    assert one_at_a_time(run) == 3


def one_at_a_time(run: "Cluster") -> int:
    """How many workers were replaced; never two at a time."""
    steps = re.findall(r"(?m)(web/\d) (?:.*; (replacing) it|is (replaced))$", run.err)
    for begun, ended in zip(steps[::2], steps[1::2], strict=True):
        assert begun == (ended[0], "replacing", "")
        assert ended == (begun[0], "", "replaced")
    return len(steps) // 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_that_stays_unhealthy_is_replaced(
    penstock: "Penstock", programs: dict[str, Any], scheme: str
) -> None:
    health = {**OFTEN, "restart_after": "2s"}
    run = penstock(scheme=scheme, workers=3, health=health, **programs["app"])
    sick, others = worker(run, 1), {worker(run, 0).pid, worker(run, 2).pid}
    mark = run.folder / "health-1"
    mark.write_text("error")
    run.until(lambda: "replacing it" in run.err)
    # The successor is well.
    mark.unlink()
    settled(run, 3, {sick.pid})
    assert others < pids(run)
    assert re.search(r"web/1 has not been healthy for \d s; replacing it", run.err)
    assert replaced_for(run, "unhealthy") == 1
    assert asked(run) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_that_is_well_now_and_then_is_not_replaced(
    penstock: "Penstock", programs: dict[str, Any], scheme: str
) -> None:
    health = {**OFTEN, "restart_after": "4s"}
    run = penstock(scheme=scheme, workers=2, health=health, **programs["app"])
    before, mark = pids(run), run.folder / "health-1"
    # In all much longer than it may be unhealthy at a time.
    while failed_checks(run, 1) < 50:
        mark.write_text("error")
        run.until(lambda: run.workers()[1]["health"] == "down")
        mark.unlink()
        run.until(lambda: run.workers()[1]["health"] == "up")
    assert pids(run) == before
    assert replaced_for(run, "unhealthy") == 0
    assert asked(run) == []


def test_a_health_path_that_hangs_makes_an_app_unhealthy_and_a_command_hung(
    penstock: "Penstock", programs: dict[str, Any]
) -> None:
    health = {**OFTEN, "restart_after": "2s"}
    keys = {**SOON, "health": health, "workers": 2, "access_log": "off"}
    run = penstock(
        services={"web": {**keys, **programs["app"]}, "api": {**keys, **programs["command"]}}
    )
    mark = run.folder / "health-1"
    mark.write_text("hang")
    run.until(lambda: "web/1 has not been healthy" in run.err)
    run.until(lambda: "api/1 has not" in run.err and "replacing it" in run.err)
    mark.unlink()
    run.until(lambda: all(one["health"] == "up" for one in run.workers()))
    assert run.metric("penstock_child_restarts_total", service="web", reason="unhealthy") >= 1
    assert {"unhealthy", "liveness"} & {
        reason for reason, count in run.workers("api")[1]["restarts"].items() if count
    }
    assert not sum(run.workers("web")[0]["restarts"].values())
    assert not sum(run.workers("api")[0]["restarts"].values())


@pytest.mark.parametrize("scheme", ["handoff", "shared", "reuseport"])
def test_a_health_path_that_hangs_makes_an_app_unhealthy_also_where_no_proxy_connects(
    penstock: "Penstock", programs: dict[str, Any], scheme: str
) -> None:
    health = {**OFTEN, "restart_after": "2s"}
    run = penstock(scheme=scheme, workers=2, health=health, **SOON, **programs["app"])
    mark = run.folder / "health-1"
    mark.write_text("hang")
    run.until(lambda: "web/1 has not been healthy" in run.err)
    mark.unlink()
    run.until(lambda: all(one["health"] == "up" for one in run.workers()))
    assert not sum(run.workers()[0]["restarts"].values())


def failed_checks(run: "Cluster", slot: int = 0) -> float:
    return run.metric("penstock_health_checks_total", slot=str(slot), result="failed")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_while_all_are_unhealthy_nobody_is_replaced_and_all_come_back(
    penstock: "Penstock", programs: dict[str, Any], scheme: str, count: int
) -> None:
    health = {**OFTEN, "restart_after": "1s"}
    run = penstock(scheme=scheme, workers=count, health=health, **programs["app"])
    before = pids(run)
    database = run.folder / "health"
    database.write_text("error")
    # Much longer than each of them may be unhealthy alone.
    run.until(lambda: failed_checks(run) >= 40)
    run.until(lambda: not is_ready(run))
    database.unlink()
    run.until(lambda: all(one["health"] == "up" for one in run.workers()))
    assert pids(run) == before
    assert replaced_for(run, "unhealthy") == 0
    assert asked(run) == []


def test_a_stopped_single_proxy_is_noticed_and_replaced(
    penstock: "Penstock", programs: dict[str, Any]
) -> None:
    run = penstock(workers=1, **programs["app"])
    stopped = run.proxy
    stopped.suspend()
    with socket.create_connection(run.address(), timeout=60) as waiting:
        waiting.sendall(GET)
        run.until(lambda: not is_ready(run))
        run.until(lambda: "proxy/0 does not answer; no client is served" in run.err)
        # Who connected meanwhile waits in the listener, and is served in the end.
        assert waiting.recv(1000).startswith(b"HTTP/1.1 200")
    run.until(lambda: "proxy/0 has not answered for 10 s and is killed" in run.err)
    run.until(lambda: is_ready(run))
    assert run.proxy.pid != stopped.pid
    assert asked(run) == []


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_one_of_several_proxies_that_stays_stopped_is_replaced_and_nobody_waits(
    penstock: "Penstock", programs: dict[str, Any], scheme: str
) -> None:
    run = penstock(top={"proxies": 2}, scheme=scheme, workers=2, **programs["app"])
    stopped = run.proxies[1]
    stopped.suspend()
    run.until(lambda: "proxy/1 does not answer; the others take its new clients" in run.err)
    assert asked(run) == []
    assert is_ready(run)
    run.until(lambda: "proxy/1 has not answered for 10 s and is killed" in run.err)
    run.until(lambda: run.proxies[1].pid != stopped.pid)
    run.until(lambda: not any(proxy["covered"] for proxy in run.status()["proxies"]))
    assert asked(run) == []


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_a_proxy_killed_and_a_worker_stopped_at_the_same_moment(
    penstock: "Penstock", programs: dict[str, Any], scheme: str
) -> None:
    run = penstock(scheme=scheme, workers=3, **SOON, **programs["app"])
    stopped, proxy = worker(run, 1), run.proxy
    stopped.suspend()
    proxy.kill()
    settled(run, 3, {stopped.pid})
    run.until(lambda: is_ready(run))
    assert asked(run) == []
    assert replaced_for(run, "liveness") == 1


class Load:
    """Clients that ask until `end`, each request on a connection of its own."""

    def __init__(self, run: "Cluster") -> None:
        self.answers: list[str] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(run.address(),))
        self._thread.start()

    def _ask(self, address: tuple[str, int]) -> None:
        while not self._ends.is_set():
            self.answers += asyncio.run(request_many(address, 64))

    def end(self) -> list[str]:
        self._ends.set()
        self._thread.join()
        return self.answers


@pytest.mark.parametrize("scheme", SCHEMES)
def test_workers_that_all_retire_at_once_are_replaced_one_by_one_and_no_request_is_lost(
    penstock: "Penstock", programs: dict[str, Any], scheme: str
) -> None:
    run = penstock(scheme=scheme, workers=4, **programs["app"])
    before = pids(run)
    load = Load(run)
    try:
        told: set[str] = set()
        while len(told) < 4:
            told.add(run.get("/retire")[1])
        run.until(partial(all_replaced, run, before))
    finally:
        answers = load.end()
    assert answers
    assert failures(answers) == []
    assert one_at_a_time(run) >= 4
    assert replaced_for(run, "retire") >= 4
    assert "is in a crash loop" not in run.err


def all_replaced(run: "Cluster", before: set[int]) -> bool:
    workers = run.workers()
    return all(one["health"] == "up" and one["pid"] not in before for one in workers)


def test_workers_that_end_while_they_wait_to_be_replaced_are_started_again(
    penstock: "Penstock", programs: dict[str, Any]
) -> None:
    run = penstock(workers=2, **programs["app"])
    before = pids(run)
    told: set[str] = set()
    while len(told) < 2:
        told.add(run.get("/retire")[1])
    for pid in before:
        psutil.Process(pid).send_signal(signal.SIGTERM)
    settled(run, 2, before)
    assert asked(run) == []
