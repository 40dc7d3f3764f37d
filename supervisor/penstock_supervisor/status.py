"""One `Observation` as what /status and /readyz say: plain values, ready for JSON.

Owns the names of the fields that people's scripts read. What the front (where there is none,
the watch) says about a worker, its standing and what it has to do, is put beside what the
supervisor says about the same slot; the two disagree for a moment whenever something happens,
and both are shown. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from penstock_supervisor.observation import ChildView, Observation, Queue
from penstock_supervisor.traffic import Row, Traffic

_TOLD_BY_POOL: Final = ("standing", "reason", "weight", "active", "failures", "ejections")


def describe(
    observation: Observation, version: str, pid: int, queues: Mapping[int, Queue]
) -> dict[str, Any]:
    """The whole of /status. Times in seconds; null is what nobody knows.

    `pid` is the supervisor's; `queues` are those of the listening sockets, by inode.
    """
    traffic = Traffic(observation)
    return {
        "version": version,
        "pid": pid,
        "pids": {
            "supervisor": [pid],
            "front": _pids(observation, "front"),
            "worker": _pids(observation, "worker"),
        },
        "uptime": round(observation.uptime_s, 3),
        "ready": observation.ready,
        "stopping": observation.stopping,
        "fronts": [
            {**_process(child), "covered": child.slot in observation.away}
            for child in observation.children
            if child.role == "front"
        ],
        "services": {
            name: {
                **facts,
                "split": _split(traffic, name),
                "dropped": observation.dropped.get(name, 0),
                "sockets": list(_sockets(observation, name, queues)),
                "workers": list(_workers(observation, name, facts, traffic.pools.get(name, {}))),
            }
            for name, facts in observation.services.items()
        },
    }


def lacking(observation: Observation) -> tuple[str, ...]:
    """The services that have no worker in rotation, as far as anybody has said."""
    pools = Traffic(observation).pools
    return tuple(
        name
        for name in observation.services
        if not any(row["standing"] == "up" for row in pools.get(name, {}).values())
    )


def _pids(observation: Observation, role: str) -> list[int]:
    return [
        child.pid for child in observation.children if child.role == role and child.pid is not None
    ]


def _split(traffic: Traffic, name: str) -> dict[str, Any]:
    split = traffic.split(name)
    by_slot = {str(slot): count for slot, count in split.by_slot.items()}
    ratio = None if split.jain is None else round(split.jain, 4)
    return {"of": split.of, "by_slot": by_slot, "jain_ratio": ratio}


def _sockets(
    observation: Observation, name: str, queues: Mapping[int, Queue]
) -> Iterator[dict[str, Any]]:
    for view in observation.sockets:
        if view.service == name:
            queue = queues.get(view.inode, Queue(None, None, None))
            yield {"slot": view.slot, "kind": view.kind, **queue._asdict()}


def _workers(
    observation: Observation, name: str, facts: Mapping[str, Any], pool: Mapping[int, Row]
) -> Iterator[dict[str, Any]]:
    children = [child for child in observation.children if child.service == name]
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
