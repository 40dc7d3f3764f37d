"""What of a service's bounds each of several fronts gets.

A bound is written for the service as a whole, and fronts do not talk to each other: each
gets an equal share, what is left over goes to the first ones, and the shares add up to what
was written. So the whole is never exceeded; a front that the kernel deals more than its
share of clients to reaches its bound before the others. No I/O, no clock.
"""

from collections.abc import Iterator
from typing import Any, Final

from penstock_proxy.config import Part, Traffic

SPLIT: Final[tuple[tuple[str, ...], ...]] = (
    ("max_connections",),
    ("limits", "queue"),
    ("limits", "per_worker"),
    ("limits", "queue_per_worker"),
    ("limits", "handshakes"),
    ("limits", "connections_per_client"),
)
"""Keys of a service that are divided; where 0 is allowed it is no number of things, and a
fraction is one of what is divided already."""


def share(total: int, fronts: int, number: int) -> int:
    """What front `number` of `fronts` gets of `total`."""
    return total // fronts + (number < total % fronts)


def too_small(service: Traffic, fronts: int) -> Iterator[tuple[str, ...]]:
    """The keys whose value does not give every front something."""
    for key in SPLIT:
        value = _value(service, key)
        if isinstance(value, int) and 0 < value < fronts:
            yield key


def of_front(service: Traffic, fronts: int, number: int) -> dict[str, Any]:
    """The keys of `Traffic`, as this front is told them."""
    told: dict[str, Any] = {key: getattr(service, key) for key in Traffic.model_fields}
    for key in SPLIT:
        told[key[0]] = _changed(told[key[0]], key[1:], fronts, number)
    # How far a worker may fall behind; with fewer than one it would get nothing at all.
    told["handoff_window"] = max(1, share(service.handoff_window, fronts, number))
    return told


def _value(service: Traffic, key: tuple[str, ...]) -> object:
    value: Any = service
    for name in key:
        value = getattr(value, name)
    return value


def _changed(value: Any, rest: tuple[str, ...], fronts: int, number: int) -> Any:
    if not rest:
        return share(value, fronts, number) if isinstance(value, int) else value
    assert isinstance(value, Part)
    changed = _changed(getattr(value, rest[0]), rest[1:], fronts, number)
    return value.model_copy(update={rest[0]: changed})
