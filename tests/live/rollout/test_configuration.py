"""A changed file is brought into force while everything runs, and what is open stays open.

Covers `rollout/reconfiguration`, `rollout/preparation`, `rollout/proxy_updates`,
`rollout/reloading` and `children/live_settings`.
"""

import os
import re
import shutil
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.support.live.heads import request
from tests.support.live.many_clients import SCHEMES, pids
from tests.support.live.versions import (
    HEALTH,
    QUICK,
    Load,
    Reload,
    is_at,
    reload,
    rollouts,
    served,
    write,
)
from tests.support.live.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

    Start = Callable[..., Cluster]

ROUNDS = 10
BODY = 1 << 16


def table(scheme: str = "ports", **keys: Any) -> dict[str, Any]:
    return {
        "app": "program:app", "scheme": scheme, "workers": 2, "access_log": "off",
        "health": HEALTH, "rollout": QUICK, **keys,
    }  # fmt: skip


@pytest.fixture
def start(penstock: "Penstock", tmp_path: "Path") -> "Start":
    """A run of these services, of the first version."""

    def make(services: dict[str, dict[str, Any]], **top: Any) -> "Cluster":
        write(tmp_path, "good v1")
        run = penstock(services=services, top={"run_dir": str(tmp_path / "run"), **top})
        run.may_trace = True
        return run

    return make


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def has_proxies(run: "Cluster", count: int) -> bool:
    return [one["state"] for one in run.status()["proxies"]] == ["ready"] * count


def changed(run: "Cluster", services: dict[str, dict[str, Any]], **top: Any) -> Reload:
    """Write another file, and reload."""
    run.configure(services, **top)
    return reload(run)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_open_lives_through_ten_reloads(start: "Start", scheme: str) -> None:
    web = table(scheme)
    run = start({"web": web, "api": table(workers=1)})
    sockets = [WebSocket(run) for _ in range(4)]
    stream = run.connect()
    stream.send(request("/stream"))
    assert b"data: 0" in stream.until(b"data: 0")
    upload = run.connect()
    upload.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (ROUNDS * BODY))
    before = {worker["pid"] for worker in run.workers("web")}
    load = Load(run)
    for number in range(ROUNDS):
        # A setting of this service, and another program of the other one.
        ours = {**web, "health": {**HEALTH, "interval": f"{100 + number}ms"}}
        done = changed(run, {"web": ours, "api": table(workers=1, env={"ROUND": str(number)})})
        assert done.status == 0, done.said
        for websocket in sockets:
            websocket.echo(b"still there")
        upload.send(bytes(BODY))
        stream.until(b"data: ")
    assert load.end() == []
    answer = upload.answer()
    assert (answer.status, answer.body) == (200, str(ROUNDS * BODY).encode())
    assert {worker["pid"] for worker in run.workers("web")} == before


@pytest.mark.parametrize("scheme", SCHEMES)
def test_workers_become_more_and_fewer_under_load(start: "Start", scheme: str) -> None:
    run = start({"web": table(scheme)})
    load = Load(run)
    # The kernel resets what waits at the socket of a worker that goes; it is counted as failed.
    failures = r"\d+" if scheme == "reuseport" else "0"
    for count in (5, 1, 3):
        done = changed(run, {"web": table(scheme, workers=count)})
        assert done.status == 0, done.said
        assert [worker["slot"] for worker in run.workers()] == list(range(count))
        assert {worker["health"] for worker in run.workers()} == {"up"}
        # Also those of the workers that are gone.
        assert re.search(rf"requests [1-9]\d*, failed {failures}\b", done.said), done.said
    assert load.end() == [] or scheme == "reuseport"
    # None is refused, and none is taken away.
    done = changed(run, {"web": table(scheme, workers=0)})
    assert (done.status, "workers" in done.said) == (2, True)
    assert len(run.workers()) == 3


@pytest.mark.parametrize("scheme", ["ports", "handoff"])
def test_proxies_become_more_and_fewer_under_load(start: "Start", scheme: str) -> None:
    run = start({"web": table(scheme)})
    kept = WebSocket(run) if scheme == "ports" else None
    load = Load(run)
    for count in (3, 1, 2):
        done = changed(run, {"web": table(scheme)}, proxies=count)
        assert done.status == 0, done.said
        run.until(partial(has_proxies, run, count))
    assert load.end() == []
    if kept is not None:
        kept.echo(b"its proxy was there all the time")


def test_proxies_that_drain_for_an_hour_hold_up_no_reload(start: "Start") -> None:
    web = {"web": table(timeouts={"stop": "1h"})}
    run = start(web, proxies=4)
    # Enough for the kernel to give each proxy one.
    kept = [WebSocket(run) for _ in range(48)]
    assert changed(run, web, proxies=2).status == 0
    load = Load(run)
    back = changed(run, web, proxies=4)
    assert back.status == 0, back.said
    late = "proxy/3 still finishes what it has; the next one starts after it"
    assert late in rollouts(run)[-1]["changes"]
    corrected = changed(run, web, proxies=3)
    assert corrected.status == 0, corrected.said
    for websocket in kept:
        websocket.echo(b"nobody was cut off")
        websocket.wire.close()
    run.until(partial(has_proxies, run, 3))
    assert load.end() == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_services_come_and_go(start: "Start", scheme: str) -> None:
    run = start({"web": table()})
    both = {"web": table(), "api": table(scheme)}
    before, processes = pids(run), len(run.look())
    load = Load(run)
    for _ in range(3):
        assert changed(run, both).status == 0
        address = run.status()["services"]["api"]["listen"]
        host, _, port = address.rpartition(":")
        assert run.get_from((host, int(port)))[0] == 200
        assert changed(run, {"web": table()}).status == 0
        assert list(run.status()["services"]) == ["web"]
        with pytest.raises(OSError, match="refused"):
            run.get_from((host, int(port)))
    assert load.end() == []
    assert pids(run) == before
    run.until(lambda: len(run.look()) == processes)


