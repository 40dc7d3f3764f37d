"""Divides a service's bounds among several proxies.

A bound is configured for the service as a whole, and proxies do not talk to each other. So each
proxy gets an equal share, the first ones also get the remainder, and the shares add up to the
configured value. The whole is never exceeded. If the kernel gives one proxy more clients than
the others, that proxy reaches its share first. `Divided` in the metadata of a field marks the
keys that are divided. No I/O, no clock.
"""

from collections.abc import Iterator
from typing import Any, Final

from penstock_proxy.config import Divided, FrozenModel, Health, ProxySettings

Key = tuple[str, ...]


def _divided_keys(model: type[FrozenModel], prefix: Key = ()) -> Iterator[tuple[Key, Divided]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, FrozenModel):
            yield from _divided_keys(kind, (*prefix, name))
        marks = (item for item in field.metadata if isinstance(item, Divided))
        yield from (((*prefix, name), mark) for mark in marks)


DIVIDED: Final = tuple(_divided_keys(ProxySettings))
"""The keys of a service that are divided."""


def share(total: int, parts: int, index: int) -> int:
    """Part `index` when `total` is divided into `parts`."""
    return total // parts + (index < total % parts)


def too_small(service: ProxySettings, proxies: int) -> Iterator[Key]:
    """The keys whose value is less than one for each proxy."""
    for key, divided in DIVIDED:
        value = _value(service, key)
        if isinstance(value, int) and 0 < value < proxies and not divided.least:
            yield key


def keys_for_proxy(service: ProxySettings, proxies: int, slot: int) -> dict[str, Any]:
    """The keys of `ProxySettings`, with this proxy's share of the divided ones."""
    keys: dict[str, Any] = {key: getattr(service, key) for key in ProxySettings.model_fields}
    keys["health"] = checks_of(service)
    for key, divided in DIVIDED:
        value = _value(service, key)
        if isinstance(value, int):
            portion = max(divided.least, share(value, proxies, slot))
            keys[key[0]] = _with_value(keys[key[0]], key[1:], portion)
    return keys


def checks_of(service: ProxySettings) -> Health:
    """How its workers are checked. The table of a service has a key of the supervisor's as well."""
    return Health(**{key: getattr(service.health, key) for key in Health.model_fields})


def _value(service: ProxySettings, key: Key) -> object:
    value: Any = service
    for name in key:
        value = getattr(value, name)
    return value


def _with_value(value: Any, path: Key, portion: int) -> Any:
    """Replace the bound: `value` is the bound itself, or a table that contains it at `path`."""
    if not path:
        return portion
    assert isinstance(value, FrozenModel)
    inner = _with_value(getattr(value, path[0]), path[1:], portion)
    return value.model_copy(update={path[0]: inner})
