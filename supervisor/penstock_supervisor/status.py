"""One `Observation` as what /status and /readyz say: plain values, ready for JSON.

Owns the names of the fields that people's scripts read. What the front says about a
worker (its standing, what it has to do) is put beside what the supervisor says about the
same slot; the two disagree for a moment whenever something happens, and both are shown.
No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from penstock_supervisor.observation import ChildView, Observation

_TOLD_BY_FRONT: Final = ("standing", "reason", "weight", "active", "failures", "ejections")


def describe(observation: Observation, version: str, pid: int) -> dict[str, Any]:
    """The whole of /status. Times in seconds; null is what nobody knows."""
    return {
        "version": version,
        "pid": pid,
        "uptime": round(observation.uptime_s, 3),
        "ready": observation.ready,
        "stopping": observation.stopping,
        "fronts": [_process(child) for child in observation.children if child.role == "front"],
        "services": {
            name: {**facts, "workers": list(_workers(observation, name, facts))}
            for name, facts in observation.services.items()
        },
    }


def lacking(observation: Observation) -> tuple[str, ...]:
    """The services that have no worker in rotation, as far as a front has said."""
    return tuple(
        name
        for name in observation.services
        if not any(row["standing"] == "up" for row in _pool(observation, name).values())
    )


def _workers(
    observation: Observation, name: str, facts: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    pool = _pool(observation, name)
    children = [child for child in observation.children if child.service == name]
    for child in children:
        yield {**_process(child), **_as_the_front_sees(pool.get(child.slot))}
    if not children:
        for slot, address in enumerate(facts.get("upstreams", ())):
            yield {"slot": slot, "address": address, **_as_the_front_sees(pool.get(slot))}


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


def _as_the_front_sees(row: Mapping[str, Any] | None) -> dict[str, Any]:
    return {field: None if row is None else row.get(field) for field in _TOLD_BY_FRONT}


def _pool(observation: Observation, service: str) -> dict[int, Mapping[str, Any]]:
    """By slot. With several fronts the first that says anything speaks for all."""
    for child in observation.children:
        if child.role == "front" and (rows := child.stats.get("pools", {}).get(service)):
            return {row["slot"]: row for row in rows}
    return {}
