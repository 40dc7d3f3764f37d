"""Every error in a configuration is reported with its key, one line each, all at once."""

from pathlib import Path
from uuid import UUID

import pytest
from pydantic import BaseModel, ValidationError
from tests.support.supervisor.config_files import APP, WEB, Write, problems_of

from penstock_supervisor.config.diagnostics import MAX_VALUE_LENGTH, as_toml, explain
from penstock_supervisor.config.loader import ConfigError, load


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("workerz = 2", 'workerz: unknown key; did you mean "workers"?'),
        ("fall = 2", 'fall: unknown key; did you mean "health.fall"?'),
        (
            "health = { intervall = '2s' }",
            'health.intervall: unknown key; did you mean "interval"?',
        ),
        ("xyzzy = 1", "xyzzy: unknown key"),
        ("name = 'x'", "name: unknown key; a service is named by its table"),
        (
            "timeouts = { head = 5 }",
            'timeouts.head: expected a duration with a unit, such as "500ms", "2s" or "1h", not 5',
        ),
        (
            "timeouts = { head = '' }",
            'timeouts.head: expected a duration with a unit, such as "500ms", "2s" or "1h", not ""',
        ),
        (
            "limits = { head = 4096 }",
            'limits.head: expected a size with a unit, such as "16KiB" or "64MiB", not 4096',
        ),
        ("limits = { head = '12B' }", 'limits.head: expected at least "1024B", not "12B"'),
        ("health = { timeout = '0s' }", 'health.timeout: expected more than "0s", not "0s"'),
        (
            "ejection = { max_ejected = 0.5 }",
            'ejection.max_ejected: expected a share, such as "50%", not 0.5',
        ),
        ("health = 'x'", 'health: expected a table, not "x"'),
        (
            "health = { path = 'healthz' }",
            'health.path: expected a path that starts with "/" and has no spaces, not "healthz"',
        ),
        ("workers = 'four'", 'workers: expected a number of workers or "auto", not "four"'),
        ("workers = 0", "workers: expected at least 1, not 0"),
        ("workers = true", 'workers: expected a number of workers or "auto", not true'),
        ("max_connections = 1.5", "max_connections: expected a whole number, not 1.5"),
        (
            "scheme = 'share'",
            (
                'scheme: expected "ports", "handoff", "shared" or "reuseport", not "share"; '
                'did you mean "shared"?'
            ),
        ),
        (
            "mode = 'htpp'",
            'mode: expected "http", "tcp" or "udp", not "htpp"; did you mean "http"?',
        ),
        (
            "worker_ports = 8101",
            'worker_ports: expected a range of ports, such as "8101-8199", not 8101',
        ),
        (
            "worker_ports = '8199-8101'",
            'worker_ports: expected a range of ports, such as "8101-8199", not "8199-8101"',
        ),
        (
            "worker_ports = '8101-8101'",
            "worker_ports: expected a port for each of 2 workers, not 1",
        ),
        ("worker_ports = '7999-8005'", "worker_ports: contains 8000, where service.web listens"),
        ("worker_ports = '9400-9499'", "worker_ports: contains 9464, where admin listens"),
        ("weights = [1, 2, 3]", "weights: expected one for each of 2 workers, not 3"),
        ("weights = [1, 0]", "weights[1]: expected at least 1, not 0"),
        ("env = { 'A B' = '1' }", 'env.A B: expected the name of a variable, not "A B"'),
        ("env = { A = 1 }", "env.A: expected a string, not 1"),
        (
            "env = { PORT = '1' }",
            'env.PORT: expected a variable that penstock does not set itself, not "PORT"',
        ),
        ("directory = '/nowhere'", 'directory: expected a directory that exists, not "/nowhere"'),
        (
            "access_log = 'sdtout'",
            'access_log: expected "stdout", "off" or a path, such as "./access.log", not "sdtout"',
        ),
        (
            "access_log = '/nowhere/log'",
            'access_log: expected a file in a directory that exists, not "/nowhere/log"',
        ),
        (
            "trusted_proxies = ['x']",
            'trusted_proxies[0]: expected an address, a network or "unix", not "x"',
        ),
        (
            "mode = 'tcp'\ntrusted_proxies = ['::1']",
            'trusted_proxies: only with mode = "http" or accept_proxy: tcp has no headers',
        ),
        (
            "mode = 'tcp'\naccess_log_format = 'combined'",
            'access_log_format: only with mode = "http": it is made of requests',
        ),
        (
            "restart = { backoff = '20s' }",
            "restart.backoff: expected at most backoff_max",
        ),
        ("proxies = 2", "proxies: unknown key"),
        (
            "accept_proxy = true",
            "accept_proxy: expected trusted_proxies beside it: a client may claim anything",
        ),
        ("send_proxy = 'v3'", 'send_proxy: expected "", "v1" or "v2", not "v3"'),
    ],
)
def test_an_error_is_reported_with_its_key(write: Write, line: str, problem: str) -> None:
    assert problems_of(write(APP + line)) == [f"service.web.{problem}"]