@pytest.mark.parametrize("scheme", ["ports", "shared"])
def test_a_service_that_comes_again_begins_to_count_anew(start: "Start", scheme: str) -> None:
    both = {"web": table(), "api": table(scheme)}
    run = start(both)
    for _ in range(20):
        assert run.get(name="api")[0] == 200
    gone = changed(run, {"web": table()})
    assert gone.status == 0, gone.said
    assert 'penstock_requests_total{service="api"' not in run.get("/metrics", "admin")[1]
    back = changed(run, both)
    assert (back.status, "requests 0, failed 0" in back.said) == (0, True), back.said


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_service_that_goes_finishes_what_it_has(start: "Start", scheme: str) -> None:
    run = start({"web": table(), "api": table(scheme, timeouts={"stop": "20s"})})
    upload = run.connect("api")
    upload.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
    run.until(lambda: any(worker["active"] for worker in run.workers("api")))
    run.configure({"web": table()})
    going = Reload(run)
    run.until(lambda: rollouts(run)[-1:] and rollouts(run)[-1]["state"] == "finishing")
    upload.send(b"cd")
    answer = upload.answer()
    assert (answer.status, answer.body) == (200, b"4")
    assert going.end() == 0, going.said


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_address_is_served_and_connections_of_the_old_one_live_on(
    start: "Start", scheme: str, free_port: int
) -> None:
    run = start({"web": table(scheme)})
    old = WebSocket(run)
    done = changed(run, {"web": table(scheme, listen=f"127.0.0.1:{free_port}")})
    assert done.status == 0, done.said
    assert run.get_from(("127.0.0.1", free_port))[0] == 200
    with pytest.raises(OSError, match="refused"):
        run.get()
    if scheme == "ports":
        # Elsewhere a worker is given the address at its start, so there are new ones.
        old.echo(b"of the old address")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_link_that_leads_to_another_release_deploys_it(
    start: "Start", tmp_path: "Path", scheme: str
) -> None:
    for name in ("one", "two", "broken"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "unimportable" if name == "broken" else f"good {name}")
    current = tmp_path / "current"
    current.symlink_to("one")
    run = start({"web": table(scheme, directory="./current")})
    assert served(run) == "one"

    def deploy(name: str) -> Reload:
        (tmp_path / "next").symlink_to(name)
        (tmp_path / "next").replace(current)
        return reload(run)

    assert deploy("two").status == 0
    assert served(run) == "two"
    before = pids(run)
    assert deploy("broken").status == 1
    assert pids(run) == before
    # A crash brings back the release that the worker came from.
    os.kill(min(before), signal.SIGKILL)
    run.until(lambda: [worker["health"] for worker in run.workers()] == ["up", "up"])
    assert {served(run) for _ in range(8)} == {"two"}
    current.unlink()
    gone = reload(run)
    assert gone.status in (1, 2)
    assert "current" in gone.said
    assert served(run) == "two"


def test_a_release_that_is_deleted_is_no_end_for_those_that_crash(
    start: "Start", tmp_path: "Path"
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, f"good {name}")
    current = tmp_path / "current"
    current.symlink_to("one")
    run = start({"web": table(directory="./current")})
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(current)
    shutil.rmtree(tmp_path / "one")
    os.kill(min(pids(run)), signal.SIGKILL)
    run.until(lambda: "is gone; it is started in" in run.err)
    run.until(lambda: [worker["health"] for worker in run.workers()] == ["up", "up"])
    assert {served(run) for _ in range(8)} == {"one", "two"}


def test_a_changed_program_that_is_bad_takes_the_settings_back_too(start: "Start") -> None:
    run = start({"web": table()})
    before = pids(run)
    bad = table(app="nothing:app", max_connections=1)
    done = changed(run, {"web": bad})
    assert done.status == 1, done.said
    assert pids(run) == before
    # With the settings of the new one, this would be one connection too many.
    first, second = WebSocket(run), WebSocket(run)
    first.echo(b"one")
    second.echo(b"two")
    assert run.get()[0] == 200


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_proxy_or_a_worker_that_ends_meanwhile_does_not_end_the_roll_out(
    start: "Start", tmp_path: "Path", scheme: str
) -> None:
    run = start({"web": table(scheme, workers=3)})
    write(tmp_path, "cold v2")
    going = Reload(run)
    run.until(lambda: is_at(run, "checking"))
    old = run.workers()[2]["pid"]
    os.kill(old, signal.SIGKILL)
    if scheme in ("ports", "handoff"):
        run.proxy.kill()
    run.until(lambda: run.workers()[2]["pid"] not in (old, None))
    (tmp_path / "warm").touch()
    assert going.end() == 0, going.said
    assert {served(run) for _ in range(9)} == {"v2"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_that_is_stopped_meanwhile_is_replaced_like_the_others(
    start: "Start", tmp_path: "Path", scheme: str
) -> None:
    run = start({"web": table(scheme, timeouts={"stop": "2s"})})
    write(tmp_path, "good v2")
    stopped = psutil.Process(run.workers()[1]["pid"])
    stopped.suspend()
    done = reload(run)
    assert done.status == 0, done.said
    assert not stopped.is_running()
    assert {served(run) for _ in range(6)} == {"v2"}


def test_a_stop_in_a_roll_out_is_a_stop(start: "Start", tmp_path: "Path") -> None:
    run = start({"web": table()})
    write(tmp_path, "cold v2")
    going = Reload(run)
    run.until(lambda: is_at(run, "checking"))
    assert run.stop() == 0
    assert going.end() == 1, going.said
