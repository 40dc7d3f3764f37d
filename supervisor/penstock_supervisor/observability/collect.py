"""Makes a `Snapshot`: polls the children, and reads the state of all parts of a run.

The only place where one is made. It owns no state of its own.
"""

import asyncio

from penstock_supervisor.children.slots import Slots
from penstock_supervisor.observability.stats_poll import StatsPoll
from penstock_supervisor.rollout.certificate_reload import CertificateReload
from penstock_supervisor.rollout.records import RolloutRecords
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rollout.worker_watch import WorkerWatch
from penstock_supervisor.rotation.worker_checks import WorkerChecks
from penstock_supervisor.snapshot import Snapshot
from penstock_worker.telemetry.loop_lag import LoopLag


class SnapshotCollector:
    def __init__(
        self,
        resources: Resources,
        slots: Slots,
        worker_checks: WorkerChecks,
        stats_poll: StatsPoll,
        loop_lag: LoopLag,
        certificate_reload: CertificateReload,
        worker_watch: WorkerWatch,
    ) -> None:
        self._resources = resources
        self._slots = slots
        self._worker_checks = worker_checks
        self._stats_poll = stats_poll
        self._loop_lag = loop_lag
        self._certificate_reload = certificate_reload
        self._worker_watch = worker_watch

    async def take(
        self,
        deadline_s: float,
        *,
        uptime_s: float,
        ready: bool,
        stopping: bool,
        log_lines_lost: int,
        records: RolloutRecords,
    ) -> Snapshot:
        """Describe the run now. Children have `deadline_s` seconds to answer STATS."""
        views = await self._stats_poll.take(
            self._slots.one_per_slot, self._slots.children, deadline_s
        )
        children = tuple(self._slots.children())
        links = sum(len(child.links) for child in children)
        listeners_of = self._resources.listeners
        return Snapshot(
            children=views,
            removed=self._stats_poll.removed_slots.series(
                tuple(self._slots.one_per_slot()), children
            ),
            unseen_ends=self._stats_poll.unseen_ends.all(),
            services={name: self._service_facts(name) for name in listeners_of},
            uptime_s=uptime_s,
            ready=ready,
            stopping=stopping,
            log_lines_lost=log_lines_lost,
            rollouts=records.views(),
            rollout_results=dict(records.results),
            config_ok=records.config_ok,
            refusal=records.refusal,
            config_applied_at=records.config_applied_at,
            covered=frozenset(self._slots.covered & {one.plan.slot for one in self._slots.proxies}),
            silent=self._worker_watch.silent(),
            listener_fds=self._resources.listener_fds(),
            # The supervisor keeps both ends of each link.
            channel_fds=sum(child.has_channel for child in children) + 2 * links,
            loop_lag=self._loop_lag.histogram.flat(),
            tasks=len(asyncio.all_tasks()),
            worker_checks=self._worker_checks.stats(),
            sockets=tuple(
                view for listeners in listeners_of.values() for view in listeners.views()
            ),
            tls=self._certificate_reload.views(),
            dropped={name: listeners.dropped for name, listeners in listeners_of.items()},
        )

    def _service_facts(self, name: str) -> dict[str, object]:
        service = self._resources.services[name]
        return {
            "scheme": service.scheme,
            "mode": service.mode,
            "listen": str(self._resources.listeners[name].address),
            "ports": self._resources.ports.numbers(name),
            "upstreams" if service.upstreams else "workers": self._resources.worker_addresses(name),
        }
