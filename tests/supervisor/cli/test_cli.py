"""The command line: arguments become a configuration, with fixed output and exit statuses.

Covers `__main__`, `cli/banner`, `cli/check`, `cli/describe` and `cli/options`.
Covers `cli/run` and `logging_setup`.
"""

import logging
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from penstock_supervisor import logging_setup, release
from penstock_supervisor.cli import banner, main, penstock
from penstock_supervisor.cli import run as cli_run
from penstock_supervisor.config.loader import Config, load
from penstock_worker.telemetry.log_writer import LogWriter

GOOD = '[service.web]\nlisten = "127.0.0.1:8000"\napp = "a:b"\n'


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that would have been run."""
    configs: list[Config] = []

    async def run(config: Config, _origin: object, _log: object, *, quiet: bool) -> int:
        assert not quiet
        configs.append(config)
        return 0

    monkeypatch.setattr(cli_run, "_run", run)
    monkeypatch.setattr(logging_setup, "log_thread", nullcontext)
    return configs


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line on stderr; nothing may be on stdout."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_without_arguments_run_starts_the_demo_application(started: list[Config]) -> None:
    assert main(["run"]) == 0
    assert started == [load(None, {})]


def test_options_set_keys_of_the_configuration(started: list[Config]) -> None:
    line = "run pkg.mod:app -w 4 -b 0.0.0.0:80 --balance client_hash --mode http --scheme ports"
    more = ["--admin", "", "--access-log", "off", "--access-log-format", "combined"]
    assert main([*line.split(), *more]) == 0
    expected = {
        "app": "pkg.mod:app",
        "workers": 4,
        "listen": "0.0.0.0:80",
        "balance": "client_hash",
        "admin": "",
        "access_log": "off",
        "access_log_format": "combined",
    }
    assert started == [load(None, expected)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--to", "127.0.0.1:1", "--to", "127.0.0.1:2 weight=3"],
        ["--to", "127.0.0.1:1,127.0.0.1:2 weight=3"],
        ["--to", "127.0.0.1:1, 127.0.0.1:2  weight=3"],
    ],
)
def test_upstreams_are_given_one_by_one_or_separated_by_commas(
    started: list[Config], arguments: list[str]
) -> None:
    assert main(["run", *arguments]) == 0
    (web,) = started[0].services
    assert [(u.address, u.weight) for u in web.upstreams] == [
        ("127.0.0.1:1", 1),
        ("127.0.0.1:2", 3),
    ]
    assert web.app is None


def test_everything_after_two_dashes_is_the_command(started: list[Config]) -> None:
    assert main(["run", "-w", "3", "--", "node", "-w", "--", "{port}"]) == 0
    (web,) = started[0].services
    assert web.command == ("node", "-w", "--", "{port}")
    assert web.workers == 3


def test_options_override_the_file(started: list[Config], tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(GOOD)
    assert main(["run", "-c", str(path), "-w", "auto", "--mode", "tcp"]) == 0
    (web,) = started[0].services
    assert (web.app, web.mode) == ("a:b", "tcp")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["run", "n"],
            (
                'APP: expected "module:attribute" (did you mean "n:app"?), not "n"'
                "; to run a command: penstock run -- n"
            ),
        ),
        (
            ["run", "node", "a b"],
            "APP: expected one \"module:attribute\"; to run a command: penstock run -- node 'a b'",
        ),
        (["run", "--"], "COMMAND: expected a program after --"),
        (
            ["run", "-w", "four"],
            '--workers: expected a number of workers or "auto", not "four"',
        ),
        (["run", "-w", "0"], "--workers: expected at least 1, not 0"),
        (
            ["run", "-b", "nowhere"],
            '--bind: expected "host:port", "[v6 address]:port" or "unix:/path", not "nowhere"',
        ),
        (
            ["run", "--scheme", "pots"],
            (
                '--scheme: expected "ports", "handoff", "shared" or "reuseport", not "pots"; '
                'did you mean "ports"?'
            ),
        ),
        (
            ["run", "--to", "h:1", "-w", "2"],
            "--workers: only with app or command: upstreams are run by others",
        ),
        (
            ["run", "a:b", "--", "node"],
            "service.web: expected one of app, command, upstreams, not app and command",
        ),
        (
            ["run", "--workers"],
            "Option '--workers' requires an argument. (try --help)",
        ),
        (["run", "--fronts", "2"], "--fronts: is called --proxies now (try --help)"),
        (["run", "--balance", "hash"], '--balance: "hash" is called "client_hash" now'),
        (["compare", "--fronts=2"], "--fronts: is called --proxies now (try --help)"),
        (["check", "--fronts", "2"], "No such option '--fronts'. (try --help)"),
        (["run", "-c", "none.toml"], "none.toml: No such file or directory"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(
    started: list[Config], capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert refused(capsys, *arguments) == f"penstock: {line}\n"
    assert started == []


def test_run_refuses_a_bad_file_and_lists_every_error(
    started: list[Config], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"{GOOD}workerz = 2\nhealth = {{ rise = 0 }}")
    assert refused(capsys, "run", "-c", str(path)).splitlines() == [
        f"penstock: {path}: service.web.health.rise: expected at least 1, not 0",
        f'penstock: {path}: service.web.workerz: unknown key; did you mean "workers"?',
    ]
    assert started == []


def test_check_describes_every_service_of_a_valid_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        f'{GOOD}[service.lb]\nlisten = "unix:/x"\nmode = "tcp"\nupstreams = ["h:1"]\n'
        '[service.node]\nlisten = "127.0.0.1:1"\nworkers = 1\ncommand = ["node", "a b.js"]'
    )
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == (
        f"{path}: ok: web on 127.0.0.1:8000, 2 workers of a:b (http, round_robin); "
        "lb on unix:/x, 1 upstream (tcp, round_robin); "
        "node on 127.0.0.1:1, 1 worker of node 'a b.js' (http, round_robin); "
        "admin on 127.0.0.1:9464\n"
    )


def test_check_prints_warnings_for_a_valid_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f'admin = "0.0.0.0:9464"\n{GOOD}')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(["check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{path}: ok: ")
    user, admin = err.splitlines()
    assert user.startswith(f"{path}: warning: user: proxies and workers run as root")
    assert admin.startswith(f"{path}: warning: admin: other machines can reach 0.0.0.0:9464")


def test_check_reads_every_file_and_fails_if_one_is_invalid(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(f'admin = ""\nuser = {os.geteuid()}\ngroup = {os.getegid()}\n{GOOD}')
    bad.write_text("[service.web]\nx = 1")
    assert main(["check", str(bad), str(good)]) == 2
    out, err = capsys.readouterr()
    assert (
        out == f"{good}: ok: web on 127.0.0.1:8000, 2 workers of a:b (http, round_robin);"
        " no admin port\n"
    )
    assert err.splitlines() == [
        f"{bad}: service.web: expected one of app, command, upstreams: there is nothing to run",
        f'{bad}: service.web.listen: missing: expected for example "127.0.0.1:8000"',
        f"{bad}: service.web.x: unknown key",
    ]


def test_a_failed_start_is_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(_config: Config, _origin: object, _log: object, *, quiet: bool) -> int:
        assert quiet
        raise click.ClickException("cannot listen on 127.0.0.1:80: permission denied")

    monkeypatch.setattr(cli_run, "_run", run)
    assert main(["run", "-q"]) == 1
    assert capsys.readouterr().err == (
        "penstock: cannot listen on 127.0.0.1:80: permission denied\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["check", "-h"]])
def test_help_exits_with_0(arguments: list[str]) -> None:
    result = CliRunner().invoke(penstock, arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


def test_help_of_run_names_every_option_and_shows_examples() -> None:
    text = CliRunner().invoke(penstock, ["run", "--help"]).stdout
    for parameter in cli_run.run.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[-1] in text
    assert "penstock run -w auto -- node server.js" in text


def test_the_package_can_be_run_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock_supervisor", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == f"{release.describe()}\n"
    assert done.stdout.startswith("penstock 0.1.0 (pure Python; ")
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["status", "--run-dir", "/no"]])
def test_what_only_looks_imports_nothing_that_takes_time(arguments: list[str]) -> None:
    """Instead of a time: the libraries that cost it, and the packages that use them."""
    slow = ["aiohttp", "asyncio", "cryptography", "prometheus_client", "psutil", "pydantic"]
    script = (
        "import sys\nfrom penstock_supervisor import cli\n"
        f"cli.main({arguments})\n"
        f"print([one for one in {slow} if one in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_each_command_is_in_the_file_that_the_help_has_for_it() -> None:
    for name, command in penstock.commands.items():
        with command.make_context(name, ["x"], resilient_parsing=True) as context:
            assert (context.command.name, context.command is command) == (name, False)


def test_the_process_exits_with_the_status_of_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock_supervisor", "run", "-w", "x"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("penstock: --workers: ")


def printed(config: Config, capsys: pytest.CaptureFixture[str], **more: Any) -> list[str]:
    arguments: dict[str, Any] = {"listening": {}, "workers": {}, "admin": "", **more}
    banner.show(config, console=Console(highlight=False), **arguments)
    return capsys.readouterr().out.splitlines()


def test_the_banner_shows_the_actual_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(
        load(None, {"listen": "127.0.0.1:0"}),
        capsys,
        listening={"web": "127.0.0.1:40000"},
        workers={"web": ["127.0.0.1:8101", "127.0.0.1:8102"]},
        admin="127.0.0.1:9464",
    )
    assert lines == [
        "web on http://127.0.0.1:40000, 2 workers of penstock_worker.demo:app (http, round_robin)",
        "  web/0 on 127.0.0.1:8101",
        "  web/1 on 127.0.0.1:8102",
        "admin on http://127.0.0.1:9464/ /metrics /status /healthz /readyz",
        release.describe(),
        "Ctrl-C to stop",
    ]


def test_the_banner_shows_the_number_of_proxies_for_services_with_a_proxy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = load(None, {"proxies": 3, "admin": ""})
    assert printed(config, capsys)[0].endswith(" (http, round_robin, 3 proxies)")
    config = config.model_copy(
        update={"services": (config.services[0].model_copy(update={"scheme": "shared"}),)}
    )
    assert printed(config, capsys)[0].endswith(" (shared, http)")


def test_the_banner_shows_a_unix_socket_without_a_url(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = load(None, {"upstreams": ["h:1"], "listen": "unix:/a[b]", "admin": ""})
    assert printed(config, capsys, admin="unix:/admin") == [
        "web on unix:/a[b], 1 upstream (http, round_robin)",
        "admin on unix:/admin: /metrics /status /healthz /readyz",
        release.describe(),
        "Ctrl-C to stop",
    ]


def test_a_message_that_cannot_be_formatted_is_a_line_and_no_exception() -> None:
    with LogWriter(os.open(os.devnull, os.O_WRONLY)) as writer:
        offered: list[bytes] = []
        writer.offer = offered.append  # type: ignore[assignment]
        too_long = int("9" * 4299) * 10**9
        handler = logging_setup.ThreadHandler(writer)
        handler.emit(logging.LogRecord("x", logging.ERROR, "x", 1, "cut: %d", (too_long,), None))
    assert offered == [b"ERROR cut: %d (ValueError)\n"]


def test_each_line_of_a_message_has_its_time_and_its_level() -> None:
    text = "web/0 retires: broken\n    Traceback\n      File x"
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", (text,), None)
    first, *rest = logging_setup.LineFormatter().format(record).split("\n")
    head = first.removesuffix("web/0 retires: broken")
    assert head.endswith(" ERROR   ")
    assert rest == [f"{head}    Traceback", f"{head}      File x"]


def test_the_log_says_that_hup_has_asked_for_a_reload(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(os, "isatty", lambda _: False)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    rolled: list[int] = []
    supervisor: Any = SimpleNamespace(
        stop=lambda **_: None, reopen_logs=lambda: None, roll=lambda: rolled.append(1)
    )
    cli_run._signal_actions(supervisor)[signal.SIGHUP]()
    assert (rolled, caplog.messages) == ([1], ["reload, asked for by HUP"])
