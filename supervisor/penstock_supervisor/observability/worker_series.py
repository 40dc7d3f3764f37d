"""Sanitizes the metrics that a worker reports.

They come from a program that is not ours. Owns the rules: which metrics a worker may report
under its scheme, which values each label may have, and what is a number. Everything else is left
out silently: a page of metrics is not the place to report it. A worker cannot report for another
slot. It cannot make the page of metrics grow, because labels have closed sets of values.

When a process ends, its counters must stay in the sums of its slot: `without_gauges` is the part
of its metrics that stays. No I/O, no clock.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Any, Final

from penstock_proxy import metrics
from penstock_proxy.metrics import METHODS, OTHER, Metric, Series, Value
from penstock_worker.telemetry.counters import STOP_TIMEOUT

_OF_REQUESTS: Final = frozenset(
    (
        "penstock_requests_total",
        "penstock_request_duration_seconds",
        "penstock_rejected_total",
        "penstock_connection_errors_total",
    )
)
_OF_CONNECTIONS: Final = frozenset(
    (
        "penstock_connections_total",
        "penstock_connections_active",
        "penstock_worker_connections_total",
    )
)
OF_WORKERS: Final = (
    Metric("penstock_worker_uncaught_exceptions_total", "counter",
           "Exceptions in an app's tasks, callbacks and threads that nobody caught.",
           ("service", "slot")),
)  # fmt: skip
"""Metrics that no proxy has."""
_OF_PROGRAMS: Final = frozenset(metric.name for metric in OF_WORKERS)
COUNTED_BY_WORKERS: Final[Mapping[str, frozenset[str]]] = {
    "ports": _OF_PROGRAMS,
    "handoff": _OF_PROGRAMS | _OF_REQUESTS,
    "shared": _OF_PROGRAMS | _OF_REQUESTS | _OF_CONNECTIONS,
    "reuseport": _OF_PROGRAMS | _OF_REQUESTS | _OF_CONNECTIONS,
}
"""By scheme: the metrics that workers count. The proxy counts all others."""

_MAX_VALUE: Final = 2.0**63
"""More than any real count, and small enough that a sum of many does not overflow."""
_MAX_SAMPLES: Final = 4096
_TABLE: Final = {metric.name: metric for metric in (*metrics.TABLE, *OF_WORKERS)}
_CODES: Final = frozenset(str(status.value) for status in HTTPStatus) | {"none"}
_PHASES: Final = ("connect", "first_byte", "total")
_REASONS: Final = ("proxy_header", "proxy_untrusted")
"""Why a worker rejects a connection. All other reasons are the proxy's."""


def sanitized(reported: object, slot: int, scheme: str) -> Series:
    """The part of `reported` that a worker in this slot may report."""
    if not isinstance(reported, dict):
        return {}
    series: Series = {}
    for name in COUNTED_BY_WORKERS.get(scheme, ()):
        metric, samples = _TABLE[name], reported.get(name)
        if isinstance(samples, dict):
            first = islice(samples.items(), _MAX_SAMPLES)
            series[name] = _merged(
                (labels, value)
                for text, raw in first
                if (labels := _labels(metric, str(text), slot)) is not None
                and (value := _value(metric, raw)) is not None
            )
    return series


def without_gauges(series: Series) -> Series:
    """What remains of the metrics of a process that has ended: nothing is open any more."""
    return {name: samples for name, samples in series.items() if _TABLE[name].kind != "gauge"}


def as_number(value: object) -> float | None:
    """A finite number that is not negative, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if 0 <= result < math.inf else None


def as_histogram(raw: object, bounds: Sequence[float]) -> list[int | float] | None:
    """The counts of a histogram with these buckets and the last one, and its sum; or None."""
    if not isinstance(raw, list) or len(raw) != len(bounds) + 2:
        return None
    numbers = [value for one in raw if (value := _bounded(one)) is not None]
    return [*numbers] if len(numbers) == len(raw) else None


def as_dict(value: object) -> Mapping[str, Any]:
    """The value if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def _merged(samples: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    # Several samples may have the same labels now: unknown values of a label become OTHER.
    return metrics.merge({"": {labels: value}} for labels, value in samples).get("", {})


def _labels(metric: Metric, text: str, slot: int) -> str | None:
    names = metric.labels[1:]
    values = text.split(" ") if names else []
    if len(values) != len(names) or (text and not names):
        return None
    allowed = [_label(name, value, slot) for name, value in zip(names, values, strict=True)]
    return None if None in allowed else " ".join(one for one in allowed if one is not None)


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
        case "kind" if value == STOP_TIMEOUT:
            return value
    return None


def _value(metric: Metric, raw: object) -> Value | None:
    if metric.kind != "histogram":
        return _bounded(raw)
    return as_histogram(raw, metric.buckets)


def _bounded(raw: object) -> float | None:
    value = as_number(raw)
    return value if value is not None and value <= _MAX_VALUE else None
