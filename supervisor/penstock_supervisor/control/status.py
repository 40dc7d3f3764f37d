"""One `Snapshot` as the content of /status: plain values, ready for JSON.

Owns the names of the fields that people's scripts read. Each worker has two sets of fields. One
is the supervisor's: the state of its process. The other is the proxy's, or that of the worker
checks if there is no proxy: its state in the pool, and how much it has to do. The two disagree
for a moment whenever something changes, and both are shown. A worker is a slot; the processes of
the slot are a list in it. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from penstock_supervisor.control import rollouts
from penstock_supervisor.observability.traffic import Traffic, WorkerRow
from penstock_supervisor.snapshot import (
    ChildView,
    ProcessUsage,
    ProcessView,
    ReloadRefusal,
    Snapshot,
    SocketQueue,
)

_UNKNOWN: Final = ProcessUsage(None, None, None)
_POOL_FIELDS: Final = ("health", "reason", "weight", "active", "failures", "ejections")


def describe(
    snapshot: Snapshot,
    version: str,
    pid: int,
    queues: Mapping[int, SocketQueue],
    usage: Mapping[int, ProcessUsage] = {},
) -> dict[str, Any]:
    """The whole of /status. Times are in seconds, memory in bytes; null means not known.

    `pid` is the supervisor's. `queues` are the accept queues of the listeners, by inode, and
    `usage` is by pid.
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
        "config_ok": snapshot.config_ok,
        "reload_refused": _refusal(snapshot.refusal),
        "config_applied_at": round(snapshot.config_applied_at, 3),
        "rollouts": [rollouts.describe(view) for view in snapshot.rollouts],
        "proxies": [
            {**_child(child, usage), "covered": child.slot in snapshot.covered}
            for child in snapshot.children
            if child.role == "proxy"
        ],
        "services": {
            name: {
                **facts,
                "split": _split(traffic, name),
                "dropped": snapshot.dropped.get(name, 0),
                "sockets": list(_sockets(snapshot, name, queues)),
                "workers": list(
                    _workers(snapshot, name, facts, traffic.pools.get(name, {}), usage)
                ),
            }
            for name, facts in snapshot.services.items()
        },
    }


def _refusal(refusal: ReloadRefusal | None) -> dict[str, Any] | None:
    return None if refusal is None else {"reason": refusal.reason, "at": round(refusal.at, 3)}


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
    snapshot: Snapshot,
    name: str,
    facts: Mapping[str, Any],
    pool: Mapping[int, WorkerRow],
    usage: Mapping[int, ProcessUsage],
) -> Iterator[dict[str, Any]]:
    children = [child for child in snapshot.children if child.service == name]
    for child in children:
        fields = _pool_fields(pool.get(child.slot))
        if (silent_s := snapshot.silent.get((name, child.slot))) is not None:
            fields["reason"] = f"has not answered for {silent_s:.0f} s"
        alive = child.pid is not None and silent_s is None
        by_slot = facts.get("ports", ())
        ports = list(by_slot[child.slot]) if child.slot < len(by_slot) else []
        yield {**_child(child, usage), "ports": ports, **fields, "alive": alive}
    if not children:
        for slot, address in enumerate(facts.get("upstreams", ())):
            yield {"slot": slot, "address": address, **_pool_fields(pool.get(slot))}


def _child(child: ChildView, usage: Mapping[int, ProcessUsage]) -> dict[str, Any]:
    return {
        "slot": child.slot,
        "address": child.address or None,
        "link": _link(child),
        "socket": child.socket.removeprefix("unix:") or None,
        "state": child.state,
        "since": round(child.since_s, 3),
        "pid": child.pid,
        "restarts": dict(child.restarts),
        "last_exit": child.last_exit or None,
        "last_exit_reason": child.last_exit_reason or None,
        "crash_loop": child.crash_loop,
        "next_start": _rounded(child.next_start_s),
        "answers": child.fresh,
        "processes": [
            _process(process, usage.get(process.pid, _UNKNOWN)) for process in child.processes
        ],
    }


def _process(process: ProcessView, usage: ProcessUsage) -> dict[str, Any]:
    reported = process.connections
    return {
        "pid": process.pid,
        "part": process.part,
        "state": process.state,
        "address": process.address or None,
        "link": _link(process),
        "age": round(process.age_s, 3),
        "memory": usage.memory,
        "fds": usage.fds,
        "connections": usage.connections if reported is None else reported,
        "health": process.member_state or None,
    }


def _link(one: ChildView | ProcessView) -> str | None:
    """How proxies reach it; None: not at an address of its own."""
    return "unix" if one.socket else "tcp" if one.address else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _pool_fields(row: Mapping[str, Any] | None) -> dict[str, Any]:
    return {field: None if row is None else row.get(field) for field in _POOL_FIELDS}
