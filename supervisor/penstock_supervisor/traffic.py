"""Who counted what: the traffic of all services at one moment, whoever stands before it.

Owns the one place where the schemes differ for who reads figures. A front counts what it
accepts, checks and forwards; where there is none the workers count what they accept, and the
watch says who is in rotation. Here it is one set of numbers a service, and one row a slot.
Front and watch are ours; what workers say is judged in `series` first. No I/O, no clock.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from penstock_proxy import metrics
from penstock_proxy.metrics import Series
from penstock_supervisor.fairness import jain
from penstock_supervisor.observation import ChildView, Observation
from penstock_supervisor.series import COUNTED, cleaned, ended, number, table

_CHECKS: Final = ("penstock_health_checks_total", "penstock_health_check_duration_seconds")

Row = dict[str, Any]
"""What is said of one worker by who picks it, or watches it."""


class Split(NamedTuple):
    """How the work was divided so far."""

    of: Literal["requests", "connections"]
    by_slot: Mapping[int, int]
    """Without the slots that nobody counts for."""
    jain: float | None
    """1 when every worker had its weight's share; None before anything was counted."""


class Traffic:
    def __init__(self, observation: Observation) -> None:
        self._services = observation.services
        self._workers = {
            (child.service, child.slot): self._told(child)
            for child in observation.children
            if child.role == "worker"
        }
        fronts = [child.stats for child in observation.children if child.role == "front"]
        self.pools = self._pools((*fronts, observation.unfronted))
        self.series = self._merged(fronts, observation.unfronted)

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
        before = cleaned(child.carried, child.slot, scheme)
        return metrics.merge((ended(before), cleaned(now, child.slot, scheme)))

    def _pools(self, told: tuple[Mapping[str, Any], ...]) -> dict[str, dict[int, Row]]:
        pools: defaultdict[str, dict[int, Row]] = defaultdict(dict)
        for stats in told:
            for service, rows in stats.get("pools", {}).items():
                for row in rows:
                    none = {**row, "active": 0, "ejections": 0}
                    known = pools[service].setdefault(row["slot"], none)
                    # Each front has traffic and a judgement of its own; numbers add up.
                    known["active"] += row["active"]
                    known["ejections"] += row["ejections"]
        for (service, slot), series in self._workers.items():
            if row := pools[service].get(slot):
                row["active"] += int(_single(series, "penstock_connections_active"))
        return dict(pools)

    def _merged(
        self, fronts: list[Mapping[str, Any]], unfronted: Mapping[str, Any]
    ) -> dict[str, Series]:
        parts: defaultdict[str, list[Series]] = defaultdict(list)
        for stats in fronts:
            for service, series in stats.get("metrics", {}).get("services", {}).items():
                parts[service].append(series)
        for service, series in unfronted.get("metrics", {}).get("services", {}).items():
            # The watch sees no traffic: its zeros would say that there is none.
            parts[service].append({name: of for name, of in series.items() if name in _CHECKS})
        for (service, _), series in self._workers.items():
            parts[service].append(series)
        return {service: metrics.merge(some) for service, some in parts.items()}


def _single(series: Series, name: str) -> float:
    return number(series.get(name, {}).get("")) or 0
