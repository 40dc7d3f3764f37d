"""What is wrong with a configuration, in words for the person who wrote it.

Turns what the models say about a table into one line a problem: the key's path, what was
expected, what was found, and the key or word that was probably meant. It knows how models
are made of fields and nothing of what any key means, so a new key needs nothing here. A key that
gets another name needs a line in RENAMED.

Why not pydantic's own texts: they name its types and its unions, and the reader of a
configuration file has never heard of either. No I/O, no clock.
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

NEAR: Final = 0.7
"""How like a word has to be to have been meant: at 0.6, send_proxy is trusted_proxies."""
MAX_SHOWN: Final = 60
"""Characters of a found value; a line has to stay one line."""

RENAMED: Final[Mapping[str, str]] = {
    "fronts": "proxies",
    "ports": "worker_ports",
    "forwarding.believe": "forwarding.trust",
}
"""Keys by their older names, dotted as in the run or in a service; the table is the same."""
_REWORDED: Final[Mapping[tuple[str, object], str]] = {("balance", "hash"): "client_hash"}
"""Values of keys by their older words."""

# The proxy gets its share as JSON, where durations are numbers. A person has to write the
# unit: nobody can know whether `interval = 5` was meant as seconds or milliseconds.
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
    """One thing that is wrong: where, and the whole text."""

    where: Location
    text: str


def expected(what: str, found: object) -> str:
    return f"expected {what}, not {shown(found)}"


def shown(value: object) -> str:
    """A value as it is written in TOML, cut to a readable length."""
    match value:
        case Mapping():
            return "a table"
        case str() | bool() | int() | float() | list() | tuple():
            text = json.dumps(value, ensure_ascii=False, default=str)
        case _:
            text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def dotted(where: Location) -> str:
    """`service.web.upstreams[1]`."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def meant(word: object, known: Iterable[str]) -> str:
    """`; did you mean "interval"?`, or nothing when no known word is near."""
    near = get_close_matches(str(word).lower(), list(known), n=1, cutoff=NEAR)
    return f'; did you mean "{near[0]}"?' if near else ""


def unknown(key: object, known: Collection[str]) -> str:
    return renamed((str(key),), known) or f"unknown key{meant(key, known)}"


def renamed(where: Location, known: Collection[str]) -> str:
    """What a key with an older name is called now, or nothing. `known`: keys of its table."""
    name = RENAMED.get(dotted(where), "").rpartition(".")[2]
    return f"is called {name} now" if name in known else ""


def without_units(
    model: type[BaseModel], table: Mapping[str, Any], at: Location = ()
) -> Iterator[Problem]:
    """Values that need a unit and are not strings."""
    for key, value in table.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        part = _part(field)
        if part is not None and isinstance(value, Mapping):
            yield from without_units(part, value, (*at, key))
        unit = _UNITS.get(_parser(field))
        if unit is not None and not isinstance(value, str):
            yield Problem((*at, key), expected(unit, value))


def explained(model: type[BaseModel], failure: ValidationError) -> Iterator[Problem]:
    """Every error of a failed validation of `model`, in the order of its fields."""
    for error in failure.errors(include_url=False):
        # Pydantic marks a bad key of a mapping so; for the reader it is just the place.
        where = tuple(part for part in error["loc"] if part != "[key]")
        yield Problem(where, _text(model, where, error))


def _text(model: type[BaseModel], where: Location, error: ErrorDetails) -> str:
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "tuple_type" and isinstance(found, str) and found.split():
        return expected(f"a list, such as {shown(found.split())}", found)
    if kind in _TYPES:
        return expected(_TYPES[kind], found)
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return expected(f"{words} {_bound(model, where, context[bound])}", found)
    match kind:
        case "missing":
            return _missing(model, where)
        case "extra_forbidden":
            return _unknown_in(model, where)
        case "value_error":
            return f"{context['error']}, not {shown(found)}"
        case "literal_error":
            return _not_one_of(where, context["expected"], found)
        case _:
            return f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {shown(found)}"


def _missing(model: type[BaseModel], where: Location) -> str:
    field = _field(model, where)
    example = (
        f": expected for example {shown(field.examples[0])}" if field and field.examples else ""
    )
    return f"missing{example}"


def _not_one_of(where: Location, choices: str, found: object) -> str:
    """Pydantic lists the words of a Literal as `'a', 'b' or 'c'`."""
    if isinstance(found, str) and (new := _REWORDED.get((dotted(where), found))):
        return f"{shown(found)} is called {shown(new)} now"
    words = choices.replace("'", '"')
    return expected(words, found) + meant(found, words.replace('"', " ").replace(",", " ").split())


def _bound(model: type[BaseModel], where: Location, bound: float) -> str:
    """The bound in the unit that the key is written in."""
    field = _field(model, where)
    parser = _parser(field) if field else None
    if parser is parse_duration:
        return f'"{bound:g}s"'
    if parser is parse_size:
        return f'"{bound}B"'
    return f'"{bound:.0%}"' if parser is parse_share else f"{bound}"


def _unknown_in(model: type[BaseModel], where: Location) -> str:
    """The neighbour that was meant, or the same word in a table below."""
    key, parent = str(where[-1]), _model(model, where[:-1])
    if parent is None:
        return "unknown key"
    if new := renamed(where, parent.model_fields):
        return new
    if near := meant(key, parent.model_fields):
        return f"unknown key{near}"
    below = [(name, _part(field)) for name, field in parent.model_fields.items()]
    keys = {inner: f"{name}.{inner}" for name, part in below if part for inner in part.model_fields}
    close = get_close_matches(key.lower(), keys, n=1, cutoff=NEAR)
    return f'unknown key; did you mean "{keys[close[0]]}"?' if close else "unknown key"


def _model(model: type[BaseModel], where: Location) -> type[BaseModel] | None:
    for part in where:
        field = model.model_fields.get(str(part))
        inner = _part(field) if field else None
        if inner is None:
            return None
        model = inner
    return model


def _field(model: type[BaseModel], where: Location) -> FieldInfo | None:
    parent = _model(model, where[:-1])
    return parent.model_fields.get(str(where[-1])) if parent else None


def _part(field: FieldInfo) -> type[BaseModel] | None:
    """The table that a field holds, if it holds one."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _parser(field: FieldInfo) -> object:
    parsers = [item.func for item in field.metadata if isinstance(item, BeforeValidator)]
    return next((parser for parser in parsers if parser in _UNITS), None)
