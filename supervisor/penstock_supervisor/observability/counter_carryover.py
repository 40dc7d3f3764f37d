"""What the ended processes of a proxy's slot had counted, as they last said it.

Proxies count for a service together, and a sum must not go down because one of them was
killed. What one had counted after it was last asked died with it. Proxy counters are our own
program's, and need no judgement as workers' do. No I/O, no clock.
"""

from collections.abc import Mapping
from typing import Any

from penstock_proxy import metrics
from penstock_proxy.metrics import Series
from penstock_supervisor.observability.worker_series import table, without_gauges

Carryover = Mapping[str, Any]
"""{"services": {service: Series}, "ejections": {service: {slot: number}}}, or empty."""


def carry_over(before: Carryover, stats: Mapping[str, Any]) -> Carryover:
    """What is carried on when the process that last said `stats` has ended."""
    told = table(table(stats.get("metrics")).get("services"))
    known = table(before.get("services"))
    pools = table(stats.get("pools"))
    return {
        "services": {
            name: metrics.merge((known.get(name, {}), without_gauges(told.get(name, {}))))
            for name in (*known, *(name for name in told if name not in known))
        },
        "ejections": {
            name: {slot: count for slot, count in _ejections(before, pools, name).items() if count}
            for name in {*table(before.get("ejections")), *pools}
        },
    }


def series(carried: Carryover) -> Mapping[str, Series]:
    """By service."""
    return table(carried.get("services"))


def ejections(carried: Carryover, service: str) -> Mapping[int, int]:
    """By slot of the worker."""
    counts = table(table(carried.get("ejections")).get(service))
    return {int(slot): count for slot, count in counts.items()}


def _ejections(before: Carryover, pools: Mapping[str, Any], service: str) -> dict[int, int]:
    counts = dict(ejections(before, service))
    for row in pools.get(service, ()):
        counts[row["slot"]] = counts.get(row["slot"], 0) + row["ejections"]
    return counts
