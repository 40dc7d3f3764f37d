"""File, command line and defaults meet here, once, in one frozen `Config`.

The only reader of configuration files and of the environment. Nothing outside sees a
half-checked table: there is a `Config`, or a `ConfigError` with every problem at once.
What the tables are is in `model`, what several keys must agree on in `rules`.

A key of a part that does not exist yet is an unknown key. One that were accepted and
ignored would be a promise that nobody keeps.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from penstock_supervisor.config import rules, users
from penstock_supervisor.config.applicability import PROGRAMS
from penstock_supervisor.config.diagnostics import (
    Problem,
    dotted,
    expected,
    explained,
    unknown,
    without_units,
)
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
    "load",
    "parse_app",
]

ROOT_RUN_DIR: Final = Path("/run/penstock")
LISTEN: Final = "127.0.0.1:8000"
SERVICE: Final = "web"
"""The service of a command line that names no file."""
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
"""What a key is called on the command line."""
_TOP: Final = ("admin", "proxies", "run_dir", "user", "group", "no_new_privileges")
"""Keys of the whole run."""


class ConfigError(Exception):
    """Nothing can be started: every problem at once, a line each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path | None, overrides: Mapping[str, Any]) -> Config:
    """Make the `Config` of a file, or of none, and the options of a command line.

    `overrides` has keys of `OPTIONS`, with values as a file would write them. They change
    the one service of a file; a file with several has to be edited. ConfigError.
    """
    source = _Source(str(path) if path else "", frozenset(overrides))
    table = _read(path) if path else {"service": {SERVICE: {"listen": LISTEN}}}
    return _checked(_merged(table, overrides, source), source)


def inherited_environment() -> dict[str, str]:
    """What a child may inherit: nothing that makes *us* somebody's worker."""
    return {name: value for name, value in os.environ.items() if name not in SCRUBBED}


def default_run_dirs() -> tuple[Path, ...]:
    """Where a run has its control socket when `run_dir` does not say it."""
    return run_dirs_of(os.geteuid(), os.environ.get("XDG_RUNTIME_DIR", ""))


def run_dirs_of(uid: int, runtime: str) -> tuple[Path, ...]:
    """Where runs of this user are when nobody says where, the best place first.

    `runtime` is XDG_RUNTIME_DIR, or nothing. Root does not look there: it may have become
    root with somebody else's environment.
    """
    in_tmp = Path(f"/tmp/penstock-{uid}")
    if uid == 0:
        return (ROOT_RUN_DIR, in_tmp)
    return (Path(runtime, "penstock"), in_tmp) if Path(runtime).is_absolute() else (in_tmp,)


class _Source(NamedTuple):
    """Where a value came from, for the line that complains about it."""

    file: str
    options: frozenset[str]

    def line(self, problem: Problem) -> str:
        where = problem.where
        key = str(where[2 if where[0] == "service" and len(where) > 2 else 0]) if where else ""
        if key in self.options:
            return f"{OPTIONS[key]}: {problem.text}"
        return ": ".join(filter(None, (self.file, dotted(where), problem.text)))

    def error(self, *problems: Problem) -> ConfigError:
        return ConfigError(tuple(dict.fromkeys(self.line(problem) for problem in problems)))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError((f"{path}: {error.strerror}",)) from error
    except UnicodeDecodeError as error:
        raise ConfigError((f"{path}: byte {error.start}: expected UTF-8 text",)) from error
    except RecursionError as error:
        raise ConfigError((f"{path}: nested too deeply",)) from error
    except ValueError as error:
        # tomllib has no attributes for the place before Python 3.14, only this wording.
        match = re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", str(error))
        text = f"{match[2]}: {match[1]}" if match else str(error)
        raise ConfigError((f"{path}: {text}",)) from error


