"""What each worker of a service was asked and failed so far, for a comparison of two versions.

Owns the differences between schemes. Where a proxy reads the requests it counts them by member, so
that a worker and its successor in the same slot are kept apart. Elsewhere an `app` counts its own,
each process from zero, and a canary does so beside its old process. Of other programs nobody knows
the requests; under `handoff` at least the connections that they did not take. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from penstock_supervisor.observability.worker_series import as_dict
from penstock_supervisor.rollout.canary import NOTHING, Counts
from penstock_supervisor.snapshot import Snapshot


def canary_counts(snapshot: Snapshot, service: str) -> dict[tuple[int, int], Counts]:
    """By member, and by the pid of the process that counted; as `rollout.canary.judge` takes it.
    Empty: nobody counts."""
    scheme = snapshot.services[service]["scheme"]
    of_workers = dict(_counted_by_workers(snapshot, service)) if scheme != "ports" else {}
    return of_workers or dict(_counted_by_proxies(snapshot, service))


def _counted_by_proxies(
    snapshot: Snapshot, service: str
) -> Iterator[tuple[tuple[int, int], Counts]]:
    for proxy in snapshot.children:
        if proxy.role == "proxy":
            for row in as_dict(proxy.stats.get("pools")).get(service, ()):
                durations = tuple(row.get("durations") or NOTHING.durations)
                counts = Counts(row.get("requests", 0), row.get("failed", 0), durations)
                yield (row["member"], proxy.pid or 0), counts


def _counted_by_workers(
    snapshot: Snapshot, service: str
) -> Iterator[tuple[tuple[int, int], Counts]]:
    for child in snapshot.children:
        if child.role == "worker" and child.service == service:
            for process in child.processes:
                counts = _of_worker(process.series or {})
                if counts is not None:
                    yield (process.number, process.pid), counts


def _of_worker(series: Mapping[str, Mapping[str, Any]]) -> Counts | None:
    """None: it does not count requests."""
    requests = series.get("penstock_requests_total")
    if requests is None:
        return None
    failures = sum(
        count for labels, count in requests.items() if labels.rpartition(" ")[2].startswith("5")
    )
    durations = series.get("penstock_request_duration_seconds", {}).get("total")
    # Without the sum, which is the last.
    by_bucket = tuple(map(int, durations[:-1])) if durations else NOTHING.durations
    return Counts(int(sum(requests.values())), int(failures), by_bucket)
