"""A file, options and defaults become one frozen object, or one line for every error.

Covers `config/model`, `config/config_file` and `config/environment`.
"""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.supervisor.config_files import APP, WEB, Write, problems_of, service

from penstock_supervisor.config import config_file
from penstock_supervisor.config import loader as configuration
from penstock_supervisor.config.config_file import run_dir_of
from penstock_supervisor.config.environment import inherited_environment, lasting_path
from penstock_supervisor.config.loader import ConfigError, PortRange, Service, Upstream, load

CONFIGS = Path(__file__).parents[3] / "configs"


def test_the_demo_application_is_the_default() -> None:
    config = load(None, {})

    (web,) = config.services
    assert config.admin == "127.0.0.1:9464"
    assert (web.name, web.app, web.listen) == ("web", "penstock_worker.demo:app", "127.0.0.1:8000")
    assert (web.workers, web.health.path, web.scheme, web.mode) == (2, "/healthz", "ports", "http")


def test_another_application_does_not_get_the_health_path_of_the_demo() -> None:
    (web,) = load(None, {"app": "pkg.mod:app"}).services
    assert web.health.path is None


def test_units_become_seconds_bytes_and_fractions(write: Write) -> None:
    web = service(
        write(f"""{APP}
        worker_ports = "8101-8199"
        health = {{ interval = "500ms" }}
        timeouts = {{ tunnel = "1h" }}
        limits = {{ head = "64KiB" }}
        ejection = {{ max_ejected = "25%" }}
        """)
    )
    assert web.health.interval == 0.5
    assert web.timeouts.tunnel == 3600
    assert web.limits.head == 65536
    assert web.ejection.max_ejected == 0.25
    assert web.worker_ports == PortRange(8101, 8199)


def test_an_upstream_may_have_a_weight(write: Write) -> None:
    web = service(write(f'{WEB}upstreams = ["[::1]:9001 weight=3", "unix:/run/a.sock"]'))
    assert web.upstreams == (
        Upstream(address="[::1]:9001", weight=3),
        Upstream(address="unix:/run/a.sock"),
    )


def test_auto_is_a_worker_for_each_available_core(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 2, 5})
    assert service(write(f'{APP}workers = "auto"')).workers == 3


def test_proxies_can_be_auto_and_given_on_the_command_line(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 2, 5})
    several = write(f'proxies = "auto"\n{APP}[service.api]\nlisten = "127.0.0.1:8001"\napp = "a:b"')
    assert load(several, {}).proxies == 3
    assert load(several, {"proxies": 2}).proxies == 2, "they are no service's"
    assert load(None, {}).proxies == 1


def test_options_override_the_only_service_of_a_file(write: Write) -> None:
    path = write(f'admin = ""\n{APP}workers = 3')
    config = load(path, {"workers": 5, "listen": "127.0.0.1:80", "admin": "127.0.0.1:1"})
    assert config.admin == "127.0.0.1:1"
    assert [(s.workers, s.listen, s.app) for s in config.services] == [
        (5, "127.0.0.1:80", "pkg.mod:app")
    ]


def test_a_program_of_the_command_line_replaces_that_of_the_file(write: Write) -> None:
    web = service(write(APP), command=("node", ""))
    assert (web.app, web.command) == (None, ("node", ""))


def test_options_are_refused_for_a_file_with_two_services(write: Write) -> None:
    path = write(f'{APP}[service.api]\nlisten = "127.0.0.1:8001"\napp = "a:b"')
    assert problems_of(path, workers=3) == [
        "--workers: options change a file with one service, and this one has web, api"
    ]
    assert load(path, {"admin": ""}).admin == "", "the admin port is no service's"


def test_a_config_cannot_be_changed() -> None:
    config = load(None, {})
    with pytest.raises(ValidationError):
        config.admin = ""
    with pytest.raises(ValidationError):
        config.services[0].health.rise = 9


def test_a_child_does_not_inherit_variables_of_another_supervisor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("PENSTOCK_CHANNEL_FD", "3")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("LANG", "C.UTF-8")
    environment = inherited_environment()
    assert environment["LANG"] == "C.UTF-8"
    assert not environment.keys() & {"PORT", "PENSTOCK_CHANNEL_FD", "NOTIFY_SOCKET"}


