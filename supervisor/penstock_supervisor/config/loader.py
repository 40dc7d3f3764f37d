"""Merges file, command line and defaults into one frozen `Config`.

Other modules never see a table that is partly checked: they get a `Config`, or a `ConfigError`
with all problems. `config_file` reads a file, `model` defines the tables, and `rules` what several
keys must agree on.

A key of a feature that does not exist yet is an unknown key. If it were accepted and ignored,
the configuration would promise something that does not happen.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from penstock_supervisor.config import file_access, rules, users
from penstock_supervisor.config.applicability import PROGRAMS
from penstock_supervisor.config.config_file import ConfigError, read_table
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

__all__ = [
    "OPTIONS",
    "Config",
    "ConfigError",
    "PortRange",
    "Restart",
    "Service",
    "Upstream",
    "load",
    "parse_app",
]

LISTEN: Final = "127.0.0.1:8000"
SERVICE: Final = "web"
"""Name of the service when the command line names no file."""
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
_RUN_KEYS: Final = ("admin", "proxies", "run_dir", "user", "group", "no_new_privileges")
"""Keys of the whole run, outside any service."""


def load(path: Path | None, overrides: Mapping[str, Any], *, again: bool = False) -> Config:
    """Make a `Config` of a file, if there is one, and of options of the command line.

    `overrides` has keys of `OPTIONS`, with values as in a file. They change the only service of
    a file; a file with several services has to be edited. `again`: for a reload. Somebody may be
    writing the file at that moment, and nobody sits there and ends what hangs: so it cannot be a
    pipe. Raises ConfigError. Blocks.
    """
    source = _Source(str(path) if path else "", frozenset(overrides))
    read = file_access.read_settled if again else file_access.read_given
    table = read_table(path, read) if path else {"service": {SERVICE: {"listen": LISTEN}}}
    return _check(_merge(table, overrides, source), source)


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
