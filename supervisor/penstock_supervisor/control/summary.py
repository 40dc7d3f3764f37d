"""Rows of words for people: from /status to `penstock status` and the page.

A slot has a row, with its current process if there is one, and each other process of the slot has
a row after it: a successor, also when it is in the rotation beside the current one, and those that
drain, with the connections that they still have.

A worker has two states: that of its process, from the supervisor, and its member state, from the
proxy or the worker checks. The row shows the second one only if it is not what the first one
lets expect, and then with its reason. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))
_UP: Final = "up"
_READY: Final = "ready"
_TRANSIENT: Final = frozenset({"starting", "stopping", "draining", "exited"})
"""States of a process that will soon be another one."""
_KIB: Final = 1 << 10


class SummaryRow(NamedTuple):
    """A slot, one more process of it, or an upstream. Texts are empty where there is nothing to
    show."""

    name: str
    state: str
    process: str
    age: str
    memory: str
    fds: str
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
        yield from _rows(f"proxy/{proxy['slot']}", {**proxy, "covered": covered})


def workers(name: str, service: Mapping[str, Any]) -> Iterator[SummaryRow]:
    split = service.get("split") or {}
    served = split.get("by_slot") or {}
    for worker in service["workers"]:
        slot = worker["slot"]
        yield from _rows(f"{name}/{slot}", worker, served.get(str(slot)))


def _rows(name: str, child: Mapping[str, Any], served: int | None = None) -> Iterator[SummaryRow]:
    processes = child.get("processes") or ()
    (current, *_) = [*(one for one in processes if one["part"] == "current"), {}]
    # An upstream has no process of ours, and a proxy has no member state.
    states = tuple(_states(child))
    yield SummaryRow(
        name=name,
        state=", ".join(states),
        process=_pid(child),
        **_usage(current),
        address=_address(child),
        restarts=_restarts(child.get("restarts") or {}),
        reason="; ".join(_reasons(child)),
        served=served,
        active=child.get("active"),
        health=_health(states),
    )
    for process in processes:
        if process is not current:
            yield _further_row(name, process)


def _further_row(name: str, process: Mapping[str, Any]) -> SummaryRow:
    connections = process["connections"]
    is_successor = process["part"] == "successor"
    if is_successor and process.get("health") == _UP:
        doing = "in the rotation, replaces the one above"
    else:
        doing = "replaces the one above" if is_successor else _finishing(connections)
    return SummaryRow(
        name=name,
        state=", ".join(_states({"state": process["state"], "health": process.get("health")})),
        process=_pid(process),
        **_usage(process),
        address=_address(process),
        restarts="",
        reason=doing,
        served=None,
        active=None,
        health="wait",
    )


def _address(one: Mapping[str, Any]) -> str:
    """Its port, and whether the proxies use its socket instead."""
    address = one.get("address") or ""
    return f"{address} (unix)" if one.get("link") == "unix" else address


def _finishing(connections: int | None) -> str:
    """What one does that leaves."""
    if connections == 0:
        return "has nothing left to finish, and ends"
    has = "" if connections is None else f": {connections} connection{'s' * (connections != 1)}"
    return f"finishes what it has{has}"


def _pid(process: Mapping[str, Any]) -> str:
    return "" if process.get("pid") is None else f"pid {process['pid']}"


def _usage(process: Mapping[str, Any]) -> dict[str, str]:
    age, memory, fds = (process.get(key) for key in ("age", "memory", "fds"))
    return {
        "age": "" if age is None else _duration(age),
        # One that is just ending has none left.
        "memory": "" if not memory else f"{memory / _KIB**2:.0f} MiB",
        "fds": "" if fds is None else f"{fds} fds",
    }


def _restarts(by_reason: Mapping[str, int]) -> str:
    total = sum(by_reason.values())
    if not total:
        return ""
    counts = {reason: count for reason, count in by_reason.items() if count}
    # "exit 5" would read as a status, and a count that is the total says nothing new.
    reasons = ", ".join(
        reason if len(counts) == 1 else f"{count} {reason}" for reason, count in counts.items()
    )
    return f"{total} restart{'s' * (total != 1)} ({reasons})"


def _reasons(child: Mapping[str, Any]) -> Iterator[str]:
    if (next_start := child.get("next_start")) is not None:
        yield f"next start in {_duration(next_start)}"
    elif child.get("state") == "crash_loop":
        yield "not started again by itself"
    elif child.get("state") in (_READY, None) and child.get("health") not in (None, _UP):
        # While there is no process, there is no need to say that it is not in the rotation.
        yield child.get("reason") or ""
    if last := child.get("last_exit_reason") or child.get("last_exit"):
        yield f"the last one: {last}"


def _states(child: Mapping[str, Any]) -> Iterator[str]:
    state, member_state = child.get("state"), child.get("health")
    yield (state or member_state or "unknown").replace("_", " ")
    if state == _READY and member_state not in (None, _UP):
        yield member_state
    if child.get("crash_loop") and state != "crash_loop":
        yield "after a crash loop"
    # For proxies only: most workers' programs do not answer STATS, and are well nevertheless.
    if "covered" in child and state == _READY and not child.get("answers"):
        yield "does not answer"
    if child.get("covered"):
        yield "listeners taken over by the others"


def _health(states: tuple[str, ...]) -> str:
    if states in ((_READY,), (_UP,)):
        return "good"
    waits = states[0] in _TRANSIENT or states[1:] == ("draining",)
    return "wait" if waits or states[0] == "unknown" else "bad"


def _duration(seconds: float) -> str:
    """`seconds` in the largest unit of which there are at least two."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
