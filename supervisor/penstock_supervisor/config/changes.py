"""Compares two configurations: what has changed, and what each change needs.

A reload applies what it can while everything runs. Most settings need nothing but those who act
on them; some are given to a worker when it is started, and need new processes; a few can only be
changed by a restart, and are refused before anything is done. Owns one table with an entry for
every key; a test fails for a key without one. `change_report` has the words. Must not know how a
change is carried out. No I/O, no clock.
"""

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from penstock_proxy.config import FrozenModel
from penstock_proxy.net.address import parse_address
from penstock_supervisor.config.model import Config, Service

EVERYTHING: Final = ""
"""Among the names of services that are to be replaced: whatever a reload without names does. No
service has this name."""


class Need(StrEnum):
    """What a changed key needs to take effect."""

    SUPERVISOR = "supervisor"
    """Nothing else: only the supervisor acts on it."""
    SETTINGS = "settings"
    """The proxies are told."""
    PROGRAM = "program"
    """New processes: a worker is given it at its start."""
    LISTEN = "listen"
    """Another listening socket."""
    TLS = "tls"
    """Other certificates, or other rules for them."""
    UPSTREAMS = "upstreams"
    """Other members of the proxies' pools."""
    WORKERS = "workers"
    """More or fewer workers."""
    RESTART = "restart"
    """A restart of the run."""


RUN_NEEDS: Final[Mapping[str, Need]] = {
    "admin": Need.RESTART,
    "proxies": Need.SETTINGS,
    "run_dir": Need.RESTART,
    "user": Need.RESTART,
    "group": Need.RESTART,
    "no_new_privileges": Need.RESTART,
}
"""By key of the whole run."""

SERVICE_NEEDS: Final[Mapping[str, Need]] = {
    **dict.fromkeys(("scheme", "mode"), Need.RESTART),
    **dict.fromkeys(("listen", "socket_mode"), Need.LISTEN),
    **dict.fromkeys(
        ("app", "command", "env", "directory", "worker_ports", "link", "on_uncaught"), Need.PROGRAM
    ),
    "upstreams": Need.UPSTREAMS,
    "workers": Need.WORKERS,
    "tls": Need.TLS,
    **dict.fromkeys(
        (
            "stop_signal", "stop_to", "restart", "liveness", "rollout", "health.restart_after",
            "timeouts.start",
        ),
        Need.SUPERVISOR,
    ),
    **dict.fromkeys(
        (
            "balance", "weights", "trusted_proxies", "send_proxy", "accept_proxy", "sni",
            "max_connections", "handoff_window", "abort_on_close", "access_log",
            "access_log_format", "health", "ejection", "retries", "timeouts", "limits",
            "forwarding",
        ),
        Need.SETTINGS,
    ),
}  # fmt: skip
"""By key of a service, or by table where it is the same for all keys that have no entry of their
own."""


class KeyChange(NamedTuple):
    """One key that has another value."""

    key: str
    """As in the file: `timeouts.stop`."""
    old: object
    new: object
    needs: frozenset[Need]


class ServiceChanges(NamedTuple):
    """What has changed of a service that both configurations have."""

    name: str
    keys: tuple[KeyChange, ...]
    """In the order of the keys; empty: nothing."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(need for change in self.keys for need in change.needs)

    def of(self, need: Need) -> tuple[KeyChange, ...]:
        """The changes that need this."""
        return tuple(change for change in self.keys if need in change.needs)


class Changes(NamedTuple):
    """What a reload from `old` to `new` has to do."""

    old: Config
    new: Config
    run: tuple[KeyChange, ...]
    """Keys of the whole run."""
    kept: Mapping[str, ServiceChanges]
    """By name: the services of both, also those that have not changed."""
    added: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Both are the same."""
        return not (
            self.run or self.added or self.removed or any(one.keys for one in self.kept.values())
        )

    def replaced(self, named: Collection[str] = (), moved: Collection[str] = ()) -> frozenset[str]:
        """The services whose workers are replaced. `named`: those that were asked for by name; with
        EVERYTHING, somebody has asked without names as well. `moved`: those whose directory is
        another one now, because a link leads elsewhere.

        If nobody has named any and nothing has changed, a reload means the code: all are replaced.
        """
        programs = {name for name in self.kept if service_of(self.new, name).has_program}
        if (not named or EVERYTHING in named) and self.is_empty and not moved:
            return frozenset(programs)
        wanted = {*named, *moved}
        return frozenset(
            name for name in programs if name in wanted or self.needs_new_processes(name)
        )

    def needs_new_processes(self, name: str) -> bool:
        """The workers of a service of both have to be replaced."""
        # Under handoff each worker inherits a link from each proxy.
        has_other_links = self.old.proxies != self.new.proxies and (
            service_of(self.new, name).scheme == "handoff"
        )
        return has_other_links or Need.PROGRAM in self.kept[name].needs


