"""A comparison of real clusters has every result and leaves no process.

Covers `compare/host/machine`, `compare/load/verification`, `compare/scaling` and `compare/steps`.
"""

import http.server
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from penstock_supervisor import release
from penstock_supervisor.compare import plan, variants
from penstock_supervisor.compare.report.result import Comparison
from penstock_supervisor.compare.run import CompareError, ComparisonSpec, compare
from penstock_supervisor.compare.scaling import ROUNDS
from penstock_supervisor.config.loader import load


class RecordedProgress:
    """Records the texts, and calls `act` at the first one with `trigger`."""

    def __init__(self, trigger: str = "", act: Callable[[], None] = lambda: None) -> None:
        self.texts: list[str] = []
        self.seconds = 0.0
        self._trigger = trigger
        self._act = act

    def begin(self, least_s: float, most_s: float) -> None:
        assert 0 < least_s <= most_s

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
            least_rounds=1,
            most_rounds=1,
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
    assert found.noise is not None
    assert found.build == release.build()
    assert (found.rounds, found.access_log) == (1, False)
    assert len(subject.loads["keepalive"].kernel_us.values) == 1
    assert progress.texts[:2] == ["measuring how quiet the machine is", "starting every subject"]
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
    found = await compare(spec("ports/http,ports/tcp"), progress)
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


async def test_rounds_end_when_they_settle_who_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def is_settled(so_far: Comparison) -> bool:
        asked.append(so_far.rounds)
        return len(asked) == 2

    monkeypatch.setattr("penstock_supervisor.compare.report.evaluation.is_settled_by", is_settled)
    wanted = spec("shared")
    measures = replace(wanted.measures, least_rounds=3, most_rounds=9, seconds=0.05)
    found = await compare(replace(wanted, measures=measures), RecordedProgress())
    assert asked == [3, 4]
    assert found.rounds == 4


async def test_faults_are_left_out_of_a_quick_comparison_without_time() -> None:
    wanted = spec("shared")
    found = await compare(
        replace(wanted, measures=replace(wanted.measures, max_total_s=0.1)), RecordedProgress()
    )
    assert found.rounds == 1
    assert found.subjects[0].faults == {}
    assert "not measured: a worker killed; there was no time for it" in found.notes


async def test_another_number_of_workers_is_measured_too() -> None:
    wanted = spec("shared")
    (service,) = load(None, {"workers": 1}).services
    fewer = variants.choose(service, ("shared",), "/tmp").variants
    found = await compare(replace(wanted, scaled={1: (fewer, ())}), RecordedProgress())
    (scaling,) = found.subjects[0].scaling.items()
    assert scaling[0] == 1
    assert len(scaling[1].requests_per_s.values) == ROUNDS
    assert scaling[1].cpu_us.median > 0


@pytest.mark.needs("wrk")
async def test_both_load_generators_are_held_against_each_other() -> None:
    program = shutil.which("wrk") or ""
    found = await compare(replace(spec("shared"), verify_with=program), RecordedProgress())
    assert [one.kind for one in found.verification] == ["keepalive", "connect"]
    for one in found.verification:
        assert one.subject == "shared"
        assert min(*one.own.values, *one.wrk.values) > 0
