"""Merges file, command line and defaults into one frozen `Config`.

The only module that reads configuration files and the environment. Other modules never see a
table that is partly checked: they get a `Config`, or a `ConfigError` with all problems. `model`
defines the tables, and `rules` what several keys must agree on.

A key of a feature that does not exist yet is an unknown key. If it were accepted and ignored,
the configuration would promise something that does not happen.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from penstock_supervisor.config import file_access, rules, users
from penstock_supervisor.config.applicability import PROGRAMS
from penstock_supervisor.config.diagnostics import (
    Problem,
    expected,
    explain,
    key_path,
    missing_units,
    unknown_key,
)
from penstock_supervisor.config.file_access import why_no_directory
from penstock_supervisor.config.model import (
    Config,
    PortRange,
    Restart,
    Service,
    Upstream,
    parse_app,
)
from penstock_worker.contract import SCRUBBED

__all__ = [
    "OPTIONS",
    "Config",
    "ConfigError",
    "PortRange",
    "Restart",
    "Service",
    "Upstream",
    "inherited_environment",
    "lasting_path",
    "load",
    "parse_app",
    "run_dir_of",
    "sudo_caller",
]

ROOT_RUN_DIR: Final = Path("/run/penstock")
LISTEN: Final = "127.0.0.1:8000"
SERVICE: Final = "web"
"""Name of the service when the command line names no file."""
MAX_FILE: Final = 1 << 20
"""Bytes of a configuration file. A thousand services have less."""
DEMO: Final[Mapping[str, Any]] = {
    "app": "penstock_worker.demo:app",
    "health": {"path": "/healthz"},
}

OPTIONS: Final = {
    "admin": "--admin",
    "proxies": "--proxies",
    "run_dir": "--run-dir",
    "user": "--user",
    "group": "--group",
    "app": "APP",
    "command": "COMMAND",
    "upstreams": "--to",
    "listen": "--bind",
    "workers": "--workers",
    "scheme": "--scheme",
    "mode": "--mode",
    "balance": "--balance",
    "access_log": "--access-log",
    "access_log_format": "--access-log-format",
}
"""Keys by their name on the command line."""
_RUN_KEYS: Final = ("admin", "proxies", "run_dir", "user", "group", "no_new_privileges", "dns")
"""Keys of the whole run, outside any service."""


class ConfigError(Exception):
    """The configuration cannot be used: all problems, one line each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path | None, overrides: Mapping[str, Any], *, again: bool = False) -> Config:
    """Make a `Config` of a file, if there is one, and of options of the command line.

    `overrides` has keys of `OPTIONS`, with values as in a file. They change the only service of
    a file; a file with several services has to be edited. `again`: for a reload. Somebody may be
    writing the file at that moment, and nobody sits there and ends what hangs: so it cannot be a
    pipe. Raises ConfigError. Blocks.
    """
    source = _Source(str(path) if path else "", frozenset(overrides))
    read = file_access.read_settled if again else file_access.read_given
    table = _read(path, read) if path else {"service": {SERVICE: {"listen": LISTEN}}}
    return _check(_merge(table, overrides, source), source)


def lasting_path(path: Path) -> Path:
    """An absolute path of a file, which is good for the whole run.

    The directory where we are is named as the user came to it ($PWD). A deploy may swap a link in
    that name, and then the file behind it is the one that is meant.
    """
    if path.is_absolute():
        return path
    named = Path(os.environ.get("PWD", ""))
    with suppress(OSError):
        if named.is_absolute() and named.samefile("."):
            return named / path
    return path.absolute()


def run_dir_of(path: Path) -> tuple[str | None, str]:
    """The run_dir in a file, and why the file cannot be read, or empty.

    For commands about a run that was started with this file. It may be broken or gone since.
    """
    try:
        table = _read(path, file_access.read_regular)
    except ConfigError as error:
        return _find_run_dir(path), error.problems[0]
    value = table.get("run_dir")
    return (value if isinstance(value, str) else None), ""


