"""The traffic of all services at one moment, with the same shape under every scheme.

Owns the differences between schemes for readers of statistics. A proxy counts what it accepts,
checks and forwards. Without a proxy the workers count what they accept, and the worker checks
know which workers are in rotation. Here there is one set of metrics a service, and one row a
slot: that of its current worker, with what all workers of the slot have to do. Metrics of workers
are sanitized by `worker_series` first; the others are our own. No I/O, no clock.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from penstock_proxy import metrics
from penstock_proxy.balancing.member_state import SHOWN, MemberState
from penstock_proxy.metrics import Series
from penstock_supervisor.observability.counter_carryover import ejections
from penstock_supervisor.observability.counter_carryover import series as series_of
from penstock_supervisor.observability.fairness import jain
from penstock_supervisor.observability.worker_series import (
    COUNTED_BY_WORKERS,
    as_dict,
    as_number,
    sanitized,
    without_gauges,
)
from penstock_supervisor.rotation.proxy_views import UP
from penstock_supervisor.snapshot import ChildView, Snapshot

_CHECK_METRICS: Final = ("penstock_health_checks_total", "penstock_health_check_duration_seconds")

WorkerRow = dict[str, Any]
"""One worker as the pool of the proxies, or of the worker checks, has it."""


class Split(NamedTuple):
    """How the work was divided among workers so far."""

    of: Literal["requests", "connections"]
    by_slot: Mapping[int, int]
    """Without the slots whose share is not known."""
    jain: float | None
    """Jain's index, by weight: 1 if each worker had its share. None before the first count."""


