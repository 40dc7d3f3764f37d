"""What a worker says that it counted, as far as it can be believed.

Owns the judgement of numbers that come from a program that is not ours: which metrics a
worker may count at all under its scheme, which values of labels there are, and what a number
is. The rest is left out without a word, for a page of metrics is no place to argue. A worker
cannot speak for another slot, nor grow the page: labels come from closed sets.

What a *process* counted ends with it, and a slot's counters must not go down because it had
a successor: `ended` is what remains of one. No I/O, no clock.
"""

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any, Final

from penstock_proxy import metrics
from penstock_proxy.metrics import BUCKETS_S, METHODS, OTHER, Metric, Series, Value

_OF_REQUESTS: Final = frozenset(
    (
        "penstock_requests_total",
        "penstock_request_duration_seconds",
        "penstock_rejected_total",
    )
)
_OF_CONNECTIONS: Final = frozenset(
    (
        "penstock_connections_total",
        "penstock_connections_active",
        "penstock_worker_connections_total",
    )
)
COUNTED: Final[Mapping[str, frozenset[str]]] = {
    "ports": frozenset(),
    "handoff": _OF_REQUESTS,
    "shared": _OF_REQUESTS | _OF_CONNECTIONS,
    "reuseport": _OF_REQUESTS | _OF_CONNECTIONS,
}
"""By scheme, what workers count; the rest is counted by who stands before them, once."""

_MOST: Final = 2.0**63
"""Far beyond what anybody counts, and far from what a sum of many cannot hold."""
_MOST_SAMPLES: Final = 4096
_TABLE: Final = {metric.name: metric for metric in metrics.TABLE}
_CODES: Final = frozenset(str(status.value) for status in HTTPStatus) | {"none"}
_PHASES: Final = ("connect", "first_byte", "total")
_REASONS: Final = ("proxy_header", "proxy_untrusted")
"""Why a worker closes a connection; all others are of who stands before it."""


def sanitized(told: object, slot: int, scheme: str) -> Series:
    """What of `told` a worker in this slot may say."""
    if not isinstance(told, dict):
        return {}
    series: Series = {}
    for name in COUNTED.get(scheme, ()):
        metric, samples = _TABLE[name], told.get(name)
        if isinstance(samples, dict):
            some = islice(samples.items(), _MOST_SAMPLES)
            series[name] = _added(
                (labels, value)
                for text, raw in some
                if (labels := _labels(metric, str(text), slot)) is not None
                and (value := _value(metric, raw)) is not None
            )
    return series


def without_gauges(series: Series) -> Series:
    """What remains of what a process said once it is gone: nothing is open or waits."""
    return {name: samples for name, samples in series.items() if _TABLE[name].kind != "gauge"}


def number(value: object) -> float | None:
    """A finite number that is not negative, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        told = float(value)
    except OverflowError:
        return None
    return told if 0 <= told < math.inf else None


def table(value: object) -> Mapping[str, Any]:
    """The object that should be there, or an empty one."""
    return value if isinstance(value, dict) else {}


def _added(samples: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    # Several values of a label may have become one.
    return metrics.merge({"": {labels: value}} for labels, value in samples).get("", {})


def _labels(metric: Metric, text: str, slot: int) -> str | None:
    names = metric.labels[1:]
    values = text.split(" ") if names else []
    if len(values) != len(names) or (text and not names):
        return None
    judged = [_label(name, value, slot) for name, value in zip(names, values, strict=True)]
    return None if None in judged else " ".join(one for one in judged if one is not None)


def _label(name: str, value: str, slot: int) -> str | None:
    match name:
        case "slot":
            return str(slot)
        case "method":
            return value if value in METHODS else OTHER
        case "code":
            return value if value in _CODES else OTHER
        case "phase" if value in _PHASES:
            return value
        case "reason" if value in _REASONS:
            return value
    return None


def _value(metric: Metric, raw: object) -> Value | None:
    if metric.kind != "histogram":
        return _bounded(raw)
    if not isinstance(raw, list) or len(raw) != len(BUCKETS_S) + 2:
        return None
    numbers = [told for one in raw if (told := _bounded(one)) is not None]
    return [*numbers] if len(numbers) == len(raw) else None


def _bounded(raw: object) -> float | None:
    told = number(raw)
    return told if told is not None and told <= _MOST else None
