"""One row of a table of metrics with its samples, as prometheus_client wants it.

Owns the translation by kind of metric, nothing else. No I/O, no clock.
"""

import math
from collections.abc import Iterable
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.utils import floatToGoString

from penstock_proxy import metrics
from penstock_proxy.metrics import Metric

Labels = tuple[str, ...]


def family(metric: Metric, samples: Iterable[tuple[Labels, Any]]) -> Any:
    """An info's sample is more labels, a histogram's its counts by bucket and then its sum."""
    name, kind, text, labels = metric
    made: Any
    match kind:
        case "counter":
            made = CounterMetricFamily(name, text, labels=labels)
        case "gauge":
            made = GaugeMetricFamily(name, text, labels=labels)
        case "info":
            made = InfoMetricFamily(name.removesuffix("_info"), text, labels=labels)
        case "histogram":
            made = HistogramMetricFamily(name, text, labels=labels)
            for values, flat in samples:
                made.add_metric(values, *_cumulative(flat))
            return made
    for values, value in samples:
        made.add_metric(values, value)
    return made


def _cumulative(flat: list[float]) -> tuple[list[tuple[str, float]], float]:
    """From counts by bucket and a sum to what Prometheus wants: counts up to each bound."""
    *counts, total = flat
    buckets, so_far = [], 0.0
    for bound, count in zip((*metrics.BUCKETS_S, math.inf), counts, strict=True):
        so_far += count
        buckets.append((floatToGoString(bound), so_far))  # type: ignore[no-untyped-call]
    return buckets, total
