"""Counters of a proxy slot's ended processes, so that sums do not go down.

All proxies count for a service together. When a proxy ends, its counters end with it, and the
sum of all proxies must not go down. So the last statistics of an ended process are kept here and
added to those of its successors. What a process counted after its last answer to STATS is lost.

Proxies are our own program, so their counters are not sanitized as those of workers are. No I/O,
no clock.
"""

from collections.abc import Mapping
from typing import Any

from penstock_proxy import metrics
from penstock_proxy.metrics import Series
from penstock_supervisor.observability.worker_series import as_dict, without_gauges

Carryover = Mapping[str, Any]
"""{"services": {service: Series}, "ejections": {service: {slot: number}}}, or empty."""


def carry_over(before: Carryover, stats: Mapping[str, Any]) -> Carryover:
    """Add the last statistics of a process that has ended to the carry-over of its slot."""
    counted = as_dict(as_dict(stats.get("metrics")).get("services"))
    earlier = as_dict(before.get("services"))
    pools = as_dict(stats.get("pools"))
    return {
        "services": {
            name: metrics.merge((earlier.get(name, {}), without_gauges(counted.get(name, {}))))
            for name in (*earlier, *(name for name in counted if name not in earlier))
        },
        "ejections": {
            name: {slot: count for slot, count in _ejections(before, pools, name).items() if count}
            for name in {*as_dict(before.get("ejections")), *pools}
        },
    }


def series(carryover: Carryover) -> Mapping[str, Series]:
    """By service."""
    return as_dict(carryover.get("services"))


def ejections(carryover: Carryover, service: str) -> Mapping[int, int]:
    """By slot of the worker."""
    counts = as_dict(as_dict(carryover.get("ejections")).get(service))
    return {int(slot): count for slot, count in counts.items()}


def _ejections(before: Carryover, pools: Mapping[str, Any], service: str) -> dict[int, int]:
    counts = dict(ejections(before, service))
    for row in pools.get(service, ()):
        counts[row["slot"]] = counts.get(row["slot"], 0) + row["ejections"]
    return counts
