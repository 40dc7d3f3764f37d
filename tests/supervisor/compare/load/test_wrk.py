"""wrk as the load generator: its figures are read, and it gets only loads that it supports."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock_supervisor.compare.load import wrk
from penstock_supervisor.compare.load.driver import Job


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def found() -> str:
    return shutil.which("wrk") or ""


@pytest.mark.needs("wrk")
@pytest.mark.parametrize("kind", ["keepalive", "connect"])
async def test_the_figures_of_wrk_are_read(address: str, kind: str) -> None:
    job = Job.model_validate({"address": address, "kind": kind, "connections": 2, "seconds": 1.0})
    report = await wrk.drive(found(), job, 1)
    assert report.requests > 0
    assert report.errors.get("status", 0) == 0
    assert 0.9 < report.seconds < 5
    # wrk adds the requests that a slow response kept it from sending, so there may be more.
    assert sum(report.histogram.values()) > 0.8 * report.requests
    assert report.worst_s > 0
    assert report.cpu_share > 0


@pytest.mark.needs("wrk")
async def test_unsuccessful_responses_count_as_errors(address: str) -> None:
    job = Job(address=address, path="/none", kind="keepalive", connections=2, seconds=1.0)
    report = await wrk.drive(found(), job, 1)
    assert report.requests == 0
    assert report.errors["status"] > 0


@pytest.mark.needs("wrk")
async def test_a_failure_of_wrk_is_reported_with_its_message() -> None:
    job = Job(address="127.0.0.1:1", kind="keepalive", connections=1, seconds=1.0)
    with pytest.raises(wrk.WrkError, match="unable to connect"):
        await wrk.drive(found(), job, 1)


async def test_a_program_without_output_is_an_error(tmp_path: Path) -> None:
    silent = tmp_path / "wrk"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    job = Job(address="127.0.0.1:1", kind="keepalive", connections=1, seconds=1.0)
    with pytest.raises(wrk.WrkError, match="said nothing"):
        await wrk.drive(str(silent), job, 1)


@pytest.mark.parametrize(
    ("address", "kind", "can"),
    [
        ("127.0.0.1:1", "keepalive", True),
        ("127.0.0.1:1", "connect", True),
        ("127.0.0.1:1", "rate", False),
        ("unix:/x", "keepalive", False),
    ],
)
def test_wrk_supports_loads_without_a_fixed_rate_over_tcp_only(
    address: str, kind: str, can: bool
) -> None:
    job = {"address": address, "kind": kind, "connections": 1, "seconds": 1.0}
    assert wrk.supports(Job.model_validate(job)) == can