def compare(old: Config, new: Config) -> Changes:
    """All differences. `change_report.refused` says which of them are not possible."""
    before = {service.name: service for service in old.services}
    after = {service.name: service for service in new.services}
    run = tuple(
        KeyChange(key, getattr(old, key), getattr(new, key), frozenset({need}))
        for key, need in RUN_NEEDS.items()
        if getattr(old, key) != getattr(new, key)
    )
    return Changes(
        old,
        new,
        run,
        {name: _compare(before[name], after[name]) for name in after if name in before},
        tuple(name for name in after if name not in before),
        tuple(name for name in before if name not in after),
    )


def service_of(config: Config, name: str) -> Service:
    """KeyError: there is none of that name."""
    for service in config.services:
        if service.name == name:
            return service
    raise KeyError(name)


def values(table: FrozenModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a table and of the tables in it, as in the file, with its value."""
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, FrozenModel):
            yield from values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def need_of(key: str) -> Need:
    """The entry of a service's key, or of its table. KeyError: it has none."""
    own = SERVICE_NEEDS.get(key)
    return SERVICE_NEEDS[key.partition(".")[0]] if own is None else own


def _compare(old: Service, new: Service) -> ServiceChanges:
    before = dict(values(old))
    changed = {
        key: (before[key], value)
        for key, value in values(new)
        if key != "name" and before[key] != value
    }
    needs = dict(_needs(old, new, tuple(changed)))
    return ServiceChanges(
        new.name, tuple(KeyChange(key, *pair, needs[key]) for key, pair in changed.items())
    )


def _needs(
    old: Service, new: Service, changed: Collection[str]
) -> Iterator[tuple[str, frozenset[Need]]]:
    # Which of them is there cannot change; see `change_report.refused`.
    is_other_kind = bool(old.upstreams) != bool(new.upstreams)
    before, after = _given_to_workers(old), _given_to_workers(new)
    for key in changed:
        needs = set(_own_needs(key, old, new))
        if before.get(key) != after.get(key):
            needs.add(Need.PROGRAM)
        if is_other_kind and key in ("app", "command", "upstreams"):
            needs = {Need.RESTART}
        yield key, frozenset(needs or {Need.SUPERVISOR})


def _own_needs(key: str, old: Service, new: Service) -> Iterator[Need]:
    """What the table says, for these services."""
    need = need_of(key)
    if key == "socket_mode" and old.listen == new.listen:
        yield Need.RESTART
    elif need is Need.SETTINGS and not new.has_proxy:
        # What no worker is given the supervisor acts on, as on health checks.
        yield Need.SUPERVISOR
    elif need is not Need.PROGRAM:
        # Whether a process is given the key depends on more than the key.
        yield need
    if key == "timeouts.stop":
        yield Need.SUPERVISOR


def _given_to_workers(service: Service) -> dict[str, object]:
    """What a worker's process is started with, by key; it is made of it in `children.plan`.

    A key that is not in it has no effect on the process.
    """
    if not service.has_program:
        return {}
    given: dict[str, object] = {
        "app": service.app,
        "command": service.command,
        "env": service.env,
        "directory": service.directory,
    }
    if service.scheme == "ports":
        given["worker_ports"] = service.worker_ports
        given["link"] = service.wants_sockets
    elif not service.has_proxy or not parse_address(service.listen).path:
        # The listening socket itself, or the variables that name it.
        given["listen"] = service.listen
    if service.app is not None:
        given["on_uncaught"] = service.on_uncaught
        given |= _given_to_app(service)
    elif service.scheme != "ports" and service.accept_proxy:
        given |= _proxy_header(service)
    return given


def _given_to_app(service: Service) -> dict[str, object]:
    given: dict[str, object] = {}
    if service.scheme == "ports":
        if service.send_proxy:
            given = {"send_proxy": True, "timeouts.head": service.timeouts.head}
        return given
    if service.accept_proxy:
        given |= _proxy_header(service)
    if service.mode == "http" and service.access_log != "off":
        given["access_log"] = service.access_log
        given["access_log_format"] = service.access_log_format
    if service.mode != "udp":
        given["timeouts.keepalive"] = service.timeouts.keepalive
        given["limits.log_field"] = service.limits.log_field
        if not service.has_proxy and service.max_connections:
            # Divided among the workers.
            given["max_connections"] = service.max_connections
            given["workers"] = service.workers
    return given


def _proxy_header(service: Service) -> dict[str, object]:
    return {
        "accept_proxy": True,
        "timeouts.head": service.timeouts.head,
        "trusted_proxies": service.trusted_proxies,
    }