def _find_run_dir(path: Path) -> str | None:
    """The run_dir in a file that is no TOML: before the first table, in a line of its own."""
    try:
        text = file_access.read_regular(path, MAX_FILE).decode(errors="replace")
    except file_access.UnusableFileError:
        return None
    top = re.split(r"(?m)^\s*\[", text, maxsplit=1)[0]
    match = re.search(r"""(?m)^\s*run_dir\s*=\s*(?:"([^"\\\n]*)"|'([^'\n]*)')""", top)
    return None if match is None else match[1] or match[2] or ""


def inherited_environment() -> dict[str, str]:
    """Our environment without the variables by which a supervisor configures its worker."""
    return {name: value for name, value in os.environ.items() if name not in SCRUBBED}


def sudo_caller() -> tuple[int, ...]:
    """The id of the user who has called sudo, if anybody has."""
    uid = os.environ.get("SUDO_UID", "")
    return (int(uid),) if uid.isascii() and uid.isdecimal() else ()


def default_run_dirs() -> tuple[Path, ...]:
    """Directories for the control socket when `run_dir` is not set."""
    return run_dirs_of(os.geteuid(), os.environ.get("XDG_RUNTIME_DIR", ""))


def run_dirs_of(uid: int, runtime_dir: str) -> tuple[Path, ...]:
    """The default run directories of a user, in order of preference.

    `runtime_dir` is XDG_RUNTIME_DIR, or empty. It is ignored for root, who may have inherited
    the environment of another user.
    """
    in_tmp = Path(f"/tmp/penstock-{uid}")
    if uid == 0:
        return (ROOT_RUN_DIR, in_tmp)
    if not Path(runtime_dir).is_absolute():
        return (in_tmp,)
    return (Path(runtime_dir, "penstock"), in_tmp)


class _Source(NamedTuple):
    """The file and options that values came from, for the messages about them."""

    file: str
    options: frozenset[str]

    def message(self, problem: Problem) -> str:
        location = problem.location
        in_service = location[:1] == ("service",) and len(location) > 2
        key = str(location[2 if in_service else 0]) if location else ""
        if key in self.options:
            return f"{OPTIONS[key]}: {problem.text}"
        return ": ".join(filter(None, (self.file, key_path(location), problem.text)))

    def error(self, *problems: Problem) -> ConfigError:
        return ConfigError(tuple(dict.fromkeys(self.message(problem) for problem in problems)))


def _read(path: Path, read: Callable[[Path, int], bytes]) -> dict[str, Any]:
    try:
        return tomllib.loads(read(path, MAX_FILE).decode())
    except file_access.UnusableFileError as error:
        raise ConfigError((f"{path}: {error}",)) from error
    except UnicodeDecodeError as error:
        raise ConfigError((f"{path}: byte {error.start}: expected UTF-8 text",)) from error
    except RecursionError as error:
        raise ConfigError((f"{path}: nested too deeply",)) from error
    except ValueError as error:
        # Before Python 3.14 tomllib gives the position only as a part of its message.
        match = re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", str(error))
        text = f"{match[2]}: {match[1]}" if match else str(error)
        raise ConfigError((f"{path}: {text}",)) from error


def _merge(table: dict[str, Any], overrides: Mapping[str, Any], source: _Source) -> dict[str, Any]:
    """The file's tables, overridden by the options."""
    changes = {key: value for key, value in overrides.items() if key not in _RUN_KEYS}
    merged = {**table, **{key: overrides[key] for key in _RUN_KEYS if key in overrides}}
    services = table.get("service")
    program_given = any(key in changes for key in PROGRAMS)
    if not source.file and not program_given:
        changes = {**DEMO, **changes}
    if not changes or not isinstance(services, Mapping):
        return merged
    if len(services) != 1:
        options = ", ".join(OPTIONS[key] for key in changes)
        names = ", ".join(services) or "none"
        text = f"{options}: options change a file with one service, and this one has {names}"
        raise source.error(Problem((), text))
    ((name, service),) = services.items()
    if isinstance(service, Mapping):
        # A program on the command line replaces the one in the file.
        dropped = PROGRAMS if program_given else ()
        kept = {key: value for key, value in service.items() if key not in dropped}
        merged["service"] = {name: {**kept, **changes}}
    return merged


