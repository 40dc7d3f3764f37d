"""Upstreams that are names, in a real run: what people see of them, a start, and a reload."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.live.versions import reload
from tests.support.live.wire import WAIT_S
from tests.support.supervisor.name_server import NameServer, name_server

if TYPE_CHECKING:
    from tests.live.conftest import Penstock, Worker
    from tests.support.live.wire import Wire


@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as names:
        yield names


def top(folder: Path, names: NameServer) -> dict[str, object]:
    return {"run_dir": str(folder / "run"), "dns.servers": [names.address]}


def hello(wire: "Wire") -> None:
    wire.head()
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")


def test_a_name_is_shown_with_its_address_and_a_reload_asks_other_servers(
    penstock: "Penstock", origin: "Worker", names: NameServer, tmp_path: Path
) -> None:
    port = origin(hello).address.partition(":")[2]
    names.set("app.test", "A", "127.0.0.1")
    text = f"dns:app.test:{port}"
    services = {"web": {"upstreams": [text], "access_log": "off"}}
    run = penstock(services=services, top=top(tmp_path, names))
    assert run.get() == (200, "hello")
    (worker,) = run.workers()
    assert (worker["name"], worker["address"]) == (f"app.test:{port}", f"127.0.0.1:{port}")
    run.until(lambda: run.metric("penstock_dns_lookups_total", service="web", result="found") >= 2)
    assert run.metric("penstock_dns_members", service="web") == 1
    assert f"web/0, app.test:{port} (127.0.0.1:{port}), is up" in run.said
    with name_server() as others:
        others.set("app.test", "A", "127.0.0.1", "127.0.0.2")
        run.configure(services, **{"dns.servers": [others.address]})
        done = reload(run)
        assert done.status == 0, done.said
        run.until(lambda: len(run.workers()) == 2)
        assert f"web: {text}: 127.0.0.2:{port} joins" in run.said
        names.is_silent = True
        asked = others.asked.total()
        run.until(lambda: others.asked.total() > asked)
    run.until(lambda: run.status()["services"]["web"]["names"][0]["result"] != "found")
    assert len(run.workers()) == 2
    assert run.get() == (200, "hello")


def test_a_plain_name_that_nobody_knows_fails_a_start_and_a_reload(
    penstock: "Penstock", origin: "Worker", names: NameServer, tmp_path: Path
) -> None:
    good, unknown = origin(hello).address, {"upstreams": ["nowhere.test:80"]}
    run = penstock(services={"web": {"upstreams": [good]}}, top=top(tmp_path, names))
    run.configure({"web": unknown})
    done = reload(run)
    assert done.status == 2, done.said
    assert run.get() == (200, "hello")
    assert "service.web.upstreams: nowhere.test:80: unknown host" in run.said
    (tmp_path / "other").mkdir()
    file = tmp_path / "penstock.toml"
    start = subprocess.run(
        [sys.executable, "-m", "penstock_supervisor", "run", "-c", file, "--admin", ""],
        cwd=tmp_path / "other", capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert start.returncode == 1
    assert "service.web.upstreams: nowhere.test:80: unknown host" in start.stderr
    assert "Traceback" not in start.stderr
