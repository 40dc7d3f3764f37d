"""One `Observation` as a page of metrics.

Owns the supervisor's table of metrics, the figures that the kernel has about each process,
and the rendering of both tables: this one, and the front's own (`penstock_proxy.metrics`),
whose numbers came over the channel. It asks nobody: an observation goes in, text comes out.

Why a registry for each scrape and not one for ever: whatever is not in the observation is
not on the page. A worker that is gone needs nobody to remember to remove its series.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
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
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from penstock_proxy import metrics
from penstock_proxy.metrics import OTHER, Metric
from penstock_proxy.pool import Standing
from penstock_supervisor.lifecycle import State
from penstock_supervisor.observation import ChildView, Observation

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS: Final = "application/openmetrics-text"

FD_KINDS: Final = ("listener", "client", "upstream", "channel", OTHER)
RESTART_REASONS: Final = ("exit", "signal", "start_timeout", "spawn")
_STATES: Final = tuple(state.name.lower() for state in State)
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
    Metric("penstock_event_loop_lag_seconds", "gauge",
           "How late the event loop was when it last looked.", _PROCESS),
    Metric("penstock_worker_info", "info",
           "Process and address of a worker or front.", _PROCESS),
    Metric("penstock_worker_state", "gauge",
           "1 for the state that a worker or front is in, 0 for the others.",
           (*_PROCESS, "state")),
    Metric("penstock_worker_restarts_total", "counter",
           "Restarts of a worker or front, by what ended the one before.",
           (*_PROCESS, "reason")),
    Metric("penstock_worker_exits_total", "counter",
           "Ends of a worker's or front's processes, by exit status or name of the signal.",
           (*_PROCESS, "status")),
    Metric("penstock_worker_in_rotation", "gauge",
           "1 for a worker that gets traffic.", ("service", "slot")),
    Metric("penstock_worker_standing", "gauge",
           "1 for a worker's standing in the front's pool, 0 for the others.",
           ("service", "slot", "standing")),
    Metric("penstock_worker_active", "gauge",
           "Exchanges or relayed connections that a worker has now.", ("service", "slot")),
    Metric("penstock_ejections_total", "counter",
           "Times that a worker was taken out of the rotation for what traffic showed.",
           ("service", "slot")),
)  # fmt: skip

Labels = tuple[str, ...]
Samples = defaultdict[str, list[tuple[Labels, Any]]]


def render(observation: Observation, accept: str) -> tuple[bytes, str]:
    """Make the page and its Content-Type: OpenMetrics 1.0 if `accept` names it, else text.

    Reads /proc for every process, so it belongs into a thread.
    """
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_Page(observation))
    # Not the library's choose_encoder: what it answers depends on its version, and a
    # version in the header that is no number makes it raise.
    if any(one.split(";")[0].strip().lower() == _OPENMETRICS for one in accept.split(",")):
        page: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return page, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), _TEXT


class _Page(Collector):
    """The tables, filled from one observation."""

    def __init__(self, observation: Observation) -> None:
        self._samples: Samples = defaultdict(list)
        self._of_supervisor(observation)
        for child in observation.children:
            self._of_child(child)
        fronts = [child.stats for child in observation.children if child.role == "front"]
        self._of_pools(fronts, {(one.service, one.slot) for one in observation.children})
        self._of_services(fronts)

    def collect(self) -> Iterator[Any]:
        for metric in (*TABLE, *metrics.TABLE):
            yield _family(metric, self._samples.get(metric.name, ()))

    def _add(self, name: str, labels: Labels, value: Any) -> None:
        self._samples[name].append((labels, value))

    def _of_supervisor(self, observation: Observation) -> None:
        labels = ("supervisor", "", "")
        self._add(
            "penstock_build_info",
            (),
            {"version": version("penstock"), "python": python_version()},
        )
        self._of_process(labels, os.getpid())
        known = {"listener": observation.listener_fds, "channel": observation.channel_fds}
        with suppress(psutil.Error):
            rest = psutil.Process().num_fds() - sum(known.values())
            self._of_fds(labels, {**known, OTHER: max(0, rest)})
        self._add("penstock_event_loop_lag_seconds", labels, observation.loop_lag_s)

    def _of_child(self, child: ChildView) -> None:
        labels = (child.role, child.service, str(child.slot))
        for state in _STATES:
            self._add("penstock_worker_state", (*labels, state), int(state == child.state))
        for reason in RESTART_REASONS:
            count = child.restarts.get(reason, 0)
            self._add("penstock_worker_restarts_total", (*labels, reason), count)
        for status, count in child.exits.items():
            self._add("penstock_worker_exits_total", (*labels, status), count)
        if child.pid is None:
            return
        info = {"pid": str(child.pid), "address": child.address}
        self._add("penstock_worker_info", labels, info)
        self._of_process(labels, child.pid)
        told = _table(child.stats.get("metrics"))
        self._of_fds(labels, _table(told.get("fds")))
        if (lag := _number(told.get("loop_lag_s"))) is not None:
            self._add("penstock_event_loop_lag_seconds", labels, lag)

    def _of_process(self, labels: Labels, pid: int) -> None:
        for name, value in _figures(pid).items():
            self._add(name, labels, value)

    def _of_fds(self, labels: Labels, fds: Mapping[str, Any]) -> None:
        # A worker's figures come from a program that is not ours: it may say anything.
        kinds: defaultdict[str, float] = defaultdict(float)
        for kind, told in fds.items():
            if (value := _number(told)) is not None:
                kinds[kind if kind in FD_KINDS else OTHER] += value
        for kind, value in kinds.items():
            self._add("penstock_fds", (*labels, kind), value)

    def _of_pools(
        self, fronts: Iterable[Mapping[str, Any]], supervised: set[tuple[str, int]]
    ) -> None:
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for stats in fronts:
            for service, pool in stats.get("pools", {}).items():
                for row in pool:
                    known = rows.setdefault(
                        (service, row["slot"]), {**row, "active": 0, "ejections": 0}
                    )
                    # Each front has traffic and a judgement of its own; numbers add up.
                    known["active"] += row["active"]
                    known["ejections"] += row["ejections"]
        for (service, slot), row in rows.items():
            labels = (service, str(slot))
            if (service, slot) not in supervised:
                info = {"pid": "", "address": row["address"]}
                self._add("penstock_worker_info", ("worker", *labels), info)
            up = row["standing"] == Standing.UP
            self._add("penstock_worker_in_rotation", labels, int(up))
            for standing in Standing:
                is_it = int(row["standing"] == standing)
                self._add("penstock_worker_standing", (*labels, standing.value), is_it)
            self._add("penstock_worker_active", labels, row["active"])
            self._add("penstock_ejections_total", labels, row["ejections"])

    def _of_services(self, fronts: Iterable[Mapping[str, Any]]) -> None:
        parts: defaultdict[str, list[metrics.Series]] = defaultdict(list)
        for stats in fronts:
            for service, series in stats.get("metrics", {}).get("services", {}).items():
                parts[service].append(series)
        labels_of = {metric.name: metric.labels[1:] for metric in metrics.TABLE}
        for service, some in parts.items():
            for name, samples in metrics.merge(some).items():
                for text, value in samples.items():
                    labels = tuple(text.split(" ")) if labels_of[name] else ()
                    self._add(name, (service, *labels), value)


def _figures(pid: int) -> dict[str, float]:
    """What the kernel says; without what it will not say, and empty if the process is gone."""
    figures: dict[str, float] = {}
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return figures
    with process.oneshot():
        ask = {
            "penstock_process_open_fds": process.num_fds,
            "penstock_process_max_fds": lambda: _limit(process.rlimit(psutil.RLIMIT_NOFILE)[0]),
            "penstock_process_resident_memory_bytes": lambda: process.memory_info().rss,
            "penstock_process_cpu_seconds_total": lambda: sum(process.cpu_times()[:2]),
            "penstock_process_threads": process.num_threads,
        }
        for name, figure in ask.items():
            with suppress(psutil.Error):
                figures[name] = figure()
    return figures


def _limit(soft: int) -> float:
    return math.inf if soft == psutil.RLIM_INFINITY else soft


def _family(metric: Metric, samples: Iterable[tuple[Labels, Any]]) -> Any:
    name, kind, text, labels = metric
    family: Any
    match kind:
        case "counter":
            family = CounterMetricFamily(name, text, labels=labels)
        case "gauge":
            family = GaugeMetricFamily(name, text, labels=labels)
        case "info":
            family = InfoMetricFamily(name.removesuffix("_info"), text, labels=labels)
        case "histogram":
            family = HistogramMetricFamily(name, text, labels=labels)
            for values, flat in samples:
                family.add_metric(values, *_cumulative(flat))
            return family
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _cumulative(flat: list[float]) -> tuple[list[tuple[str, float]], float]:
    """From counts by bucket and a sum to what Prometheus wants: counts up to each bound."""
    *counts, total = flat
    buckets, so_far = [], 0.0
    for bound, count in zip((*metrics.BUCKETS_S, math.inf), counts, strict=True):
        so_far += count
        buckets.append((floatToGoString(bound), so_far))  # type: ignore[no-untyped-call]
    return buckets, total


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 <= number < math.inf else None
