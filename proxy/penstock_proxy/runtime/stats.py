"""Statistics of a proxy process: the answer to STATS.

Owns: the shape of the answer, and the values that nothing else reads, such as the number of open
descriptors. Each counter belongs to the module that counts. Must not know: who asks, and how
often.
"""

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress

from penstock_proxy.metrics import Series, merge, series
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.channel.channel import Message


def answer(
    services: Iterable[Service],
    departed: Iterable[tuple[str, Series]],
    fd_budget: FdBudget,
    loop: asyncio.AbstractEventLoop,
    lag_s: float,
) -> Message:
    """Metrics and pools as plain values. `lag_s`: how late the loop's last tick was. `departed`:
    what services have counted, by name, that were removed."""
    by_name: dict[str, Series] = {}
    pools = {}
    for service in services:
        update_gauges(service)
        name = service.config.name
        by_name[name] = series(service.counters, service.error_log.dropped)
        pools[name] = service.pool_rows()
    for name, one in departed:
        by_name[name] = merge((by_name[name], one)) if name in by_name else one
    metrics = {
        "fds": _descriptors(fd_budget),
        "loop_lag_s": lag_s,
        "tasks": len(asyncio.all_tasks(loop)),
        "services": by_name,
    }
    return {"metrics": metrics, "pools": pools}


def open_descriptors() -> int:
    """The number of open descriptors. OSError: none is left to read the directory with."""
    # One of the entries is the directory itself.
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 — a count, not paths


def _descriptors(fd_budget: FdBudget) -> dict[str, int]:
    """Open descriptors, by kind."""
    kinds = {**fd_budget.by_kind(), "channel": 1}
    # To read the directory takes a descriptor. Without one, the budget's own count is used.
    with suppress(OSError):
        kinds["other"] = max(0, open_descriptors() - (sum(kinds.values()) - kinds["other"]))
    return kinds


def update_gauges(service: Service) -> None:
    """Bring the gauges of a service up to date."""
    counters = service.counters
    counters.queue = len(service.queue)
    if (tls_acceptor := service.filter_chain.tls_acceptor) is not None:
        counters.handshakes_in_progress = tls_acceptor.in_progress
    counters.accepting = service.listeners.is_accepting
    if service.dispatcher is not None:
        service.dispatcher.poll_reports()
