"""Puts together what is known at one moment: asks the children, looks at the sockets.

The only maker of a `Snapshot`. It owns nothing: who is asked, and what is open, belongs
to others, and is read here.
"""

import asyncio

from penstock_supervisor.children.slots import Slots
from penstock_supervisor.observability.stats_poll import LoopLag, StatsPoll
from penstock_supervisor.rollout.certificate_reload import CertificateReload
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.rotation.worker_checks import WorkerChecks
from penstock_supervisor.snapshot import Snapshot


class SnapshotCollector:
    def __init__(
        self,
        resources: Resources,
        slots: Slots,
        worker_checks: WorkerChecks,
        stats_poll: StatsPoll,
        lag: LoopLag,
        certificate_reload: CertificateReload,
    ) -> None:
        self._resources = resources
        self._slots = slots
        self._worker_checks = worker_checks
        self._stats_poll = stats_poll
        self._lag = lag
        self._certificate_reload = certificate_reload

    async def take(
        self, deadline_s: float, *, uptime_s: float, ready: bool, stopping: bool
    ) -> Snapshot:
        """Describe the run now; children have `deadline_s` to tell what only they know."""
        children = tuple(self._slots.children())
        views = await self._stats_poll.take(tuple(self._slots.one_per_slot()), children, deadline_s)
        links = sum(len(child.links) for child in children)
        by_service = self._resources.listeners
        return Snapshot(
            children=views,
            services={name: self._described(name) for name in by_service},
            uptime_s=uptime_s,
            ready=ready,
            stopping=stopping,
            covered=frozenset(self._slots.covered),
            listener_fds=self._resources.listener_fds(),
            # Of a link we keep both ends.
            channel_fds=sum(child.has_channel for child in children) + 2 * links,
            loop_lag_s=self._lag.seconds,
            tasks=len(asyncio.all_tasks()),
            worker_checks=self._worker_checks.stats(),
            sockets=tuple(view for listeners in by_service.values() for view in listeners.views()),
            tls=self._certificate_reload.views(),
            dropped={name: listeners.dropped for name, listeners in by_service.items()},
        )

    def _described(self, name: str) -> dict[str, object]:
        service = self._resources.services[name]
        return {
            "scheme": service.scheme,
            "mode": service.mode,
            "listen": str(self._resources.listeners[name].address),
            "upstreams" if service.upstreams else "workers": self._resources.worker_addresses(name),
        }