def _merged(table: dict[str, Any], overrides: Mapping[str, Any], source: _Source) -> dict[str, Any]:
    """The file's tables with the options written over them."""
    changes = {key: value for key, value in overrides.items() if key not in _TOP}
    merged = {**table, **{key: overrides[key] for key in _TOP if key in overrides}}
    services = table.get("service")
    named = any(key in changes for key in PROGRAMS)
    if not source.file and not named:
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
        # A program that is named on the command line takes the place of the file's.
        dropped = PROGRAMS if named else ()
        kept = {key: value for key, value in service.items() if key not in dropped}
        merged["service"] = {name: {**kept, **changes}}
    return merged


def _checked(table: Mapping[str, Any], source: _Source) -> Config:
    top = (*_TOP, "service")
    problems = [Problem((key,), unknown(key, top)) for key in table if key not in top]
    tables = table.get("service", {})
    if not isinstance(tables, Mapping):
        problems.append(Problem(("service",), expected("tables, such as [service.web]", tables)))
        tables = {}
    elif not tables:
        problems.append(Problem((), "nothing to serve: expected a table such as [service.web]"))
    checked = [_service(name, service) for name, service in tables.items()]
    problems += [problem for found, _ in checked for problem in found]
    services = tuple(service for _, service in checked if service is not None)
    given = {key: table[key] for key in _TOP if key in table}
    if given.get("proxies") == "auto":
        given["proxies"] = len(os.sched_getaffinity(0))
    try:
        config = Config(**given, services=services)
    except ValidationError as failure:
        problems += explained(Config, failure)
        config = Config(admin="", services=services)
    problems += [*rules.of_config(config), *_account(config)]
    problems += _certificates(services)
    if problems:
        raise source.error(*problems)
    return config


def _service(name: str, table: object) -> tuple[list[Problem], Service | None]:
    """One table: its problems, and the service if its values are fine one by one."""
    at = ("service", name)
    if not isinstance(table, Mapping):
        return [Problem(at, expected("a table, such as [service.web]", table))], None
    found: list[Problem] = []
    if "name" in table:
        found.append(Problem(("name",), "unknown key; a service is named by its table"))
    found += [*rules.of_table(table), *without_units(Service, table)]
    if table.get("workers") == "auto":
        table = {**table, "workers": len(os.sched_getaffinity(0))}
    service = None
    try:
        service = Service.model_validate({**table, "name": name})
        found += [*rules.of_service(service), *_places(service)]
    except ValidationError as failure:
        # An upstream is one string for its writer, whatever it is for us. A bare number is
        # both a value without a unit and a bad value: once is enough.
        known = {where for where, _ in found if where}
        for where, text in explained(Service, failure):
            place = where[:2] if where[0] == "upstreams" else where
            found += [Problem(place, text)] if place not in known else []
    return [Problem((*at, *where), text) for where, text in found], service


def _certificates(services: tuple[Service, ...]) -> Iterator[Problem]:
    """Certificates and keys, as far as their keys in the file are fine."""
    encrypted = [service for service in services if service.tls.files]
    if encrypted:
        # Late: it needs a library that takes longer to load than all the rest.
        from penstock_supervisor.config import certificates

        yield from certificates.problems(encrypted)


def _account(config: Config) -> Iterator[Problem]:
    """Whether `user` and `group` are known here, and can be had."""
    if config.user is None:
        if config.group is not None:
            yield Problem(("group",), "only with user: it is the group that the user runs in")
        return
    try:
        found = users.find(config.user, config.group)
    except users.UnknownError as unknown_:
        yield Problem((unknown_.key,), str(unknown_))
        return
    if os.geteuid() != 0 and not found.is_ours:
        key = "user" if found.uid != os.geteuid() else "group"
        ours = f"{os.geteuid()}:{os.getegid()}"
        yield Problem((key,), f"only root can run as {found.uid}:{found.gid}, and we are {ours}")


def _places(service: Service) -> Iterator[Problem]:
    """Directories that have to exist: better missed now than by a worker or a proxy."""
    log, directory = service.access_log, service.directory
    if log not in ("stdout", "off") and not Path(log).parent.is_dir():
        yield Problem(("access_log",), expected("a file in a directory that exists", log))
    if directory is not None and not Path(directory).is_dir():
        yield Problem(("directory",), expected("a directory that exists", directory))
