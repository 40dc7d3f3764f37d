"""Counters of workers whose slot is gone, by service, so that sums do not go down.

A slot has a row of metrics as long as it has a current worker. When a reload takes workers away,
their last ones still drain, and then nobody is left who has what the slot had counted. Here it is
kept for the service: a roll-out that removes workers tells how many requests they had, too. The
same holds for a newcomer whose slot never became its own. No I/O, no clock.
"""

from collections.abc import Collection, Iterable, Mapping

from penstock_proxy import metrics
from penstock_proxy.metrics import Series
from penstock_supervisor.children.child import Child
from penstock_supervisor.observability.worker_series import as_dict, sanitized, without_gauges


class RemovedSlots:
    def __init__(self) -> None:
        self._kept: dict[str, Series] = {}
        """Of workers that have ended."""

    def keep(self, gone: Child) -> None:
        """Its process has ended, and the slot has no current worker that continues its counts."""
        service, history = gone.plan.service, gone.history
        self._kept[service] = metrics.merge([self._kept.get(service, {}), history.carryover])
        history.carryover = {}

    def forget(self, service: str) -> None:
        """Nothing is left of this service."""
        self._kept.pop(service, None)

    def series(
        self, described: Collection[Child], children: Iterable[Child]
    ) -> Mapping[str, Series]:
        """By service. `described`: those that have a row of their own, or for their slot."""
        known = {id(child.history) for child in described}
        gone = [
            child
            for child in children
            if child.plan.role == "worker" and id(child.history) not in known
        ]
        parts = {service: [series] for service, series in self._kept.items()}
        for child in gone:
            reported = as_dict(child.stats.get("metrics")).get("series")
            now = sanitized(reported, child.plan.slot, child.plan.scheme)
            parts.setdefault(child.plan.service, []).append(without_gauges(now))
        # Processes that follow each other in a slot share what is carried over.
        for child in {id(child.history): child for child in gone}.values():
            parts[child.plan.service].append(child.history.carryover)
        return {service: metrics.merge(all_of) for service, all_of in parts.items()}
