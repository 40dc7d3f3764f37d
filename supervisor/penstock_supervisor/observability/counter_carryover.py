"""Counters of a proxy slot's ended processes, so that sums do not go down.

All proxies count for a service together. When a proxy ends, its counters end with it, and the
sum of all proxies must not go down. So the last statistics of an ended process are kept here and
added to those of its successors. What a killed process counted after its last answer to STATS is
lost; `unseen_ends` names it.

Proxies are our own program, so their counters are not sanitized as those of workers are. No I/O,
no clock.
"""

from collections import Counter
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


def add(one: Carryover, other: Carryover) -> Carryover:
    """The sum of two."""
    names = {*as_dict(one.get("ejections")), *as_dict(other.get("ejections"))}
    counts = {
        name: Counter(ejections(one, name)) + Counter(ejections(other, name)) for name in names
    }
    services = [as_dict(each.get("services")) for each in (one, other)]
    return {
        "services": {
            name: metrics.merge([each.get(name, {}) for each in services])
            for name in {name for each in services for name in each}
        },
        "ejections": {name: dict(by_slot) for name, by_slot in counts.items()},
    }


def departed(before: Carryover, last: Mapping[str, Any], stats: Mapping[str, Any]) -> Carryover:
    """Add what a running process told last of services that it tells nothing of any more."""
    counted = as_dict(as_dict(last.get("metrics")).get("services"))
    present = as_dict(as_dict(stats.get("metrics")).get("services"))
    gone = {name: series for name, series in counted.items() if name not in present}
    if not gone:
        return before
    return carry_over(before, {"metrics": {"services": gone}})


def without(carryover: Carryover, service: str) -> dict[str, Any]:
    """The same without this service."""
    return {key: _without(as_dict(value), service) for key, value in carryover.items()}


def stats_without(stats: Mapping[str, Any], service: str) -> dict[str, Any]:
    """The statistics of a proxy without this service."""
    counted = as_dict(stats.get("metrics"))
    if service not in as_dict(counted.get("services")):
        return dict(stats)
    kept = {**counted, "services": _without(counted["services"], service)}
    return {**stats, "metrics": kept, "pools": _without(as_dict(stats.get("pools")), service)}


def series(carryover: Carryover) -> Mapping[str, Series]:
    """By service."""
    return as_dict(carryover.get("services"))


def ejections(carryover: Carryover, service: str) -> Mapping[int, int]:
    """By slot of the worker."""
    counts = as_dict(as_dict(carryover.get("ejections")).get(service))
    return {int(slot): count for slot, count in counts.items()}


def _without(by_service: Mapping[str, Any], service: str) -> dict[str, Any]:
    return {name: value for name, value in by_service.items() if name != service}


def _ejections(before: Carryover, pools: Mapping[str, Any], service: str) -> dict[int, int]:
    counts = dict(ejections(before, service))
    for row in pools.get(service, ()):
        counts[row["slot"]] = counts.get(row["slot"], 0) + row["ejections"]
    return counts
