"""Counts the requests of a run so far, and those that failed: the proof that a roll-out lost none.

What is counted as a request: every one that ended, in mode `http`, as the proxies count it under
`ports` and the workers of an `app` under the other schemes.

What is counted as failed, whoever's fault it was but the client's own:

    a response 5xx                 of a worker, or of the proxy in its place
    a response without its end     and a relayed or upgraded connection that was cut or broke off
    a request that a worker cut    as its time to finish was over
    a connection that got nothing  nobody was free for it, it was lost on its way to a worker, or
                                   it waited at a listening socket that was closed

A client that leaves, breaks a rule or is over its own limit has not failed. A request that was
tried again with another worker counts by its last answer.

What nobody can know: connections that a worker had under `handoff`, `shared` and `reuseport` when
it was killed, everything of a `command` under `shared` and `reuseport`, and datagrams. In mode
`tcp` there are no requests, and a connection that a worker closes may be complete or not; only one
that was reset or cut counts. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from penstock_proxy.errors import STOP_TIMEOUT
from penstock_proxy.metrics import Series
from penstock_supervisor.observability.traffic import Traffic
from penstock_supervisor.observability.worker_series import as_dict, as_number, sanitized
from penstock_supervisor.rollout.request_totals import RequestTotals, ServiceTotals
from penstock_supervisor.snapshot import Snapshot

_REQUESTS: Final = "penstock_requests_total"
_NEVER_SERVED: Final = ("max_connections", "no_descriptors")
"""Why a connection is rejected before it has a request."""
_NO_WORKER: Final = ("no_worker", "queue_full", "queue_timeout")
"""Why one gets no worker. In mode `http` it is a request as well, with its 503."""


def count(snapshot: Snapshot) -> RequestTotals:
    """All that was counted since the start of the run."""
    traffic = Traffic(snapshot)
    counting = set(_counting_services(snapshot))
    totals = {}
    for name, facts in snapshot.services.items():
        series, dropped = traffic.series.get(name, {}), snapshot.dropped.get(name, 0)
        totals[name] = _count(facts, series, dropped, by_workers=name in counting)
    return RequestTotals(totals, snapshot.unseen_ends, tuple(_silent(snapshot)))


def _silent(snapshot: Snapshot) -> Iterator[str]:
    """The names of processes that have not said how many they had."""
    for child in snapshot.children:
        if any(process.is_silent for process in child.processes):
            yield f"{child.service or child.role}/{child.slot}"


def _counting_services(snapshot: Snapshot) -> Iterator[str]:
    """Those whose workers count requests, although they may have had none so far."""
    for child in snapshot.children:
        if child.role == "worker":
            reported = as_dict(as_dict(child.stats.get("metrics")).get("series"))
            if _REQUESTS in sanitized(reported, child.slot, child.scheme):
                yield child.service


def _count(
    facts: Mapping[str, Any], series: Series, dropped: int, *, by_workers: bool
) -> ServiceTotals:
    is_proxied_http = facts["scheme"] == "ports" and facts["mode"] == "http"
    samples = series.get(_REQUESTS, {})
    # Under handoff a proxy has the metric, and no samples of it.
    is_counted = bool(samples) or by_workers
    has_requests = is_proxied_http or (facts["mode"] == "http" and is_counted)
    by_status = [(labels.rpartition(" ")[2], _number(value)) for labels, value in samples.items()]
    failed = sum(number for status, number in by_status if status.startswith("5"))
    failed += _one(series, "penstock_broken_off_total", "") + dropped
    failed += _one(series, "penstock_handoffs_total", "lost")
    reasons = _NEVER_SERVED if is_proxied_http else (*_NEVER_SERVED, *_NO_WORKER)
    failed += sum(_one(series, "penstock_rejected_total", reason) for reason in reasons)
    if facts["scheme"] != "ports":
        # With ports such a request has its 503, or was broken off.
        failed += _one(series, "penstock_connection_errors_total", STOP_TIMEOUT.kind)
    requests = sum(number for _, number in by_status)
    is_known = has_requests or facts["scheme"] in ("ports", "handoff")
    return ServiceTotals(
        int(requests) if has_requests else None,
        int(failed) if is_known or failed else None,
        facts["mode"] != "tcp",
    )


def _one(series: Series, name: str, labels: str) -> int:
    return int(_number(series.get(name, {}).get(labels)))


def _number(value: object) -> float:
    return as_number(value) or 0