def test_a_file_is_found_again_by_the_name_by_which_its_directory_was_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
    link = tmp_path / "current"
    link.symlink_to("one")
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))
    file = lasting_path(Path("web.toml"))
    assert file == link / "web.toml"
    assert lasting_path(Path("/etc/web.toml")) == Path("/etc/web.toml")
    for other in ("", str(tmp_path / "two"), "current", str(tmp_path / "none")):
        monkeypatch.setenv("PWD", other)
        assert lasting_path(Path("web.toml")) == tmp_path / "one" / "web.toml"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["2s", "127.0.0.1:1", "a:b", "8101-8199", "50%", "auto", "tcp", "1KiB"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted(Service.model_fields)) | st.text(max_size=8)
TABLES = st.dictionaries(
    st.sampled_from(["web", "api", "a b", ""]), st.dictionaries(KEYS, VALUES, max_size=8) | VALUES
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries({}, optional={"service": TABLES | VALUES, "admin": VALUES, "x": VALUES})
)
def test_any_table_becomes_a_config_or_a_list_of_problems(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, Any]
) -> None:
    monkeypatch.setattr(configuration, "read_table", lambda *_: table)
    try:
        problems: tuple[str, ...] | None = None if load(Path("x.toml"), {}).services else ()
    except ConfigError as error:
        problems = error.problems
    assert problems is None or all(problem.startswith("x.toml: ") for problem in problems)
    assert problems != ()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_configuration_file_is_accepted(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The files that tls.toml tells its reader to make.
    made = trustme.CA().issue_cert("localhost")
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    monkeypatch.chdir(tmp_path)
    assert load(path, {}).services


@pytest.mark.parametrize(
    ("text", "run_dir", "problem"),
    [
        ('run_dir = "/run/x"\n[service.web]\n', "/run/x", ""),
        ("[service.web]\nworkers = 9999\n", None, ""),
        ("run_dir = 5\n", None, ""),
        ('run_dir = "/run/x"\n[service.web\n', "/run/x", "line 2, column 13: "),
        ("run_dir = '/run/x'\nadmin = \n", "/run/x", "line 2, column 9: "),
        ('admin = \n[service.web]\nrun_dir = "/no"\n', None, "line 1, column 9: "),
        ('# run_dir = "/no"\nadmin = \n', None, "line 2, column 9: "),
    ],
)
def test_the_run_dir_of_a_broken_file_is_found(
    tmp_path: Path, text: str, run_dir: str | None, problem: str
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    found, why = run_dir_of(path)
    assert found == run_dir
    assert why.startswith(f"{path}: {problem}") if problem else why == ""


def test_a_file_that_is_gone_has_no_run_dir(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    assert run_dir_of(path) == (None, f"{path}: No such file or directory")


@pytest.mark.parametrize("key", ["access_log", "directory"])
def test_what_the_system_says_of_a_path_is_a_problem_of_its_key(
    write: Write, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    path = f"/{'x' * 300}/log"
    (problem,) = problems_of(write(f'{APP}{key} = "{path}"'))
    assert problem.startswith(f"service.web.{key}: expected a")
    assert problem.endswith(": file name too long")

    closed = write(f'{APP}{key} = "/closed/x"')
    monkeypatch.setattr(configuration, "why_no_directory", lambda _: "permission denied")
    (problem,) = problems_of(closed)
    assert problem.endswith('"/closed/x": permission denied')


@pytest.mark.parametrize("key", ["access_log", "directory"])
def test_a_path_with_a_nul_is_a_problem_of_its_key(write: Write, key: str) -> None:
    (problem,) = problems_of(write(f'{APP}{key} = "/a\\u0000b/log"'))
    assert problem.startswith(f"service.web.{key}: ")


def test_a_file_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text("#" * (config_file.MAX_FILE + 1))
    assert problems_of(path) == ["too large: at most 1024 KiB"]
    path.unlink()
    path.symlink_to("/dev/zero")
    assert problems_of(path) == ["expected a regular file, and it is a device"]
    assert run_dir_of(path)[0] is None


def test_a_pipe_is_good_for_a_start_and_not_for_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(APP,))
    writer.start()
    assert load(path, {}).services[0].name == "web"
    writer.join(10)
    with pytest.raises(ConfigError, match="expected a regular file, and it is a FIFO"):
        load(path, {}, again=True)
    assert run_dir_of(path)[0] is None
