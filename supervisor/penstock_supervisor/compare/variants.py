"""Makes the variants that are compared: one service, once under each scheme.

A variant has the user's own keys as far as its scheme takes them; the others are left out, by
the rules of the configuration. A scheme that cannot work with the program is not compared, and
the reason is the error that a configuration file would get. No variant has what would disturb
the others or the measurements: fixed ports, an access log of its own, a fixed admin port.

No I/O, no clock.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from penstock_proxy.config import parse_duration, parse_share, parse_size
from penstock_proxy.net.address import parse_address
from penstock_supervisor.config import applicability, rules
from penstock_supervisor.config.model import Config, Service

OVER_PORTS: Final = "ports/http/tcp"
"""As "ports/http", but the proxy reaches the workers over their ports and not over unix sockets."""
NAMES: Final = ("ports/http", OVER_PORTS, "ports/tcp", "handoff", "shared", "reuseport")
"""All, in the order in which they are shown."""
UNCHANGED: Final = ("listen", "scheme", "mode", "worker_ports", "access_log", "access_log_format")
"""Keys that the comparison decides for itself, so `as_toml` leaves them out."""
_HIDDEN: Final = "(not shown)"
"""In place of a variable's value: results are passed around, and secrets live in variables."""


class Variant(NamedTuple):
    """The service under one scheme."""

    name: str
    service: Service
    proxies: int = 1

    @property
    def config(self) -> Config:
        return Config(admin="127.0.0.1:0", proxies=self.proxies, services=(self.service,))


class Choice(NamedTuple):
    """What is compared, and what is not."""

    variants: tuple[Variant, ...]
    notes: tuple[str, ...]
    """Why a scheme is not compared."""


def parse_names(text: str) -> tuple[str, ...]:
    """Read "ports,handoff"; ValueError. A scheme alone means all its modes."""
    chosen = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        matching = {name for name in NAMES if word in (name, name.partition("/")[0])}
        if not matching:
            raise ValueError(f'expected some of {", ".join(NAMES)}, not "{word}"')
        chosen |= matching
    if not chosen:
        raise ValueError(f"expected some of {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in chosen)


def choose(
    service: Service,
    names: Iterable[str],
    directory: str,
    proxies: int = 1,
    *,
    access_log: bool = False,
) -> Choice:
    """Make a variant of `service` for each of `names`.

    If the service listens on a unix socket, each variant gets a socket of its own in `directory`.
    With `access_log` all of them write one to their stdout.
    """
    variants, notes = [], []
    for number, name in enumerate(names):
        scheme, mode, link = (*name.split("/"), "", "")[:3]
        listen = f"unix:{directory}/{number}" if parse_address(service.listen).path else ""
        variant, why = _under_scheme(service, scheme, mode, listen or "127.0.0.1:0")
        if link and not variant.wants_sockets:
            why = why or "its workers are reached over their ports anyway"
        elif link:
            variant = variant.model_copy(update={"link": link})
        if why:
            notes.append(f"{name} is not compared: {why}")
        else:
            log = "stdout" if access_log else "off"
            variant = variant.model_copy(update={"access_log": log})
            variants.append(Variant(name, variant, proxies if variant.has_proxy else 1))
    return Choice(tuple(variants), tuple(notes))


def _under_scheme(service: Service, scheme: str, mode: str, listen: str) -> tuple[Service, str]:
    """The service under `scheme`, and why it cannot work there ("" if it can)."""
    mode = mode or service.mode
    written = _without(service, _refused(service, scheme, mode))
    changes = {"scheme": scheme, "mode": mode, "listen": listen, "access_log": "off"}
    written = written.model_copy(update=changes)
    why = []
    for where, text in rules.check_scheme(written):
        if where[:1] == ("health",):
            # It can be run without, as one that was written for this scheme would be.
            health = written.health.model_copy(update={"path": None})
            written = written.model_copy(update={"health": health})
        else:
            why.append(text)
    return written, "; ".join(why)


def _refused(service: Service, scheme: str, mode: str) -> set[str]:
    """Keys that are left out: they do nothing there, or would disturb the comparison."""
    program = next(key for key in applicability.PROGRAMS if getattr(service, key))
    given = {program} | ({"tls"} if service.tls.files else set())
    traits = applicability.ServiceTraits(scheme, mode, program, given)
    refused = set(applicability.inapplicable_keys(traits))
    # The clients of a comparison send no PROXY header.
    refused |= {"worker_ports", "access_log_format", "accept_proxy"}
    if mode != "http" or scheme != "ports":
        refused.add("trusted_proxies")
    return refused


def _without(part: Any, keys: Iterable[str]) -> Any:
    """The part with the defaults for these keys; "table.key" is a key of one of its tables."""
    changes: dict[str, Any] = {}
    for key in keys:
        name, _, inner = key.partition(".")
        if inner:
            changes[name] = _without(changes.get(name, getattr(part, name)), (inner,))
        else:
            field = type(part).model_fields[name]
            changes[name] = field.get_default(call_default_factory=True)
    return part.model_copy(update=changes)


def as_toml(service: Service, proxies: int = 1) -> str:
    """What was run, as a configuration file, without scheme, mode and addresses."""
    lines = [f"proxies = {proxies}"] if proxies > 1 else []
    lines.append(f"[service.{service.name}]")
    for key, value in _changed_keys(service).items():
        if key in UNCHANGED or key == "name":
            continue
        shown = dict.fromkeys(value, _HIDDEN) if key == "env" else value
        lines.append(f"{key} = {_toml(shown, Service.model_fields[key])}")
    return "\n".join(lines) + "\n"


def _changed_keys(part: BaseModel) -> dict[str, Any]:
    """The keys that differ from their defaults, and `workers` in any case."""
    changed = {}
    for key, field in type(part).model_fields.items():
        value = getattr(part, key)
        default = field.get_default(call_default_factory=True)
        if value != default or key == "workers":
            changed[key] = value
    return changed


def _toml(value: object, field: FieldInfo | None = None) -> str:
    parsers = (
        [one.func for one in field.metadata if isinstance(one, BeforeValidator)] if field else []
    )
    match value:
        case BaseModel():
            fields = type(value).model_fields
            inner = (
                f"{key} = {_toml(one, fields[key])}" for key, one in _changed_keys(value).items()
            )
            return f"{{ {', '.join(inner)} }}"
        case Mapping():
            return f"{{ {', '.join(f'{key} = {_toml(one)}' for key, one in value.items())} }}"
        case bool() | str():
            return json.dumps(value, ensure_ascii=False)
        case int() | float() if parse_duration in parsers:
            return f'"{value:g}s"'
        case int() | float() if parse_share in parsers:
            return f'"{value:.0%}"'
        case int() if parse_size in parsers:
            return f'"{value}B"'
        case Sequence():
            return f"[{', '.join(_toml(one) for one in value)}]"
        case _:
            return str(value)
