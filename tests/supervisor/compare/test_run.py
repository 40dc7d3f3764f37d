"""A comparison of real clusters has every result and leaves no process.

Covers `compare/machine`.
"""

import http.server
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from penstock_supervisor.compare import plan, variants
from penstock_supervisor.compare.report.result import Comparison
from penstock_supervisor.compare.run import CompareError, ComparisonSpec, compare
from penstock_supervisor.config.loader import load


class RecordedProgress:
    """Records the texts, and calls `act` at the first one with `trigger`."""

    def __init__(self, trigger: str = "", act: Callable[[], None] = lambda: None) -> None:
        self.texts: list[str] = []
        self.seconds = 0.0
        self._trigger = trigger
        self._act = act

    def begin(self, seconds: float) -> None:
        assert seconds > 0

    def describe(self, text: str) -> None:
        self.texts.append(text)
        if self._trigger and self._trigger in text:
            self._trigger = ""
            self._act()

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


def spec(names: str, *others: str, **more: Any) -> ComparisonSpec:
    (service,) = load(None, more.pop("keys", {})).services
    measures = plan.measures(quick=True, rounds=None, max_fds=1024)
    return ComparisonSpec(
        variants=variants.choose(service, variants.parse_names(names), "/tmp").variants
        if names
        else (),
        others=others,
        measures=replace(
            measures,
            seconds=0.3,
            warmup_s=0.1,
            held=20,
            fault_s={"kill": 0.5, "roll": 0.5, "block": 0.5},
            max_total_s=None,
            **more.pop("measures", {}),
        ),
        path=more.pop("path", "/"),
        wrk="",
        workers=2,
        config="",
        command="penstock compare",
        notes=("handoff is not compared: a reason",),
    )


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
    assert left == []


@pytest.fixture
def external_address() -> Iterator[str]:
    """The address of a server outside the cluster: a thread of this process."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_every_figure_of_a_subject_is_measured() -> None:
    progress = RecordedProgress()
    found = await compare(spec("ports/http"), progress)
    (subject,) = found.subjects
    assert (subject.name, subject.scheme, subject.mode) == ("ports/http", "ports", "http")
    assert set(subject.loads) == {"keepalive", "connect", "rate"}
    for one in subject.loads.values():
        assert one.requests > 0
        assert one.errors == {}
        assert set(one.cpu_us) == {"supervisor", "proxy", "workers"}
        assert 0 < one.p50_s.median <= one.p99_s.median
    assert subject.loads["rate"].rate >= plan.MIN_RATE
    assert subject.held
    assert subject.held.connections == 20
    assert subject.split_of == "requests"
    assert set(subject.split) == {"0", "1"}
    assert subject.jain is not None
    assert set(subject.faults) == {"kill", "block", "roll"}
    assert subject.faults["kill"].full_capacity_s is not None
    assert subject.faults["block"].full_capacity_s is not None
    assert subject.faults["block"].full_capacity_s >= plan.BLOCKED_S
    assert found.notes == ("handoff is not compared: a reason",)
    assert not found.interrupted
    assert Comparison.model_validate_json(found.model_dump_json()) == found
    assert progress.texts[0] == "starting every subject"
    assert progress.texts[-1] == "stopping"


async def test_a_relayed_connection_has_three_descriptors_and_no_local_port() -> None:
    found = await compare(spec("ports/tcp"), RecordedProgress())
    held = found.subjects[0].held
    assert held
    assert held.fds["proxy"] == pytest.approx(2.0)
    assert held.fds["workers"] == pytest.approx(1.0)
    assert held.ephemeral_ports == 0
    assert [count for count, _ in held.curve] == [0, 2, 5, 10, 15, 20]


async def test_an_external_address_is_measured_without_faults(external_address: str) -> None:
    found = await compare(spec("", external_address), RecordedProgress())
    (subject,) = found.subjects
    assert (subject.name, subject.scheme) == (external_address, "")
    assert subject.loads["keepalive"].requests > 0
    assert set(subject.loads["keepalive"].cpu_us) == {"server"}
    assert subject.held
    assert subject.faults == {}
    assert subject.split == {}


async def test_upstreams_behind_a_proxy_are_measured_without_faults(external_address: str) -> None:
    found = await compare(
        spec("ports/http", keys={"upstreams": [external_address]}), RecordedProgress()
    )
    (subject,) = found.subjects
    assert set(subject.loads["connect"].cpu_us) == {"supervisor", "proxy"}
    assert set(subject.split) == {"0"}
    assert subject.faults == {}
    assert subject.notes == ()


async def test_ctrl_c_keeps_the_results_so_far_and_stops_everything() -> None:
    progress = RecordedProgress(
        "a connection per request", lambda: os.kill(os.getpid(), signal.SIGINT)
    )
    found = await compare(spec("ports"), progress)
    assert found.interrupted
    assert [set(one.loads) for one in found.subjects] == [{"keepalive"}, {"keepalive"}]
    assert progress.texts[-1] == "stopping"


async def test_ctrl_c_during_the_start_stops_the_comparison() -> None:
    progress = RecordedProgress("starting", lambda: os.kill(os.getpid(), signal.SIGINT))
    found = await compare(spec("ports/tcp"), progress)
    assert found.interrupted
    assert found.subjects[0].loads == {}


async def test_a_subject_without_a_successful_response_is_an_error() -> None:
    with pytest.raises(CompareError, match=r"ports/http: no GET /none was answered with success"):
        await compare(spec("ports/http", path="/none"), RecordedProgress())


async def test_a_subject_that_cannot_start_leaves_a_note_and_the_others_are_measured(
    external_address: str,
) -> None:
    wanted = spec("ports/http", external_address, keys={"app": "penstock_worker.demo:nothing"})
    found = await compare(wanted, RecordedProgress())
    failed, measured = found.subjects
    assert failed.loads == {}
    assert failed.notes[0].startswith("cannot be started: ")
    assert measured.loads["keepalive"].requests > 0


async def test_steps_that_were_skipped_for_lack_of_time_are_noted(external_address: str) -> None:
    wanted = spec("", external_address)
    found = await compare(
        replace(wanted, measures=replace(wanted.measures, max_total_s=0.1)), RecordedProgress()
    )
    assert found.subjects[0].held is None
    assert "not measured: held connections; there was no time for it" in found.notes
