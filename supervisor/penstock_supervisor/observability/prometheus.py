"""Renders one `Snapshot` as a page of metrics.

Owns the supervisor's table of metrics. Renders both that table and the proxy's own
(`penstock_proxy.metrics`), whose values came over the channel. A snapshot goes in, text comes
out. The only other source is the kernel, for processes and sockets.

Each scrape has a registry of its own. So what is not in the snapshot is not on the page, and no
code has to remove the series of a worker that is gone.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from platform import python_version
from typing import Any, Final

import psutil
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from penstock_proxy import metrics
from penstock_proxy.balancing.member_state import SHOWN, MemberState
from penstock_proxy.metrics import OTHER, Metric
from penstock_supervisor import release
from penstock_supervisor.children.lifecycle import ProcessState
from penstock_supervisor.kernel import sock_diag
from penstock_supervisor.kernel.process_stats import process_stats
from penstock_supervisor.observability.fd_accounting import per_connection, place
from penstock_supervisor.observability.metric_families import Labels, family
from penstock_supervisor.observability.traffic import Traffic
from penstock_supervisor.observability.worker_series import (
    OF_WORKERS,
    as_dict,
    as_histogram,
    as_number,
)
from penstock_supervisor.snapshot import ROLLOUT_RESULTS, ChildView, Snapshot
from penstock_worker.telemetry.loop_lag import BUCKETS_S as LAG_BUCKETS_S

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS: Final = "application/openmetrics-text"

FD_KINDS: Final = ("listener", "client", "upstream", "pipe", "channel", OTHER)
RESTART_REASONS: Final = (
    "exit", "signal", "start_timeout", "spawn", "retire", "channel", "liveness", "unhealthy",
)  # fmt: skip
_STATES: Final = tuple(state.value for state in ProcessState)
_MEMBER_STATES: Final = tuple(dict.fromkeys(SHOWN.values()))
_PROCESS: Final = ("role", "service", "slot")

TABLE: Final = (
    Metric("penstock_build_info", "info", "What is running.", ()),
    Metric("penstock_process_open_fds", "gauge",
           "Open file descriptors of a process.", _PROCESS),
    Metric("penstock_process_max_fds", "gauge",
           "Most file descriptors that a process may open.", _PROCESS),
    Metric("penstock_process_resident_memory_bytes", "gauge",
           "Resident memory of a process.", _PROCESS),
    Metric("penstock_process_cpu_seconds_total", "counter",
           "User and system time of a process.", _PROCESS),
    Metric("penstock_process_threads", "gauge", "Threads of a process.", _PROCESS),
    Metric("penstock_fds", "gauge",
           "Open file descriptors by what they are for, as the process itself says.",
           (*_PROCESS, "kind")),
    Metric("penstock_event_loop_lag_seconds", "histogram",
           "How long the event loop kept others waiting: each turn of a proxy's, the delay of a "
           "timer of others.",
           _PROCESS, LAG_BUCKETS_S),
    Metric("penstock_event_loop_tasks", "gauge",
           "Tasks of the event loop; more and more of them is a leak.", _PROCESS),
    Metric("penstock_child_info", "info",
           "Process and address of a worker or proxy.", _PROCESS),
    Metric("penstock_child_state", "gauge",
           "Processes of a slot by state; exited and crash_loop are 1 if it has no current one.",
           (*_PROCESS, "state")),
    Metric("penstock_child_crash_loop", "gauge",
           "1 for a worker or proxy that ended too often, until it has stayed ready again.",
           _PROCESS),
    Metric("penstock_child_restarts_total", "counter",
           "Restarts of a worker or proxy, by what ended the one before.",
           (*_PROCESS, "reason")),
    Metric("penstock_child_exits_total", "counter",
           "Ends of a worker's or proxy's processes, by exit status or name of the signal.",
           (*_PROCESS, "status")),
    Metric("penstock_worker_alive", "gauge",
           "1 for a worker whose process answers, 0 for one that may hang.", ("service", "slot")),
    Metric("penstock_worker_in_rotation", "gauge",
           "1 for a worker that gets traffic.", ("service", "slot")),
    Metric("penstock_worker_health", "gauge",
           "1 for the state of a worker in the proxy's pool, 0 for the others.",
           ("service", "slot", "state")),
    Metric("penstock_worker_in_flight", "gauge",
           "Exchanges or relayed connections that a worker has now.", ("service", "slot")),
    Metric("penstock_ejections_total", "counter",
           "Times that a worker was taken out of the rotation for what traffic showed.",
           ("service", "slot")),
    Metric("penstock_child_events_total", "counter",
           "What happened to a worker or proxy, by name of the event.",
           (*_PROCESS, "event")),
    Metric("penstock_fds_per_connection", "gauge",
           "Descriptors for each open client connection, in all processes together.",
           ("service",)),
    Metric("penstock_ephemeral_ports", "gauge",
           "Local ports taken by connections to workers, those in TIME_WAIT too.",
           ("service",)),
    Metric("penstock_accept_queue_length", "gauge",
           "Connections that wait to be accepted; an empty slot means one socket for all.",
           ("service", "slot")),
    Metric("penstock_accept_queue_limit", "gauge",
           "Most connections that may wait to be accepted.", ("service", "slot")),
    Metric("penstock_accept_queue_overflows_total", "counter",
           "Connections, or datagrams, that found no room at a listening socket.",
           ("service", "slot")),
    Metric("penstock_accept_queue_dropped_total", "counter",
           "Connections that waited at a worker's socket when it had to be closed.",
           ("service",)),
    Metric("penstock_rollouts_total", "counter",
           "Roll-outs that ended, by how: succeeded, refused, aborted, rolled_back, superseded, "
           "cancelled.",
           ("result",)),
    Metric("penstock_rollout_in_progress", "gauge", "1 while a roll-out runs.", ()),
    Metric("penstock_config_last_reload_successful", "gauge",
           "1 if the last reload has succeeded; 0 if it was refused, or its roll-out did not.", ()),
    Metric("penstock_config_last_reload_success_timestamp_seconds", "gauge",
           "When the configuration was applied last, in seconds since 1970.", ()),
    Metric("penstock_dns_lookups_total", "counter",
           "Look-ups of an upstream's name, by result: found, not_found, timeout, failed.",
           ("service", "name", "result")),
    Metric("penstock_dns_members", "gauge",
           "Members that an upstream's name stands for now.", ("service", "name")),
    Metric("penstock_dns_ttl_seconds", "gauge",
           "How long the last good answer for a name holds.", ("service", "name")),
    Metric("penstock_dns_last_success_timestamp_seconds", "gauge",
           "When a name was found last, in seconds since 1970.", ("service", "name")),
    Metric("penstock_log_lines_lost_total", "counter",
           "Lines of the run's own log, and of its programs, that could not be written.", ()),
    Metric("penstock_tls_certificate_not_after_timestamp_seconds", "gauge",
           "Until when a certificate is good, in seconds since 1970, by its first name.",
           ("service", "name")),
    Metric("penstock_tls_reloads_total", "counter",
           "Changed certificate files that were taken, or that could not be used.",
           ("service", "result")),
    Metric("penstock_tls_last_reload_successful", "gauge",
           "1 if the certificates on disk are those that are shown.", ("service",)),
    Metric("penstock_jain_fairness_index", "gauge",
           "How evenly workers shared the work so far: 1 if by weight, 1/n if one has all.",
           ("service",)),
    *OF_WORKERS,
)  # fmt: skip

Samples = defaultdict[str, list[tuple[Labels, Any]]]


def render(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """Return the page and its Content-Type: OpenMetrics 1.0 if `accept` names it, else text.

    Reads /proc for every process, so call it in a thread.
    """
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_SnapshotMetrics(snapshot))
    # Not the library's choose_encoder: its result depends on its version, and it raises if a
    # version in the header is not a number.
    if any(item.split(";")[0].strip().lower() == _OPENMETRICS for item in accept.split(",")):
        page: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return page, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), _TEXT


class _SnapshotMetrics(Collector):
    """Both tables, filled from one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._samples: Samples = defaultdict(list)
        self._add_supervisor(snapshot)
        for child in snapshot.children:
            self._add_child(child)
            if child.role == "worker" and child.pid is not None:
                is_alive = (child.service, child.slot) not in snapshot.silent
                labels = (child.service, str(child.slot))
                self._add("penstock_worker_alive", labels, int(is_alive))
        traffic = Traffic(snapshot)
        self._add_pools(traffic, {(child.service, child.slot) for child in snapshot.children})
        self._add_services(snapshot, traffic)
        self._add_sockets(snapshot)
        self._add_certificates(snapshot)
        self._add_rollouts(snapshot)
        self._add_names(snapshot)

    def collect(self) -> Iterator[Any]:
        for metric in (*TABLE, *metrics.TABLE):
            yield family(metric, self._samples.get(metric.name, ()))

    def _add(self, name: str, labels: Labels, value: Any) -> None:
        self._samples[name].append((labels, value))

    def _add_supervisor(self, snapshot: Snapshot) -> None:
        labels = ("supervisor", "", "")
        self._add(
            "penstock_build_info",
            (),
            {"version": release.version(), "python": python_version()},
        )
        self._add_process(labels, os.getpid())
        by_kind = {"listener": snapshot.listener_fds, "channel": snapshot.channel_fds}
        with suppress(psutil.Error):
            rest = psutil.Process().num_fds() - sum(by_kind.values())
            self._add_fds(labels, {**by_kind, OTHER: max(0, rest)})
        self._add("penstock_event_loop_lag_seconds", labels, [*snapshot.loop_lag])
        self._add("penstock_event_loop_tasks", labels, snapshot.tasks)

    def _add_child(self, child: ChildView) -> None:
        labels = (child.role, child.service, str(child.slot))
        states = Counter(one.state for one in child.processes if one.part != "current")
        states[child.state] += 1
        for state in _STATES:
            self._add("penstock_child_state", (*labels, state), states[state])
        self._add("penstock_child_crash_loop", labels, int(child.crash_loop))
        for reason in RESTART_REASONS:
            count = child.restarts.get(reason, 0)
            self._add("penstock_child_restarts_total", (*labels, reason), count)
        for status, count in child.exits.items():
            self._add("penstock_child_exits_total", (*labels, status), count)
        for event, count in child.events.items():
            self._add("penstock_child_events_total", (*labels, event), count)
        if child.pid is None:
            return
        info = {"pid": str(child.pid), "address": child.address, "name": ""}
        self._add("penstock_child_info", labels, info)
        self._add_process(labels, child.pid)
        reported = as_dict(child.stats.get("metrics"))
        self._add_fds(labels, as_dict(reported.get("fds")))
        if (lag := as_histogram(reported.get("loop_lag"), LAG_BUCKETS_S)) is not None:
            self._add("penstock_event_loop_lag_seconds", labels, lag)
        if (tasks := as_number(reported.get("tasks"))) is not None:
            self._add("penstock_event_loop_tasks", labels, tasks)

    def _add_process(self, labels: Labels, pid: int) -> None:
        for name, value in process_stats(pid).items():
            self._add(name, labels, value)

    def _add_fds(self, labels: Labels, fds: Mapping[str, Any]) -> None:
        # A worker's numbers come from a program that is not ours: they may be anything.
        kinds: defaultdict[str, float] = defaultdict(float)
        for kind, reported in fds.items():
            if (value := as_number(reported)) is not None:
                kinds[kind if kind in FD_KINDS else OTHER] += value
        for kind, value in kinds.items():
            self._add("penstock_fds", (*labels, kind), value)

    def _add_pools(self, traffic: Traffic, supervised: set[tuple[str, int]]) -> None:
        rows = {
            (service, slot): row
            for service, pool in traffic.pools.items()
            for slot, row in pool.items()
        }
        for (service, slot), row in rows.items():
            labels = (service, str(slot))
            if (service, slot) not in supervised:
                info = {"pid": "", "address": row["address"], "name": row.get("name", "")}
                self._add("penstock_child_info", ("worker", *labels), info)
            up = row["health"] == MemberState.UP
            self._add("penstock_worker_in_rotation", labels, int(up))
            for state in _MEMBER_STATES:
                is_current = int(row["health"] == state)
                self._add("penstock_worker_health", (*labels, state.value), is_current)
            self._add("penstock_worker_in_flight", labels, row["active"])
            self._add("penstock_ejections_total", labels, row["ejections"])

    def _add_services(self, snapshot: Snapshot, traffic: Traffic) -> None:
        labels_of = {metric.name: metric.labels[1:] for metric in (*metrics.TABLE, *OF_WORKERS)}
        for service, series in traffic.series.items():
            for name, samples in series.items():
                for text, value in samples.items():
                    labels = tuple(text.split(" ")) if labels_of[name] else ()
                    self._add(name, (service, *labels), value)
        for service in snapshot.services:
            if (ratio := traffic.split(service).jain) is not None:
                self._add("penstock_jain_fairness_index", (service,), ratio)
        for service, fds in per_connection(snapshot, traffic, sock_diag.accepted):
            self._add("penstock_fds_per_connection", (service,), fds)
        self._add_ports(snapshot, traffic)

    def _add_ports(self, snapshot: Snapshot, traffic: Traffic) -> None:
        # The addresses of the pools: in these the names of upstreams are resolved.
        worker_places = {
            service: {where for one in traffic.addresses(service) if (where := place(one))}
            for service in traffic.pools
            if snapshot.services.get(service, {}).get("scheme") == "ports"
        }
        counts = sock_diag.connections_to(
            {where for places in worker_places.values() for where in places}
        )
        if counts is not None:
            for service, places in worker_places.items():
                used = sum(counts[where] for where in places)
                self._add("penstock_ephemeral_ports", (service,), used)

    def _add_sockets(self, snapshot: Snapshot) -> None:
        queues = sock_diag.queues({view.kind for view in snapshot.sockets})
        for view in snapshot.sockets:
            if (queue := queues.get(view.inode)) is None:
                continue
            labels = (view.service, "" if view.slot is None else str(view.slot))
            values = {
                "penstock_accept_queue_length": queue.length,
                "penstock_accept_queue_limit": queue.limit,
                "penstock_accept_queue_overflows_total": queue.overflows,
            }
            for name, value in values.items():
                if value is not None:
                    self._add(name, labels, value)
        self._add("penstock_log_lines_lost_total", (), snapshot.log_lines_lost)
        for service, count in snapshot.dropped.items():
            self._add("penstock_accept_queue_dropped_total", (service,), count)

    def _add_certificates(self, snapshot: Snapshot) -> None:
        for service, view in snapshot.tls.items():
            for name, expires_at in view.not_after.items():
                metric = "penstock_tls_certificate_not_after_timestamp_seconds"
                self._add(metric, (service, name), expires_at)
            for result, count in view.reloads.items():
                self._add("penstock_tls_reloads_total", (service, result), count)
            self._add("penstock_tls_last_reload_successful", (service,), int(view.current))

    def _add_names(self, snapshot: Snapshot) -> None:
        for view in snapshot.names:
            labels = (view.service, view.name)
            for result, count in view.lookups.items():
                self._add("penstock_dns_lookups_total", (*labels, result), count)
            self._add("penstock_dns_members", labels, view.addresses)
            if view.last_found_at:
                name = "penstock_dns_last_success_timestamp_seconds"
                self._add(name, labels, view.last_found_at)
                self._add("penstock_dns_ttl_seconds", labels, view.ttl_s)

    def _add_rollouts(self, snapshot: Snapshot) -> None:
        for result in ROLLOUT_RESULTS:
            self._add("penstock_rollouts_total", (result,), snapshot.rollout_results.get(result, 0))
        runs = any(not view.result for view in snapshot.rollouts)
        self._add("penstock_rollout_in_progress", (), int(runs))
        self._add("penstock_config_last_reload_successful", (), int(snapshot.config_ok))
        name = "penstock_config_last_reload_success_timestamp_seconds"
        self._add(name, (), snapshot.config_applied_at)
