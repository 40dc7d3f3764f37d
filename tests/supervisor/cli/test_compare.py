"""`penstock compare` on the command line: errors are found before anything is measured.

Covers `compare/specification`.
"""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from penstock_supervisor import logging_setup
from penstock_supervisor.cli import compare, main, penstock
from penstock_supervisor.compare.report.result import Comparison
from penstock_supervisor.compare.run import CompareError, ComparisonSpec

MODULE = "penstock_supervisor.cli.compare"


def comparison(**more: Any) -> Comparison:
    usual: dict[str, Any] = {
        "penstock": "1", "started": "2026-01-01T00:00:00+00:00", "command": "penstock compare",
        "machine": {}, "config": "", "workers": 2, "rounds": 1, "seconds": 1.0, "quick": True,
        "interrupted": False, "subjects": (),
    }  # fmt: skip
    return Comparison(**{**usual, **more})


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[ComparisonSpec]:
    """The comparisons that would have been run."""
    result: list[ComparisonSpec] = []

    def measure(spec: ComparisonSpec, *, quiet: bool) -> Comparison:
        assert quiet in (True, False)
        result.append(spec)
        return comparison()

    monkeypatch.setattr(sys.modules[MODULE], "_measure", measure)
    monkeypatch.setattr(sys.modules[MODULE], "_show", lambda *_: None)
    monkeypatch.setattr(logging_setup, "set_up", lambda _verbosity: None)
    return result


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_without_arguments_the_demo_application_is_compared_under_every_scheme(
    specs: list[ComparisonSpec],
) -> None:
    assert main(["compare", "--quick"]) == 0
    (spec,) = specs
    assert [variant.name for variant in spec.variants] == [
        "ports/http", "ports/http/tcp", "ports/tcp", "handoff", "shared", "reuseport",
    ]  # fmt: skip
    assert {variant.service.app for variant in spec.variants} == {"penstock_worker.demo:app"}
    assert (spec.workers, spec.path, spec.wrk, spec.others) == (
        2, "/", shutil.which("wrk") or "", (),
    )  # fmt: skip
    assert spec.measures.quick
    assert spec.command == "penstock compare --quick"


def test_a_program_is_given_as_for_run(specs: list[ComparisonSpec]) -> None:
    assert main(["compare", "-w", "3", "--rounds", "2", "--", "node", "a b.js", "--quick"]) == 0
    (spec,) = specs
    assert spec.variants[0].service.command == ("node", "a b.js", "--quick")
    assert (spec.workers, spec.measures.most_rounds, spec.measures.quick) == (3, 2, False)
    assert spec.command == "penstock compare -w 3 --rounds 2 -- node 'a b.js' --quick"
    assert any(note.startswith("handoff is not compared") for note in spec.notes)


def test_a_file_is_compared_whatever_its_scheme(
    specs: list[ComparisonSpec], tmp_path: Path
) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[service.api]\nlisten = "127.0.0.1:80"\napp = "a:b"\nworkers = 4\n')
    assert main(["compare", "-c", str(path), "--schemes", "shared,ports/tcp"]) == 0
    (spec,) = specs
    assert [variant.name for variant in spec.variants] == ["ports/tcp", "shared"]
    assert spec.workers == 4
    assert "[service.api]" in spec.config


def test_external_addresses_are_subjects_too(specs: list[ComparisonSpec]) -> None:
    assert main(["compare", "--to", "127.0.0.1:1, 127.0.0.1:2", "--to", "127.0.0.1:1"]) == 0
    assert specs[0].others == ("127.0.0.1:1", "127.0.0.1:2")
    assert len(specs[0].variants) == 6


