"""What of a service's bounds each of several proxies gets.

A bound is written for the service as a whole, and proxies do not talk to each other: each
gets an equal share, what is left over goes to the first ones, and the shares add up to what
was written. So the whole is never exceeded; a proxy that the kernel deals more than its
share of clients to reaches its bound before the others. Which keys are divided, their fields
say (`Divided`). No I/O, no clock.
"""

from collections.abc import Iterator
from typing import Any, Final

from penstock_proxy.config import Divided, FrozenModel, ProxySettings

Key = tuple[str, ...]


def _marked(model: type[FrozenModel], at: Key = ()) -> Iterator[tuple[Key, Divided]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, FrozenModel):
            yield from _marked(kind, (*at, name))
        yield from (((*at, name), mark) for mark in field.metadata if isinstance(mark, Divided))


DIVIDED: Final = tuple(_marked(ProxySettings))
"""The keys of a service that are divided."""


def share(total: int, proxies: int, number: int) -> int:
    """What proxy `number` of `proxies` gets of `total`."""
    return total // proxies + (number < total % proxies)


def too_small(service: ProxySettings, proxies: int) -> Iterator[Key]:
    """The keys whose value does not give every proxy something."""
    for key, mark in DIVIDED:
        value = _value(service, key)
        if isinstance(value, int) and 0 < value < proxies and not mark.least:
            yield key


def of_proxy(service: ProxySettings, proxies: int, number: int) -> dict[str, Any]:
    """The keys of `ProxySettings`, as this proxy is told them."""
    told: dict[str, Any] = {key: getattr(service, key) for key in ProxySettings.model_fields}
    for key, mark in DIVIDED:
        value = _value(service, key)
        if isinstance(value, int):
            part = max(mark.least, share(value, proxies, number))
            told[key[0]] = _changed(told[key[0]], key[1:], part)
    return told


def _value(service: ProxySettings, key: Key) -> object:
    value: Any = service
    for name in key:
        value = getattr(value, name)
    return value


def _changed(value: Any, rest: Key, part: int) -> Any:
    """`value` is the bound itself, or a table that it is in."""
    if not rest:
        return part
    assert isinstance(value, FrozenModel)
    changed = _changed(getattr(value, rest[0]), rest[1:], part)
    return value.model_copy(update={rest[0]: changed})
