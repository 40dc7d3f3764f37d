"""One row of words for each process, for people: from /status to `penstock status` and the page.

A worker has two states: that of its process, from the supervisor, and its member state, from the
proxy or the worker checks. The row shows the second one only if it is not what the first one
lets expect, and then with its reason. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))
_UP: Final = "up"
_TRANSIENT: Final = frozenset({"starting", "stopping", "backoff"})
"""States of a process that will soon be another one."""


class SummaryRow(NamedTuple):
    """One proxy, worker or upstream. Texts are empty where there is nothing to show."""

    name: str
    state: str
    process: str
    address: str
    restarts: str
    reason: str
    served: int | None
    """Requests or connections so far."""
    active: int | None
    """Requests or connections in progress."""
    health: str
    """`good`, `bad`, or `wait`: nothing is wrong, but it does not serve."""


def heading(status: Mapping[str, Any]) -> str:
    state = "stopping" if status["stopping"] else "ready" if status["ready"] else "not ready"
    return f"pid {status['pid']}, up {_duration(status['uptime'])}, {state}"


def proxies(status: Mapping[str, Any]) -> Iterator[SummaryRow]:
    for proxy in status["proxies"]:
        # Without another proxy nobody takes over anything.
        covered = proxy["covered"] and len(status["proxies"]) > 1
        yield _row(f"proxy/{proxy['slot']}", {**proxy, "covered": covered})


def workers(name: str, service: Mapping[str, Any]) -> Iterator[SummaryRow]:
    split = service.get("split") or {}
    served = split.get("by_slot") or {}
    for worker in service["workers"]:
        slot = worker["slot"]
        yield _row(f"{name}/{slot}", worker, served.get(str(slot)))


def _row(name: str, child: Mapping[str, Any], served: int | None = None) -> SummaryRow:
    # An upstream has no process of ours, and a proxy has no member state.
    restarts = sum((child.get("restarts") or {}).values())
    pid = child.get("pid")
    states = tuple(_states(child))
    return SummaryRow(
        name=name,
        state=", ".join(states),
        process="" if pid is None else f"pid {pid}",
        address=child.get("address") or "",
        restarts=f"{restarts} restart{'s' * (restarts != 1)}" if restarts else "",
        reason="" if child.get("health") in (None, _UP) else child.get("reason") or "",
        served=served,
        active=child.get("active"),
        health=_health(states),
    )


def _states(child: Mapping[str, Any]) -> Iterator[str]:
    state, member_state = child.get("state"), child.get("health")
    yield (state or member_state or "unknown").replace("_", " ")
    if state == _UP and member_state not in (None, _UP):
        yield member_state
    # For proxies only: most workers' programs do not answer STATS, and are well nevertheless.
    if "covered" in child and state == _UP and not child.get("answers"):
        yield "does not answer"
    if child.get("covered"):
        yield "listeners taken over by the others"


def _health(states: tuple[str, ...]) -> str:
    if states == (_UP,):
        return "good"
    waits = states[0] in _TRANSIENT or states[1:] in (("draining",), ("checking",))
    return "wait" if waits or states[0] in ("unknown", "checking") else "bad"


def _duration(seconds: float) -> str:
    """`seconds` in the largest unit of which there are at least two."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
