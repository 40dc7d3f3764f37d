"""Translates one metric of a table, with its samples, into a family of prometheus_client.

No I/O, no clock.
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

from penstock_proxy.metrics import Metric

Labels = tuple[str, ...]


def family(metric: Metric, samples: Iterable[tuple[Labels, Any]]) -> Any:
    """Samples are (values of the labels, value).

    The value of an info is a table of further labels. The value of a histogram is its counts by
    bucket, and then the sum of what was observed.
    """
    name, kind, help_text, labels, buckets = metric
    result: Any
    match kind:
        case "counter":
            result = CounterMetricFamily(name, help_text, labels=labels)
        case "gauge":
            result = GaugeMetricFamily(name, help_text, labels=labels)
        case "info":
            result = InfoMetricFamily(name.removesuffix("_info"), help_text, labels=labels)
        case "histogram":
            result = HistogramMetricFamily(name, help_text, labels=labels)
            for label_values, counts_and_sum in samples:
                result.add_metric(label_values, *_cumulative(buckets, counts_and_sum))
            return result
    for label_values, value in samples:
        result.add_metric(label_values, value)
    return result


def _cumulative(
    bounds: tuple[float, ...], counts_and_sum: list[float]
) -> tuple[list[tuple[str, float]], float]:
    """From counts by bucket to counts up to each bound, as Prometheus wants them; and the sum."""
    *counts, total = counts_and_sum
    buckets, cumulated = [], 0.0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        cumulated += count
        buckets.append((floatToGoString(bound), cumulated))  # type: ignore[no-untyped-call]
    return buckets, total