def _check(table: Mapping[str, Any], source: _Source) -> Config:
    known_keys = (*_RUN_KEYS, "service")
    problems = [
        Problem((key,), unknown_key(key, known_keys)) for key in table if key not in known_keys
    ]
    tables = table.get("service", {})
    if not isinstance(tables, Mapping):
        problems.append(Problem(("service",), expected("tables, such as [service.web]", tables)))
        tables = {}
    elif not tables:
        problems.append(Problem((), "nothing to serve: expected a table such as [service.web]"))
    results = [_check_service(name, service) for name, service in tables.items()]
    problems += [problem for found, _ in results for problem in found]
    services = tuple(service for _, service in results if service is not None)
    given = {key: table[key] for key in _RUN_KEYS if key in table}
    if given.get("proxies") == "auto":
        given["proxies"] = len(os.sched_getaffinity(0))
    try:
        config = Config(**given, services=services)
    except ValidationError as failure:
        problems += explain(Config, failure)
        config = Config(admin="", services=services)
    problems += [*rules.check_config(config), *_check_account(config)]
    problems += _check_certificates(services)
    if problems:
        raise source.error(*problems)
    return config


def _check_service(name: str, table: object) -> tuple[list[Problem], Service | None]:
    """Problems of one table, and the service if all single values are valid."""
    prefix = ("service", name)
    if not isinstance(table, Mapping):
        return [Problem(prefix, expected("a table, such as [service.web]", table))], None
    problems: list[Problem] = []
    if "name" in table:
        problems.append(Problem(("name",), "unknown key; a service is named by its table"))
    problems += [*rules.check_table(table), *missing_units(Service, table)]
    if table.get("workers") == "auto":
        table = {**table, "workers": len(os.sched_getaffinity(0))}
    service = None
    try:
        service = Service.model_validate({**table, "name": name})
        problems += [*rules.check_service(service), *_check_directories(service)]
    except ValidationError as failure:
        # In a file an upstream is one string, so a problem is at that string and not inside.
        # A number without a unit is also a bad value, but is reported once.
        reported = {location for location, _ in problems if location}
        for location, text in explain(Service, failure):
            key = location[:2] if location[0] == "upstreams" else location
            problems += [Problem(key, text)] if key not in reported else []
    return [Problem((*prefix, *location), text) for location, text in problems], service


def _check_certificates(services: tuple[Service, ...]) -> Iterator[Problem]:
    """Problems of certificate files, for services whose TLS keys are valid."""
    with_tls = [service for service in services if service.tls.files]
    if with_tls:
        # A late import: this library takes longer to load than everything else.
        from penstock_supervisor.config import certificates

        yield from certificates.problems(with_tls)


def _check_account(config: Config) -> Iterator[Problem]:
    """Problems of `user` and `group`: unknown here, or not possible without root."""
    if config.user is None:
        if config.group is not None:
            yield Problem(("group",), "only with user: it is the group that the user runs in")
        return
    try:
        identity = users.find(config.user, config.group)
    except users.UnknownError as error:
        yield Problem((error.key,), str(error))
        return
    if os.geteuid() != 0 and not identity.is_current_user:
        key = "user" if identity.uid != os.geteuid() else "group"
        wanted, ours = f"{identity.uid}:{identity.gid}", f"{os.geteuid()}:{os.getegid()}"
        yield Problem((key,), f"only root can run as {wanted}, and we are {ours}")


def _check_directories(service: Service) -> Iterator[Problem]:
    """Missing directories, found now and not by a worker or a proxy later."""
    log, directory = service.access_log, service.directory
    if log not in ("stdout", "off") and (why := why_no_directory(Path(log).parent)):
        what = "a file in a directory that exists"
        yield Problem(("access_log",), _missing_directory(what, log, why))
    if directory is not None and (why := why_no_directory(directory)):
        yield Problem(("directory",), _missing_directory("a directory that exists", directory, why))


def _missing_directory(what: str, path: str, why: str) -> str:
    # That it does not exist is said already.
    return expected(what, path) + ("" if why == file_access.NO_DIRECTORY else f": {why}")
