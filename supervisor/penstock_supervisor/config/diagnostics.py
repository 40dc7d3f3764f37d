"""Errors of a configuration, in words for the person who wrote it.

Turns the validation errors of the models into one line per problem: the path of the key, what
was expected, what was found, and the key or value that was probably meant. It depends only on the
structure of the models, so a new key needs no change here. A renamed key needs a line in RENAMED.

Pydantic's own texts are not used because they name its types and unions, which the author of
a configuration file does not know. No I/O, no clock.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from penstock_proxy.config import parse_duration, parse_share, parse_size

Location = tuple[int | str, ...]

MIN_SIMILARITY: Final = 0.7
"""From which similarity on a word is suggested. At 0.6 send_proxy would match trusted_proxies."""
MAX_VALUE_LENGTH: Final = 60
"""Characters of a value in a message, so that the message stays one line."""

RENAMED: Final[Mapping[str, str]] = {
    "fronts": "proxies",
    "ports": "worker_ports",
    "forwarding.believe": "forwarding.trust",
}
"""New names of renamed keys: dotted, as in the run or in a service. Both are in one table."""
_RENAMED_VALUES: Final[Mapping[tuple[str, object], str]] = {("balance", "hash"): "client_hash"}
"""New names of renamed values, by key and old value."""

# Proxies get their configuration as JSON, with durations as numbers. In a file the unit is
# required: `interval = 5` could mean seconds or milliseconds.
_UNITS: Final[dict[object, str]] = {
    parse_duration: 'a duration with a unit, such as "500ms", "2s" or "1h"',
    parse_size: 'a size with a unit, such as "16KiB" or "64MiB"',
    parse_share: 'a share, such as "50%"',
}

_TYPES: Final = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
}

_BOUNDS: Final = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


class Problem(NamedTuple):
    """One error: its place in the configuration, and the text."""

    location: Location
    text: str


def expected(what: str, value: object) -> str:
    return f"expected {what}, not {as_toml(value)}"


def as_toml(value: object) -> str:
    """A value as it is written in TOML, cut to a readable length."""
    match value:
        case Mapping():
            return "a table"
        case str() | bool() | int() | float() | list() | tuple():
            text = json.dumps(value, ensure_ascii=False, default=str)
        case _:
            text = str(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 1]}…"


def key_path(location: Location) -> str:
    """`service.web.upstreams[1]`."""
    text = ""
    for name in location:
        text += f"[{name}]" if isinstance(name, int) else f".{name}"
    return text.removeprefix(".")


def suggestion(text: object, candidates: Iterable[str]) -> str:
    """`; did you mean "interval"?`, or nothing if no candidate is similar enough."""
    closest = get_close_matches(str(text).lower(), list(candidates), n=1, cutoff=MIN_SIMILARITY)
    return f'; did you mean "{closest[0]}"?' if closest else ""


def unknown_key(key: object, candidates: Collection[str]) -> str:
    return renamed((str(key),), candidates) or f"unknown key{suggestion(key, candidates)}"


def renamed(location: Location, keys: Collection[str]) -> str:
    """What a renamed key is called now, or nothing. `keys`: the keys of its table."""
    name = RENAMED.get(key_path(location), "").rpartition(".")[2]
    return f"is called {name} now" if name in keys else ""


def missing_units(
    model: type[BaseModel], table: Mapping[str, Any], location: Location = ()
) -> Iterator[Problem]:
    """Values that need a unit and are not strings."""
    for key, value in table.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        table_type = _table_type(field)
        if table_type is not None and isinstance(value, Mapping):
            yield from missing_units(table_type, value, (*location, key))
        unit = _UNITS.get(_parser(field))
        if unit is not None and not isinstance(value, str):
            yield Problem((*location, key), expected(unit, value))


def explain(model: type[BaseModel], failure: ValidationError) -> Iterator[Problem]:
    """Every error of a failed validation of `model`, in the order of its fields."""
    for error in failure.errors(include_url=False):
        # Pydantic's mark of a bad key in a mapping; the key before it is the location.
        location = tuple(name for name in error["loc"] if name != "[key]")
        yield Problem(location, _text(model, location, error))


def _text(model: type[BaseModel], location: Location, error: ErrorDetails) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "tuple_type" and isinstance(value, str) and value.split():
        return expected(f"a list, such as {as_toml(value.split())}", value)
    if kind in _TYPES:
        return expected(_TYPES[kind], value)
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return expected(f"{words} {_format_bound(model, location, context[bound])}", value)
    match kind:
        case "missing":
            return _missing_key(model, location)
        case "extra_forbidden":
            return _unknown_key(model, location)
        case "value_error":
            return f"{context['error']}, not {as_toml(value)}"
        case "literal_error":
            return _bad_choice(location, context["expected"], value)
        case _:
            return f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {as_toml(value)}"


def _missing_key(model: type[BaseModel], location: Location) -> str:
    field = _field(model, location)
    example = (
        f": expected for example {as_toml(field.examples[0])}" if field and field.examples else ""
    )
    return f"missing{example}"


def _bad_choice(location: Location, choices: str, value: object) -> str:
    """Pydantic lists the words of a Literal as `'a', 'b' or 'c'`."""
    if isinstance(value, str) and (new := _RENAMED_VALUES.get((key_path(location), value))):
        return f"{as_toml(value)} is called {as_toml(new)} now"
    quoted = choices.replace("'", '"')
    words = quoted.replace('"', " ").replace(",", " ").split()
    return expected(quoted, value) + suggestion(value, words)


def _format_bound(model: type[BaseModel], location: Location, bound: float) -> str:
    """The bound, in the unit in which the key is written."""
    field = _field(model, location)
    parser = _parser(field) if field else None
    if parser is parse_duration:
        return f'"{bound:g}s"'
    if parser is parse_size:
        return f'"{bound}B"'
    return f'"{bound:.0%}"' if parser is parse_share else f"{bound}"


def _unknown_key(model: type[BaseModel], location: Location) -> str:
    """Suggest a key of the same table, or else one of a table inside it."""
    key, parent = str(location[-1]), _table_model(model, location[:-1])
    if parent is None:
        return "unknown key"
    if new := renamed(location, parent.model_fields):
        return new
    if hint := suggestion(key, parent.model_fields):
        return f"unknown key{hint}"
    tables = [(name, _table_type(field)) for name, field in parent.model_fields.items()]
    paths = {
        inner: f"{name}.{inner}"
        for name, table_type in tables
        if table_type
        for inner in table_type.model_fields
    }
    closest = get_close_matches(key.lower(), paths, n=1, cutoff=MIN_SIMILARITY)
    return f'unknown key; did you mean "{paths[closest[0]]}"?' if closest else "unknown key"


def _table_model(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    for name in location:
        field = model.model_fields.get(str(name))
        table_type = _table_type(field) if field else None
        if table_type is None:
            return None
        model = table_type
    return model


def _field(model: type[BaseModel], location: Location) -> FieldInfo | None:
    parent = _table_model(model, location[:-1])
    return parent.model_fields.get(str(location[-1])) if parent else None


def _table_type(field: FieldInfo) -> type[BaseModel] | None:
    """The table that a field holds, if it holds one."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _parser(field: FieldInfo) -> object:
    parsers = [item.func for item in field.metadata if isinstance(item, BeforeValidator)]
    return next((parser for parser in parsers if parser in _UNITS), None)
