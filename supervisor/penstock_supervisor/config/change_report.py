"""Says what a changed configuration means: a line for each change, and what happens to workers.

Used by `reload --dry-run`, the log and the result of a roll-out. Values are written as in a file.
Of `env` only the names are said, because the values may be secrets. Owns the reasons for which a
change is refused. No I/O, no clock.
"""

from collections.abc import Collection, Iterator, Mapping
from shlex import join
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, BeforeValidator

from penstock_proxy.config import parse_duration, parse_share, parse_share_or_number, parse_size
from penstock_supervisor.config.changes import Changes, KeyChange, Need, ServiceChanges, service_of
from penstock_supervisor.config.diagnostics import as_toml
from penstock_supervisor.config.model import Config, Service, Upstream

_REFUSED: Final[Mapping[str, str]] = {
    "admin": "the admin port stays where Prometheus looks for it",
    "run_dir": "the control socket of this run is there",
    "user": "what runs and what is open belongs to that user",
    "group": "what runs and what is open belongs to that group",
    "no_new_privileges": "a process cannot get back what it gave up",
    "scheme": "connections cannot change between proxies and workers",
    "mode": "the connections that are open are of the other one",
    "socket_mode": "the socket is open already, and its address stays the same",
    "program": "a service has a program or upstreams; use a service of another name",
}
"""Why only a restart can change a key."""
_DURATIONS: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s"), (0.001, "ms"))
_SIZES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def refused(changes: Changes) -> tuple[str, ...]:
    """Every change that only a restart can make, with its reason. Empty: all can be applied."""
    problems = [
        f"{_change_line('', change, Config)}; only a restart can change it: {_REFUSED[change.key]}"
        for change in changes.run
        if Need.RESTART in change.needs
    ]
    for name, service in changes.kept.items():
        if _is_other_kind(changes, name):
            problems.append(f"service.{name}: only a restart can change it: {_REFUSED['program']}")
        for change in service.of(Need.RESTART):
            if change.key in _REFUSED:
                line = _change_line(f"service.{name}.", change, Service)
                problems.append(f"{line}; only a restart can change it: {_REFUSED[change.key]}")
    return tuple(problems)


def lines(
    changes: Changes,
    replaced: Collection[str] | None = None,
    moved: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, ...]:
    """A line for each change, and then what happens to the workers of each service.

    `replaced`: the services whose workers are replaced; None: those that have to be. `moved`: those
    whose directory is another one now, because a link leads elsewhere; their workers are as well.
    """
    if replaced is None:
        replaced = changes.replaced()
    said = [_change_line("", change, Config) for change in changes.run]
    for name, service in changes.kept.items():
        said += [_change_line(f"{name}.", change, Service) for change in service.keys]
        if name in moved and all(change.key != "directory" for change in service.keys):
            said.append(f"{name}.directory: leads to {moved[name]} now")
    said += [f"{name}: removed; what is open is finished" for name in changes.removed]
    said += [_added(service_of(changes.new, name)) for name in changes.added]
    for name, service in changes.kept.items():
        said += _outcome(changes, service, is_replaced=name in replaced or name in moved)
    return tuple(said)


def _is_other_kind(changes: Changes, name: str) -> bool:
    old, new = service_of(changes.old, name), service_of(changes.new, name)
    return old.has_program != new.has_program


def _added(service: Service) -> str:
    count = len(service.upstreams) or service.workers
    plural = "s" * (count != 1)
    program = service.app or join(service.command or ())
    what = f"upstream{plural}" if service.upstreams else f"worker{plural} of {program}"
    return f"{service.name}: added on {service.listen}: {count} {what}"


def _outcome(changes: Changes, service: ServiceChanges, *, is_replaced: bool) -> Iterator[str]:
    name = service.name
    old, new = service_of(changes.old, name), service_of(changes.new, name)
    unchanged = "" if service.keys else "unchanged, "
    if not new.has_program:
        if unchanged:
            yield f"{name}: unchanged"
        return
    kept = min(old.workers, new.workers)
    if is_replaced:
        yield f"{name}: {_workers(kept)} replaced"
    else:
        yield f"{name}: {unchanged}its workers are not replaced"
    if new.workers > old.workers:
        yield f"{name}: {_workers(new.workers - old.workers)} added"
    elif new.workers < old.workers:
        yield f"{name}: {_workers(old.workers - new.workers)} removed"


def _workers(count: int) -> str:
    return "1 worker is" if count == 1 else f"{count} workers are"


def _change_line(prefix: str, change: KeyChange, model: type[BaseModel]) -> str:
    key = f"{prefix}{change.key}"
    old, new = change.old, change.new
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return f"{key}: {_by_name(old, new)}"
    if change.key == "upstreams":
        # Both are tuples of upstreams.
        return f"{key}: {_by_name(_weights(old), _weights(new))}"
    shown = _shown(model, change.key, old), _shown(model, change.key, new)
    # What is cut may look the same.
    return f"{key}: changed" if shown[0] == shown[1] else f"{key}: {shown[0]} -> {shown[1]}"


def _weights(upstreams: Any) -> dict[str, object]:
    found: tuple[Upstream, ...] = upstreams
    return {upstream.address: upstream.weight for upstream in found}


def _by_name(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """What has happened to which entries, without their values."""
    words = [f"{name} is added" for name in new if name not in old]
    words += [f"{name} is removed" for name in old if name not in new]
    words += [f"{name} is changed" for name in new if name in old and old[name] != new[name]]
    return ", ".join(words) or "changed"


def _shown(model: type[BaseModel], key: str, value: object) -> str:
    """A value as in a file."""
    if value is None:
        return "none"
    parsers = _parsers(model, key)
    if isinstance(value, float) and parse_duration in parsers:
        return _in_units(value, _DURATIONS)
    if isinstance(value, int) and parse_size in parsers:
        return _in_units(value, _SIZES)
    if isinstance(value, float) and parsers & {parse_share, parse_share_or_number}:
        return f"{value:.0%}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        # A range of ports.
        return "-".join(map(str, value))
    if isinstance(value, tuple):
        value = [one.model_dump() if isinstance(one, BaseModel) else one for one in value]
    return as_toml(value)


def _in_units(value: float, units: tuple[tuple[float, str], ...]) -> str:
    for size, unit in units:
        if value >= size and not round(value / size, 9) % 1:
            return f"{value / size:.0f}{unit}"
    # Zero, or a fraction of the smallest unit, for which the usual one is as good.
    return f"{value:g}{'s' if units is _DURATIONS else 'B'}"


def _parsers(model: type[BaseModel], key: str) -> set[object]:
    *tables, name = key.split(".")
    for table in tables:
        kind = model.model_fields[table].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        model = kind
    items = model.model_fields[name].metadata
    return {item.func for item in items if isinstance(item, BeforeValidator)}
