"""Statistics of a proxy process: the answer to STATS.

Owns: the shape of the answer, and the values that nothing else reads, such as the number of open
descriptors. The answer comes in parts: to make and send all of a thousand members, or of two
hundred services, takes ten turns of the loop, and one message of all could be longer than the
channel takes. Each counter belongs to the module that counts. Must not know: who asks, and how
often.
"""

import asyncio
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from penstock_proxy import messages
from penstock_proxy.balancing.member import Member, row_of
from penstock_proxy.metrics import Series, merge, series_parts
from penstock_proxy.runtime.service import Service
from penstock_proxy.service.fd_budget import FdBudget
from penstock_worker.channel.channel import Message
from penstock_worker.telemetry.loop_lag import LagHistogram

_ROWS: Final = 32
"""Members in one part: so many are written as JSON in a tenth of a millisecond."""
_MAX_COUNTED: Final = 1024
"""Descriptors that are looked for in /proc."""


def answer(
    seq: int | None,
    services: Iterable[Service],
    departed: Iterable[tuple[str, Series]],
    fd_budget: FdBudget,
    loop: asyncio.AbstractEventLoop,
    lag: LagHistogram,
) -> Iterator[Message | None]:
    """The messages of an answer: metrics and pools as plain values; None: it was a step without
    one. `departed`: what services have counted, by name, that were removed. What is given must not
    change meanwhile."""
    for service in services:
        yield from _parts(seq, service)
    by_name: dict[str, Series] = {}
    for name, one in departed:
        by_name[name] = merge((by_name[name], one)) if name in by_name else one
    metrics = {
        "fds": _descriptors(fd_budget),
        "loop_lag": lag.flat(),
        "tasks": len(asyncio.all_tasks(loop)),
        "services": by_name,
    }
    yield {"cmd": messages.STATS, "seq": seq, "metrics": metrics, "pools": {}}


def joined(parts: Iterable[Message], last: Message) -> Message:
    """The answer as a whole: `last`, and what all parts of it have added."""
    services = dict(last["metrics"]["services"])
    pools: dict[str, list[object]] = {}
    for part in parts:
        name = part["service"]
        services[name] = merge((services.get(name, {}), part["series"]))
        pools.setdefault(name, []).extend(part["rows"])
    return {**last, "metrics": {**last["metrics"], "services": services}, "pools": pools}


def _parts(seq: int | None, service: Service) -> Iterator[Message | None]:
    update_gauges(service)
    part: Message = {"cmd": messages.STATS_PART, "seq": seq, "service": service.config.name}
    for series in series_parts(service.counters, service.error_log.dropped):
        yield {**part, "series": series, "rows": []}
    for rows in pool_rows(service):
        yield {**part, "series": {}, "rows": rows} if rows else None


def pool_rows(service: Service) -> Iterator[list[dict[str, Any]]]:
    """The members as plain values, each with its requests so far, those of them that it
    failed, and how many took how long (by bucket, of those that ended); some in each step, or
    none."""
    requests: dict[Member, int] = {}
    members, durations = service.pool.members, service.counters.durations
    for _ in service.counting_requests(requests):
        yield []
    for at in range(0, len(members), _ROWS):
        some = members[at : at + _ROWS]
        rows = [row_of(member) for member in some]
        for row, member in zip(rows, some, strict=True):
            row["requests"], row["failed"] = requests[member], member.total_failures
            row["durations"] = durations[member].counts[:] if member in durations else []
        yield rows


def open_descriptors() -> int:
    """The number of open descriptors. OSError: none is left to read the directory with."""
    # One of the entries is the directory itself.
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 — a count, not paths


def _descriptors(fd_budget: FdBudget) -> dict[str, int]:
    """Open descriptors, by kind."""
    kinds = {**fd_budget.by_kind(), "channel": 1}
    # To read the directory takes a descriptor, and as long as there are descriptors: where there
    # are many, or none is left, the budget's own count is used.
    if fd_budget.open <= _MAX_COUNTED:
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
