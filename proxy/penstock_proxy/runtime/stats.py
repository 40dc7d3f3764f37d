"""What a proxy process says of itself when it is asked: the answer to STATS.

Owns: what is looked up only then, open descriptors above all, and the shape of the answer. The
counters themselves belong to those who count. Must not know: who asks, or how often.
"""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress

from penstock_proxy.metrics import snapshot
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.channel.channel import Message
from penstock_worker.telemetry.access_log import AccessLog


def answer(
    services: Mapping[str, Service],
    logs: Mapping[str, AccessLog],
    fd_budget: FdBudget,
    loop: asyncio.AbstractEventLoop,
    lag_s: float,
) -> Message:
    """Metrics and pools as plain values. `lag_s`: how late the loop's last tick was."""
    for service in services.values():
        _update(service)
    metrics = snapshot(
        {name: service.counters for name, service in services.items()},
        fds=_descriptors(fd_budget),
        loop_lag_s=lag_s,
        tasks=len(asyncio.all_tasks(loop)),
        log_dropped={name: log.dropped for name, log in logs.items()},
    )
    pools = {name: service.pool.snapshot() for name, service in services.items()}
    return {"metrics": metrics, "pools": pools}


def open_descriptors() -> int:
    """How many this process has. OSError: there is none left to look with."""
    # One of them is the directory itself.
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 — a count, not paths


def _descriptors(fd_budget: FdBudget) -> dict[str, int]:
    """By kind."""
    kinds = {**fd_budget.by_kind(), "channel": 1}
    # Looking takes a descriptor, and there may be none: then our own account has to do.
    with suppress(OSError):
        kinds["other"] = max(0, open_descriptors() - (sum(kinds.values()) - kinds["other"]))
    return kinds


def _update(service: Service) -> None:
    """Bring the gauges of a service up to date."""
    counters = service.counters
    counters.queue = len(service.queue)
    if (handshakes := service.filter_chain.tls_acceptor) is not None:
        counters.handshakes_in_progress = handshakes.pending
    counters.accepting = service.listeners.is_accepting
    if service.dispatcher is not None:
        service.dispatcher.settle()