class Traffic:
    def __init__(self, snapshot: Snapshot) -> None:
        self._services = snapshot.services
        self._workers = {
            (child.service, child.slot): self._worker_series(child)
            for child in snapshot.children
            if child.role == "worker"
        }
        self._proxies = [child for child in snapshot.children if child.role == "proxy"]
        self._current = {
            (child.service, child.slot): child.number
            for child in snapshot.children
            if child.role == "worker"
        }
        self._members = self._combined_rows(snapshot.worker_checks)
        self.pools = {service: self._by_slot(service) for service in self._members}
        """By service and slot."""
        self._removed = snapshot.removed
        self.series = self._merged_series(snapshot.worker_checks)
        """By service."""

    def serves(self, service: str) -> bool:
        """Is a worker in the rotation? It may be one that will take the place of another."""
        return any(row["health"] == UP for row in self._members.get(service, {}).values())

    def addresses(self, service: str) -> set[str]:
        """Of all its workers, also of two in one slot."""
        return {row["address"] for row in self._members.get(service, {}).values()}

    def open_connections(self, service: str) -> float | None:
        """Client connections now. None: not known."""
        return as_number(
            self.series.get(service, {}).get("penstock_connections_active", {}).get("")
        )

    def split(self, service: str) -> Split:
        facts = self._services[service]
        # In all other cases a connection goes to one worker as a whole: connections are divided.
        by_request = facts["scheme"] == "ports" and facts["mode"] == "http"
        name = "penstock_requests_total" if by_request else "penstock_worker_connections_total"
        counts = dict.fromkeys(self._counted_slots(service, name), 0)
        for labels, value in self.series.get(service, {}).get(name, {}).items():
            slot = labels.partition(" ")[0]
            if isinstance(value, int | float) and slot.isdecimal() and int(slot) in counts:
                counts[int(slot)] += int(value)
        rows = self.pools.get(service, {})
        shares = [
            count / max(1, rows.get(slot, {}).get("weight", 1)) for slot, count in counts.items()
        ]
        return Split("requests" if by_request else "connections", counts, jain(shares))

    def _counted_slots(self, service: str, metric: str) -> Iterator[int]:
        """The slots whose share is known, in order."""
        workers = {
            slot: series for (name, slot), series in self._workers.items() if name == service
        }
        if metric in COUNTED_BY_WORKERS.get(self._services[service]["scheme"], ()):
            yield from sorted(slot for slot, series in workers.items() if metric in series)
        elif metric in self.series.get(service, {}):
            yield from sorted({*workers, *self.pools.get(service, {})})

    def _worker_series(self, child: ChildView) -> Series:
        """What the processes of this slot counted, now and before."""
        scheme = self._services.get(child.service, {}).get("scheme", "")
        now = as_dict(child.stats.get("metrics")).get("series")
        before = sanitized(child.carryover, child.slot, scheme)
        return metrics.merge((without_gauges(before), sanitized(now, child.slot, scheme)))

    def _combined_rows(self, unproxied: Mapping[str, Any]) -> dict[str, dict[int, WorkerRow]]:
        """By service and member, as all proxies together see them."""
        members: defaultdict[str, dict[int, WorkerRow]] = defaultdict(dict)
        for stats in (*(proxy.stats for proxy in self._proxies), unproxied):
            for service, rows in stats.get("pools", {}).items():
                for row in rows:
                    other = members[service].get(row["member"])
                    members[service][row["member"]] = (
                        row if other is None else _combined(other, row)
                    )
        return dict(members)

    def _by_slot(self, service: str) -> dict[int, WorkerRow]:
        """One row a slot: its current worker's. Counts are those of all its workers."""
        rows_of: defaultdict[int, list[WorkerRow]] = defaultdict(list)
        for row in self._members[service].values():
            rows_of[row["slot"]].append(row)
        return {slot: self._slot_row(service, slot, rows) for slot, rows in rows_of.items()}

    def _slot_row(self, service: str, slot: int, rows: list[WorkerRow]) -> WorkerRow:
        current = self._current.get((service, slot))
        row = next((one for one in rows if one["member"] == current), rows[-1])
        active = sum(one["active"] for one in rows)
        ejections = sum(one["ejections"] for one in rows)
        return {
            **row,
            "health": _shown(row["health"]),
            "active": active + self._accepted_by_worker(service, slot),
            "ejections": ejections + self._earlier_ejections(service, slot),
        }

    def _accepted_by_worker(self, service: str, slot: int) -> int:
        """Open connections that the worker accepted itself."""
        return int(_single(self._workers.get((service, slot), {}), "penstock_connections_active"))

    def _earlier_ejections(self, service: str, slot: int) -> int:
        """Ejections by proxy processes that have ended."""
        return sum(ejections(proxy.carryover, service).get(slot, 0) for proxy in self._proxies)

    def _merged_series(self, unproxied: Mapping[str, Any]) -> dict[str, Series]:
        parts: defaultdict[str, list[Series]] = defaultdict(list)
        for proxy in self._proxies:
            now = proxy.stats.get("metrics", {}).get("services", {})
            for service, series in (*series_of(proxy.carryover).items(), *now.items()):
                parts[service].append(series)
        for service, series in unproxied.get("metrics", {}).get("services", {}).items():
            # The worker checks see no traffic. Their zeros would say that there is none.
            parts[service].append(
                {name: samples for name, samples in series.items() if name in _CHECK_METRICS}
            )
        for (service, _), series in self._workers.items():
            parts[service].append(series)
        for service, series in self._removed.items():
            parts[service].append(series)
        return {service: metrics.merge(all_of) for service, all_of in parts.items()}


def _shown(state: str) -> str:
    """The word for people."""
    return SHOWN[MemberState(state)].value


def _combined(one: WorkerRow, other: WorkerRow) -> WorkerRow:
    """The rows of two proxies for the same worker as one.

    Counts are added. If the proxies disagree about its state, the row that is not up is taken.
    """
    worse = other if one["health"] == UP else one
    return {
        **worse,
        "active": one["active"] + other["active"],
        "ejections": one["ejections"] + other["ejections"],
        "failures": max(one["failures"], other["failures"]),
    }


def _single(series: Series, name: str) -> float:
    return as_number(series.get(name, {}).get("")) or 0