def test_peers_get_the_program_and_the_demo_is_then_an_asgi_one(
    specs: list[ComparisonSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock_supervisor.compare.peers.choice.is_installed", lambda *_: True)
    monkeypatch.setattr("penstock_supervisor.compare.peers.choice.missing", lambda _names: ())
    assert main(["compare", "--peer", "uvicorn", "--peer", "nginx+gunicorn", "--log"]) == 0
    (spec,) = specs
    assert [one.name for one in spec.peers] == ["uvicorn", "nginx+gunicorn"]
    assert all("penstock_worker.demo:asgi" in one.setup for one in spec.peers)
    assert {one.service.app for one in spec.variants} == {"penstock_worker.demo:asgi"}
    assert {one.service.access_log for one in spec.variants} == {"stdout"}
    assert spec.access_log
    assert "--access-logfile" in spec.peers[1].setup


def test_a_peer_that_is_not_installed_is_one_line(
    specs: list[ComparisonSpec], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "penstock_supervisor.compare.peers.choice.missing",
        lambda _names: ("granian needs granian",),
    )
    err = refused(capsys, "--peer", "granian")
    assert err == "penstock: --peer: granian needs granian\n"
    assert specs == []


def test_the_setup_of_a_peer_is_shown_without_running_anything(
    specs: list[ComparisonSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--show-peer", "nginx+uvicorn", "-w", "3"]) == 0
    out, _ = capsys.readouterr()
    assert "# nginx.conf" in out
    assert out.count("-m uvicorn penstock_worker.demo:asgi") == 3
    assert specs == []


def test_a_list_of_workers_scales_up_to_the_cores_of_the_machine(
    specs: list[ComparisonSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(4)))
    assert main(["compare", "--workers", "4,1,2,8"]) == 0
    (spec,) = specs
    assert spec.workers == 4
    assert list(spec.scaled) == [1, 2]
    variants, peers = spec.scaled[2]
    assert {one.service.workers for one in variants} == {2}
    assert peers == ()
    assert "8 workers are not measured: 4 cores" in spec.notes


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-w", "1,x"], '--workers: expected numbers with commas, not "1,x"'),
        (["-w", "0,2"], "--workers: expected at least 1, not 0"),
        (["--peer", "uvicorn", "--", "node", "a.js"],
         ("--peer: uvicorn: it serves an ASGI application, module:attribute, and no command")),
        (["--peer", "x"], ("--peer: expected uvicorn, gunicorn, granian, node-cluster, or one of"
         ' them or command behind nginx+ or haproxy+, not "x"')),
        (["n"], ('APP: expected "module:attribute" (did you mean "n:app"?), not "n"'
         "; to run a command: penstock compare -- n")),
        (["--"], "COMMAND: expected a program after --"),
        (["-w", "0"], "--workers: expected at least 1, not 0"),
        (["--schemes", "port"], ("--schemes: expected some of ports/http, ports/http/tcp, "
         'ports/tcp, handoff, shared, reuseport, not "port"')),
        (["--path", "x"], ('--path: expected a path that starts with "/" and has no spaces,'
         ' not "x"')),
        (["--to", "8080"], ('--to: expected a host too: "127.0.0.1:8080" is this machine,'
         ' "0.0.0.0:8080" anywhere, not "8080"')),
        (["--to", "h:0"], '--to: expected a port to connect to, not "h:0"'),
        (["--json", "none/x.json"], ("--json: expected a file in a directory that exists,"
         ' not "none/x.json"')),
        (["--html", "/"], '--html: expected a file in a directory that exists, not "/"'),
        (["--rounds", "0"],
         "Invalid value for '--rounds': 0 is not in the range 1<=x<=100. (try --help)"),
        (["-c", "none.toml"], "none.toml: No such file or directory"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_exit_2(
    specs: list[ComparisonSpec], capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert refused(capsys, *arguments) == f"penstock: {line}\n"
    assert specs == []


def test_a_file_with_several_services_or_with_datagrams_is_refused(
    specs: list[ComparisonSpec], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        '[service.a]\nlisten = "h:1"\napp = "a:b"\n[service.b]\nlisten = "h:2"\napp = "a:b"\n'
    )
    assert "one service, and this one has a, b" in refused(capsys, "-c", str(path))
    path.write_text('[service.a]\nlisten="h:1"\napp="a:b"\nmode="udp"\nscheme="shared"\n')
    assert "cannot measure" in refused(capsys, "-c", str(path))
    assert specs == []


def test_without_a_scheme_that_works_the_reason_is_reported(
    specs: list[ComparisonSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(capsys, "--schemes", "handoff", "--", "node")
    assert err.startswith("penstock: handoff is not compared: ")
    assert specs == []


def test_a_missing_plotly_is_reported_before_anything_is_measured(
    specs: list[ComparisonSpec],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "plotly" else found(name)
    )
    assert main(["compare", "--html", str(tmp_path / "x.html")]) == 1
    assert capsys.readouterr().err == (
        'penstock: compare --html needs plotly: pip install "penstock-lb[report]"\n'
    )
    assert specs == []


def test_a_missing_wrk_is_reported_before_anything_is_measured(
    specs: list[ComparisonSpec], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert main(["compare", "--load", "wrk"]) == 1
    assert capsys.readouterr().err == (
        "penstock: compare --load wrk needs wrk, and there is no such program\n"
    )
    assert specs == []


def test_an_invalid_baseline_is_refused(
    specs: list[ComparisonSpec], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "old.json"
    path.write_text("{")
    err = refused(capsys, "--baseline", str(path))
    assert err.startswith("penstock: --baseline: ")
    assert str(path) in err
    assert err.count("\n") == 1
    assert specs == []


def test_the_result_is_shown_and_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = comparison(command="penstock compare x")
    monkeypatch.setattr(sys.modules[MODULE], "_measure", lambda *_, **__: made)
    monkeypatch.setattr(logging_setup, "set_up", lambda _verbosity: None)
    path = tmp_path / "x.json"
    assert main(["compare", "--json", str(path)]) == 0
    assert Comparison.model_validate(json.loads(path.read_text())) == made
    assert capsys.readouterr().err == ""


def test_an_interrupted_comparison_is_written_and_exits_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = comparison(interrupted=True)
    monkeypatch.setattr(sys.modules[MODULE], "_measure", lambda *_, **__: made)
    monkeypatch.setattr(logging_setup, "set_up", lambda _verbosity: None)
    path = tmp_path / "x.json"
    assert main(["compare", "--json", str(path)]) == 130
    assert json.loads(path.read_text())["interrupted"] is True
    assert capsys.readouterr().err == ""


def test_a_failed_comparison_is_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def compare(*_: object) -> Comparison:
        raise CompareError("nothing can be compared; shared: no")

    monkeypatch.setattr("penstock_supervisor.compare.run.compare", compare)
    monkeypatch.setattr(logging_setup, "set_up", lambda _verbosity: None)
    assert main(["compare", "-q"]) == 1
    assert capsys.readouterr().err == "penstock: nothing can be compared; shared: no\n"


def test_help_names_every_option() -> None:
    text = CliRunner().invoke(penstock, ["compare", "--help"]).stdout
    for parameter in compare.compare.params:
        assert parameter.opts[-1] in text or parameter.name == "app"
    assert "penstock compare --quick" in text
