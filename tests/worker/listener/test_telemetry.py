"""A worker counts and logs the requests that no proxy counts and logs.

Covers `telemetry/recorder`.
"""

import json
import signal
import socket
from pathlib import Path

import pytest
from tests.support.worker import clients
from tests.support.worker.clients import APPS, DEMO, Link, Start, until

from penstock_worker import contract


@pytest.mark.parametrize("spec", APPS)
def test_a_worker_without_a_proxy_counts_connections_and_requests(
    shared: Start, spec: str, port: socket.socket
) -> None:
    served = shared(spec, port, slot=3)
    for _ in range(3):
        assert clients.get(port) == b"hello"
    with clients.connected(port) as odd:
        odd.sendall(b"REPORT / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert odd.recv(65536)
        series = served.stats()["series"]
        assert series["penstock_connections_active"] == {"": 1}
    assert series["penstock_connections_total"] == {"": 4}
    assert series["penstock_worker_connections_total"] == {"3": 4}
    requests = dict(series["penstock_requests_total"])
    assert requests.pop("3 GET 200") == 3
    (other,) = requests
    assert other.startswith("3 other ")
    *counts, seconds = series["penstock_request_duration_seconds"]["total"]
    assert (sum(counts), seconds > 0) == (4, True)
    until(lambda: served.stats()["series"]["penstock_connections_active"] == {"": 0})


def test_under_handoff_a_worker_counts_requests_and_no_connections(
    linked: Start, link: Link
) -> None:
    served = linked(DEMO)
    client = link.client()
    assert clients.exchange(client)
    metrics = served.stats()
    assert set(metrics["series"]) == {
        "penstock_requests_total", "penstock_request_duration_seconds",
        "penstock_worker_uncaught_exceptions_total",
        "penstock_connection_errors_total",
    }  # fmt: skip
    assert metrics["fds"]["channel"] == 2


def test_behind_a_forwarding_proxy_a_worker_counts_only_its_own_faults(serve: Start) -> None:
    series = serve(DEMO, PENSTOCK_SCHEME="ports", PENSTOCK_SLOT="3").ready().stats()["series"]
    assert series == {"penstock_worker_uncaught_exceptions_total": {"3": 0}}


@pytest.mark.parametrize("spec", APPS)
@pytest.mark.parametrize("form", ["json", "combined"])
def test_a_worker_without_a_proxy_writes_the_access_log(
    serve: Start, spec: str, form: str, port: socket.socket, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    served = serve(
        spec,
        passed=port,
        PENSTOCK_SCHEME="shared",
        PENSTOCK_SERVICE="web",
        PENSTOCK_SLOT="1",
        PENSTOCK_ACCESS_LOG=f"{form}:{log}",
    ).ready()
    client = clients.connected(port)
    client.sendall(
        b"GET /x?a=%20b HTTP/1.1\r\nHost: x\r\nUser-Agent: me\xff\r\nX-Request-ID: 7\r\n"
        b"Connection: close\r\n\r\n"
    )
    with client:
        while client.recv(65536):
            pass
    until(lambda: b"\n" in log.read_bytes())
    line = log.read_text()
    if form == "combined":
        assert line.startswith("127.0.0.1 - - [")
        assert '"GET /x?a=%20b HTTP/1.1" ' in line
        assert line.endswith(' "-" "me\\xFF"\n')
        return
    found = json.loads(line)
    assert (found["service"], found["worker"], found["client"]) == ("web", "web/1", "127.0.0.1")
    assert (found["method"], found["target"]) == ("GET", "/x?a=%20b")
    assert (found["request_id"], found["termination"]) == ("7", "ok")
    assert found["duration"]["connect"] is None
    assert found["duration"]["total"] >= 0
    assert found["bytes_sent"] > 0

    log.rename(tmp_path / "access.log.1")
    served.send({"cmd": contract.REOPEN})
    until(log.exists)
    assert clients.get(port) == b"hello"
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    assert json.loads(log.read_text())["status"] == 200, "the last lines leave before it does"


def test_an_access_log_may_be_a_descriptor(
    serve: Start, port: socket.socket, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w+b") as log:
        served = serve(
            DEMO,
            passed=port,
            inherits=[log.fileno()],
            PENSTOCK_SCHEME="shared",
            PENSTOCK_ACCESS_LOG=f"json:{log.fileno()}",
        ).ready()
        assert clients.get(port)
        served.signal(signal.SIGTERM)
        assert served.exit_status() == 0
        log.seek(0)
        assert json.loads(log.read())["target"] == "/"


@pytest.mark.parametrize("where", ["json:/nosuch/dir/log", "xml:1", "json:", "json:999"])
def test_an_access_log_that_cannot_be_opened_is_a_failure_in_one_line(
    serve: Start, port: socket.socket, where: str
) -> None:
    served = serve(DEMO, passed=port, PENSTOCK_SCHEME="shared", PENSTOCK_ACCESS_LOG=where)
    assert served.receive()["reason"].startswith("cannot write the access log: ")
    assert served.exit_status() == contract.EXIT_FAILED
