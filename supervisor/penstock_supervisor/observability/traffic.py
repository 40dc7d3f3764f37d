"""Who counted what: the traffic of all services at one moment, whoever stands before it.

Owns the one place where the schemes differ for who reads figures. A proxy counts what it
accepts, checks and forwards; where there is none the workers count what they accept, and the
watch says who is in rotation. Here it is one set of numbers a service, and one row a slot.
Proxy and watch are ours; what workers say is judged in `worker_series` first. No I/O, no clock.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from penstock_proxy import metrics
from penstock_proxy.metrics import Series
from penstock_supervisor.observability.counter_carryover import ejections
from penstock_supervisor.observability.counter_carryover import series as series_of
from penstock_supervisor.observability.fairness import jain
from penstock_supervisor.observability.worker_series import (
    COUNTED,
    number,
    sanitized,
    table,
    without_gauges,
)
from penstock_supervisor.rotation.proxy_views import UP
from penstock_supervisor.snapshot import ChildView, Snapshot

_CHECKS: Final = ("penstock_health_checks_total", "penstock_health_check_duration_seconds")

WorkerRow = dict[str, Any]
"""What is said of one worker by who picks it, or watches it."""


class Split(NamedTuple):
    """How the work was divided so far."""

    of: Literal["requests", "connections"]
    by_slot: Mapping[int, int]
    """Without the slots that nobody counts for."""
    jain: float | None
    """1 when every worker had its weight's share; None before anything was counted."""


class Traffic:
    def __init__(self, snapshot: Snapshot) -> None:
        self._services = snapshot.services
        self._workers = {
            (child.service, child.slot): self._told(child)
            for child in snapshot.children
            if child.role == "worker"
        }
        self._proxies = [child for child in snapshot.children if child.role == "proxy"]
        self.pools = self._pools(snapshot.worker_checks)
        self.series = self._merged(snapshot.worker_checks)

    def open(self, service: str) -> float | None:
        """Client connections now."""
        return number(self.series.get(service, {}).get("penstock_connections_active", {}).get(""))

    def split(self, service: str) -> Split:
        facts = self._services[service]
        # Elsewhere a worker's connections are the clients' own: that is what is divided.
        by_request = facts["scheme"] == "ports" and facts["mode"] == "http"
        name = "penstock_requests_total" if by_request else "penstock_worker_connections_total"
        counts = dict.fromkeys(self._counting(service, name), 0)
        for labels, value in self.series.get(service, {}).get(name, {}).items():
            slot = labels.partition(" ")[0]
            if isinstance(value, int | float) and slot.isdecimal() and int(slot) in counts:
                counts[int(slot)] += int(value)
        rows = self.pools.get(service, {})
        shares = [
            count / max(1, rows.get(slot, {}).get("weight", 1)) for slot, count in counts.items()
        ]
        return Split("requests" if by_request else "connections", counts, jain(shares))

    def _counting(self, service: str, metric: str) -> Iterator[int]:
        """The slots whose share is known, in order."""
        told = {slot: series for (name, slot), series in self._workers.items() if name == service}
        if metric in COUNTED.get(self._services[service]["scheme"], ()):
            yield from sorted(slot for slot, series in told.items() if metric in series)
        elif metric in self.series.get(service, {}):
            yield from sorted({*told, *self.pools.get(service, {})})

    def _told(self, child: ChildView) -> Series:
        scheme = self._services.get(child.service, {}).get("scheme", "")
        now = table(child.stats.get("metrics")).get("series")
        before = sanitized(child.carryover, child.slot, scheme)
        return metrics.merge((without_gauges(before), sanitized(now, child.slot, scheme)))

    def _pools(self, unproxied: Mapping[str, Any]) -> dict[str, dict[int, WorkerRow]]:
        pools: defaultdict[str, dict[int, WorkerRow]] = defaultdict(dict)
        for stats in (*(proxy.stats for proxy in self._proxies), unproxied):
            for service, rows in stats.get("pools", {}).items():
                for row in rows:
                    known = pools[service].get(row["slot"])
                    pools[service][row["slot"]] = row if known is None else _together(known, row)
        for service, of in pools.items():
            for slot, row in of.items():
                of[slot] = {
                    **row,
                    "active": row["active"] + self._accepted_by(service, slot),
                    "ejections": row["ejections"] + self._ejected_before(service, slot),
                }
        return dict(pools)

    def _accepted_by(self, service: str, slot: int) -> int:
        """Connections that a worker has accepted itself, and that are open."""
        return int(_single(self._workers.get((service, slot), {}), "penstock_connections_active"))

    def _ejected_before(self, service: str, slot: int) -> int:
        """By proxies that have ended."""
        return sum(ejections(one.carryover, service).get(slot, 0) for one in self._proxies)

    def _merged(self, unproxied: Mapping[str, Any]) -> dict[str, Series]:
        parts: defaultdict[str, list[Series]] = defaultdict(list)
        for proxy in self._proxies:
            now = proxy.stats.get("metrics", {}).get("services", {})
            for service, series in (*series_of(proxy.carryover).items(), *now.items()):
                parts[service].append(series)
        for service, series in unproxied.get("metrics", {}).get("services", {}).items():
            # The watch sees no traffic: its zeros would say that there is none.
            parts[service].append({name: of for name, of in series.items() if name in _CHECKS})
        for (service, _), series in self._workers.items():
            parts[service].append(series)
        return {service: metrics.merge(some) for service, some in parts.items()}


def _together(one: WorkerRow, other: WorkerRow) -> WorkerRow:
    """What two proxies say of the same worker. Each has traffic and a judgement of its own:
    numbers of things add up, and it is as well as the one says that thinks less of it."""
    worse = other if one["health"] == UP else one
    return {
        **worse,
        "active": one["active"] + other["active"],
        "ejections": one["ejections"] + other["ejections"],
        "failures": max(one["failures"], other["failures"]),
    }


def _single(series: Series, name: str) -> float:
    return number(series.get(name, {}).get("")) or 0
