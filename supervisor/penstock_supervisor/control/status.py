"""One `Snapshot` as what /status and /readyz say: plain values, ready for JSON.

Owns the names of the fields that people's scripts read. What the proxy (where there is none,
the worker checks) says about a worker, its health and what it has to do, is put beside what the
supervisor says about the same slot; the two disagree for a moment whenever something happens,
and both are shown. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from penstock_supervisor.observability.traffic import Traffic, WorkerRow
from penstock_supervisor.snapshot import ChildView, Snapshot, SocketQueue

_TOLD_BY_POOL: Final = ("health", "reason", "weight", "active", "failures", "ejections")


def describe(
    snapshot: Snapshot, version: str, pid: int, queues: Mapping[int, SocketQueue]
) -> dict[str, Any]:
    """The whole of /status. Times in seconds; null is what nobody knows.

    `pid` is the supervisor's; `queues` are those of the listening sockets, by inode.
    """
    traffic = Traffic(snapshot)
    return {
        "version": version,
        "pid": pid,
        "pids": {
            "supervisor": [pid],
            "proxy": _pids(snapshot, "proxy"),
            "worker": _pids(snapshot, "worker"),
        },
        "uptime": round(snapshot.uptime_s, 3),
        "ready": snapshot.ready,
        "stopping": snapshot.stopping,
        "proxies": [
            {**_process(child), "covered": child.slot in snapshot.covered}
            for child in snapshot.children
            if child.role == "proxy"
        ],
        "services": {
            name: {
                **facts,
                "split": _split(traffic, name),
                "dropped": snapshot.dropped.get(name, 0),
                "sockets": list(_sockets(snapshot, name, queues)),
                "workers": list(_workers(snapshot, name, facts, traffic.pools.get(name, {}))),
            }
            for name, facts in snapshot.services.items()
        },
    }


def without_worker(snapshot: Snapshot) -> tuple[str, ...]:
    """The services that have no worker in rotation, as far as anybody has said."""
    pools = Traffic(snapshot).pools
    return tuple(
        name
        for name in snapshot.services
        if not any(row["health"] == "up" for row in pools.get(name, {}).values())
    )


def _pids(snapshot: Snapshot, role: str) -> list[int]:
    return [
        child.pid for child in snapshot.children if child.role == role and child.pid is not None
    ]


def _split(traffic: Traffic, name: str) -> dict[str, Any]:
    split = traffic.split(name)
    by_slot = {str(slot): count for slot, count in split.by_slot.items()}
    ratio = None if split.jain is None else round(split.jain, 4)
    return {"of": split.of, "by_slot": by_slot, "jain_ratio": ratio}


def _sockets(
    snapshot: Snapshot, name: str, queues: Mapping[int, SocketQueue]
) -> Iterator[dict[str, Any]]:
    for view in snapshot.sockets:
        if view.service == name:
            queue = queues.get(view.inode, SocketQueue(None, None, None))
            yield {"slot": view.slot, "kind": view.kind, **queue._asdict()}


def _workers(
    snapshot: Snapshot, name: str, facts: Mapping[str, Any], pool: Mapping[int, WorkerRow]
) -> Iterator[dict[str, Any]]:
    children = [child for child in snapshot.children if child.service == name]
    for child in children:
        yield {**_process(child), **_as_the_pool_has_it(pool.get(child.slot))}
    if not children:
        for slot, address in enumerate(facts.get("upstreams", ())):
            yield {"slot": slot, "address": address, **_as_the_pool_has_it(pool.get(slot))}


def _process(child: ChildView) -> dict[str, Any]:
    return {
        "slot": child.slot,
        "address": child.address or None,
        "state": child.state,
        "since": round(child.since_s, 3),
        "pid": child.pid,
        "restarts": dict(child.restarts),
        "last_exit": child.last_exit or None,
        "answers": child.fresh,
    }


def _as_the_pool_has_it(row: Mapping[str, Any] | None) -> dict[str, Any]:
    return {field: None if row is None else row.get(field) for field in _TOLD_BY_POOL}