BAD_COMMAND = (
    '.command: expected a program and its arguments, such as ["node", "server.js"], not {}'
)


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("", ": expected one of app, command, upstreams: there is nothing to run"),
        (
            "app = 'a:b'\ncommand = ['x']",
            ": expected one of app, command, upstreams, not app and command",
        ),
        (
            "app = 'app.py'",
            '.app: expected "module:attribute" (did you mean "app:app"?), not "app.py"',
        ),
        (
            "app = './src/web.py:on'",
            '.app: expected "module:attribute" (did you mean "src.web:on"?), not "./src/web.py:on"',
        ),
        ("app = 'a b'", '.app: expected "module:attribute", not "a b"'),
        (
            "command = 'node server.js'",
            '.command: expected a list, such as ["node", "server.js"], not "node server.js"',
        ),
        (
            "command = []",
            BAD_COMMAND.format("[]"),
        ),
        (
            "command = ['']",
            BAD_COMMAND.format('[""]'),
        ),
        ('command = ["x", "\\u0000"]', '.command[1]: expected no zero byte, not "\\u0000"'),
        ("upstreams = []", ".upstreams: expected at least one address"),
        (
            "upstreams = ['x']",
            '.upstreams[0]: expected "host:port", "[v6 address]:port" or "unix:/path", not "x"',
        ),
        (
            "upstreams = ['h:1 wieght=2']",
            '.upstreams[0]: expected "host:port" or "host:port weight=3", not "h:1 wieght=2"',
        ),
        ("upstreams = ['h:1 weight=101']", ".upstreams[0]: expected at most 100, not 101"),
        ("upstreams = [{ address = 'h:1', wait = 2 }]", ".upstreams[0]: unknown key"),
        ("upstreams = ['h:0']", '.upstreams[0]: expected a port to connect to, not "h:0"'),
        (
            "upstreams = [9001]",
            '.upstreams[0]: expected "host:port" or "host:port weight=3", not 9001',
        ),
        (
            "upstreams = ['h:1', 'h:1']",
            ".upstreams: an address is named twice; give it a weight instead",
        ),
        (
            "upstreams = ['127.0.0.1:8000']",
            ".upstreams: 127.0.0.1:8000 is where the service itself listens",
        ),
        (
            "upstreams = ['h:1']\nworkers = 2",
            ".workers: only with app or command: upstreams are run by others",
        ),
    ],
)
def test_a_service_has_exactly_one_of_app_command_and_upstreams(
    write: Write, program: str, problem: str
) -> None:
    assert problems_of(write(WEB + program)) == [f"service.web{problem}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "nothing to serve: expected a table such as [service.web]"),
        ("service = 1", "service: expected tables, such as [service.web], not 1"),
        ("service = { web = 1 }", "service.web: expected a table, such as [service.web], not 1"),
        (f'run_dirr = "/run"\n{APP}', 'run_dirr: unknown key; did you mean "run_dir"?'),
        (f'admn = ""\n{APP}', 'admn: unknown key; did you mean "admin"?'),
        (f"admin = 9464\n{APP}", "admin: expected a string, not 9464"),
        (f"proxies = 0\n{APP}", "proxies: expected at least 1, not 0"),
        (f"proxies = 65\n{APP}", "proxies: expected at most 64, not 65"),
        (f'proxies = "all"\n{APP}', 'proxies: expected a number of proxies or "auto", not "all"'),
        (f"proxies = true\n{APP}", 'proxies: expected a number of proxies or "auto", not true'),
        (
            f'admin = "localhost"\n{APP}',
            'admin: expected "host:port", "[v6 address]:port" or "unix:/path", not "localhost"',
        ),
        (f'admin = "0.0.0.0:8000"\n{APP}', "admin: 0.0.0.0:8000 is taken by service.web"),
        (
            '[service.web]\napp = "a:b"',
            'service.web.listen: missing: expected for example "127.0.0.1:8000"',
        ),
        (
            '[service."a b"]\napp = "a:b"\nlisten = "127.0.0.1:1"',
            'service.a b.name: expected at most 63 letters, digits, - and _, not "a b"',
        ),
    ],
)
def test_an_error_of_a_whole_file_is_reported(write: Write, text: str, problem: str) -> None:
    assert problems_of(write(text)) == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"fronts = 2\n{APP}", "fronts: is called proxies now"),
        (f"fronts = 2\nproxies = 2\n{APP}", "fronts: is called proxies now"),
        (f"{APP}ports = '8101-8199'", "service.web.ports: is called worker_ports now"),
        (
            f"{APP}forwarding = {{ believe = 'forwarded' }}",
            "service.web.forwarding.believe: is called trust now",
        ),
        (f"{APP}balance = 'hash'", 'service.web.balance: "hash" is called "client_hash" now'),
    ],
)
def test_a_renamed_key_is_reported_with_its_new_name(write: Write, text: str, problem: str) -> None:
    assert problems_of(write(text)) == [problem]


