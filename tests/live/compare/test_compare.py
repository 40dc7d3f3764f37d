"""`penstock compare`, run as a user runs it, has plausible figures and leaves no process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from penstock_supervisor import release
from penstock_supervisor.compare.report.result import Comparison, Subject

WAIT_S = 120.0
MARK = "PENSTOCK_TEST_RUN"
SCHEMES = ("ports/http", "ports/http/tcp", "ports/tcp", "handoff", "shared", "reuseport")


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A mark that all which descends from a run inherits: none of it may be there at last."""
    mark = uuid4().hex
    yield {**os.environ, MARK: mark}
    left = [one for one in psutil.process_iter() if marked(one, mark)]
    _, alive = psutil.wait_procs(left, 5.0)
    assert alive == []


def marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "penstock_supervisor", "compare", *arguments]


def fds(subject: Subject) -> float:
    """Of one connection, in all processes."""
    assert subject.held
    return sum(subject.held.fds.values())


def test_a_quick_comparison_has_figures_that_can_be_true(
    environment: dict[str, str], tmp_path: Path
) -> None:
    result, page = tmp_path / "x.json", tmp_path / "x.html"
    done = subprocess.run(
        command("--quick", "--json", str(result), "--html", str(page)),
        env=environment, capture_output=True, text=True, check=False, timeout=WAIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = Comparison.model_validate_json(result.read_text())
    assert found.build == ("compiled" if release.is_compiled() else "pure Python")
    assert f"penstock {found.penstock}, {found.build}, " in done.stdout
    assert tuple(subject.name for subject in found.subjects) == SCHEMES
    assert all(name in done.stdout for name in SCHEMES)
    for subject in found.subjects:
        assert set(subject.loads) == {"keepalive", "connect", "rate"}, subject.notes
        for one in subject.loads.values():
            assert one.requests > 0
            assert one.errors == {}
            assert 0 < one.p50_s.median <= one.p99_s.median <= one.worst_s * 1.02
            assert 0 < sum(spread.median for spread in one.cpu_us.values()) < 1e5
        assert subject.jain is not None
        assert 1 / found.workers <= subject.jain <= 1.000001
        assert sum(subject.split.values()) > 0
    by_name = {subject.name: subject for subject in found.subjects}
    linked, over_ports = by_name["ports/http"].held, by_name["ports/http/tcp"].held
    assert linked
    assert over_ports
    assert linked.ephemeral_ports == 0 < over_ports.ephemeral_ports
    assert fds(by_name["ports/tcp"]) == pytest.approx(3, abs=0.05)
    # An idle connection needs no worker's under http: the proxy keeps few, for all of them.
    assert 1 <= fds(by_name["ports/http"]) <= 3
    for name in ("handoff", "shared", "reuseport"):
        assert fds(by_name[name]) == pytest.approx(1, abs=0.05)
        held = by_name[name].held
        assert held
        assert held.ephemeral_ports == 0
    assert page.stat().st_size > 10_000


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running_however_a_comparison_ends(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    result = tmp_path / "x.json"
    with subprocess.Popen(
        command(
            "-v", "--schemes", "ports/tcp", "--peer", "nginx+uvicorn", "--json", str(result)
        ),
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr
        # Its subject says so, and then the measuring begins.
        for line in process.stderr:
            if "started" in line:
                break
        process.send_signal(number)
        process.stderr.read()
        status = process.wait(WAIT_S)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert Comparison.model_validate_json(result.read_text()).interrupted