def test_an_earlier_name_in_another_table_is_only_an_unknown_key(write: Write) -> None:
    path = write(f"{APP}fronts = 2")
    assert problems_of(path) == ["service.web.fronts: unknown key"]
    (problem,) = problems_of(write(f"{APP}mode = 'hash'"))
    assert problem == 'service.web.mode: expected "http", "tcp" or "udp", not "hash"'


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("0.0.0.0:1", "127.0.0.1:1", True),
        ("[::1]:1", "[::]:1", True),
        ("[::]:1", "127.0.0.1:1", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
        ("unix:/a", "127.0.0.1:1", False),
    ],
)
def test_two_services_do_not_share_an_address(
    write: Write, one: str, other: str, clash: bool
) -> None:
    path = write(
        f'[service.a]\nlisten = "{one}"\napp = "a:b"\n[service.b]\nlisten = "{other}"\napp = "a:b"'
    )
    if clash:
        assert problems_of(path) == [f"service.b.listen: {other} is taken by service.a"]
    else:
        assert len(load(path, {}).services) == 2


def test_two_services_do_not_share_ports_of_workers(write: Write) -> None:
    path = write(f"""{APP}worker_ports = "8101-8110"
    [service.api]
    listen = "127.0.0.1:8001"
    app = "a:b"
    worker_ports = "8110-8120"
    """)
    assert problems_of(path) == ["service.api.worker_ports: overlaps the ports of service.web"]


def test_all_errors_are_reported_at_once(write: Write) -> None:
    path = write("""
    admn = ""
    [service.web]
    listen = "8000"
    app = "app"
    workers = -1
    [service.web.health]
    interval = 5
    paht = "/"
    [service.api]
    upstreams = ["x"]
    """)
    keys = [problem.partition(":")[0] for problem in problems_of(path)]
    assert sorted(keys) == [
        "admn",
        "service.api.listen",
        "service.api.upstreams[0]",
        "service.web.app",
        "service.web.health.interval",
        "service.web.health.paht",
        "service.web.listen",
        "service.web.workers",
    ]


def test_every_line_names_the_file(write: Write) -> None:
    path = write("x = 1")
    with pytest.raises(ConfigError) as failure:
        load(path, {})
    assert all(problem.startswith(f"{path}: ") for problem in failure.value.problems)
    assert str(failure.value) == "\n".join(failure.value.problems)


def test_an_error_of_the_command_line_names_the_option() -> None:
    assert problems_of(None, workers="x", listen="here", upstreams=["h:1"]) == [
        "--workers: only with app or command: upstreams are run by others",
        '--bind: expected "host:port", "[v6 address]:port" or "unix:/path", not "here"',
    ]


def test_an_error_without_its_own_text_has_that_of_pydantic() -> None:
    class Odd(BaseModel):
        key: UUID

    with pytest.raises(ValidationError) as failure:
        Odd.model_validate({"key": "x"})
    ((location, text),) = explain(Odd, failure.value)
    assert location == ("key",)
    assert text.startswith("input should be a valid UUID")
    assert text.endswith(', not "x"')


def test_a_long_value_is_cut_in_messages() -> None:
    assert len(as_toml("x" * 1000)) == MAX_VALUE_LENGTH


def test_bad_syntax_is_reported_with_line_and_column(write: Write) -> None:
    (problem,) = problems_of(write('[service.web]\nlisten "127.0.0.1:1"'))
    assert problem == "line 2, column 8: Expected '=' after a key in a key/value pair"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a = \xff", "byte 4: expected UTF-8 text"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = ", "end of document: Invalid value"),
    ],
)
def test_a_file_that_is_not_toml_is_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    assert problems_of(path) == [problem]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none.toml") == ["No such file or directory"]
    assert problems_of(tmp_path) == ["Is a directory"]
