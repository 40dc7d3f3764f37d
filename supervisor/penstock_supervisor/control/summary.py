"""What a person wants to know of each process at a glance: one row, in words.

Read from what /status says, and shown by `penstock status` and the admin port's page. A worker
has two sides: what the supervisor says of its process, and what the proxy (or the worker checks)
say of its place in the rotation. The second is told only where it is not what one expects of
the first, and then with its reason. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))
_SERVING: Final = "up"
_ON_THEIR_WAY: Final = frozenset({"starting", "stopping", "backoff"})


class SummaryRow(NamedTuple):
    """One proxy, worker or upstream. Empty: there is nothing to say."""

    name: str
    state: str
    process: str
    address: str
    restarts: str
    reason: str
    served: int | None
    """Requests or connections so far."""
    active: int | None
    """Of them now."""
    health: str
    """`good`, `bad`, or `wait`: nothing is wrong, but it does not serve."""


def heading(found: Mapping[str, Any]) -> str:
    state = "stopping" if found["stopping"] else "ready" if found["ready"] else "not ready"
    return f"pid {found['pid']}, up {_duration(found['uptime'])}, {state}"


def proxies(found: Mapping[str, Any]) -> Iterator[SummaryRow]:
    for proxy in found["proxies"]:
        yield _row(f"proxy/{proxy['slot']}", proxy)


def workers(name: str, service: Mapping[str, Any]) -> Iterator[SummaryRow]:
    split = service.get("split") or {}
    served = split.get("by_slot") or {}
    for one in service["workers"]:
        yield _row(f"{name}/{one['slot']}", one, served.get(str(one["slot"])))


def _row(name: str, child: Mapping[str, Any], served: int | None = None) -> SummaryRow:
    # An upstream has no process of ours; a proxy is in no rotation.
    restarts = sum((child.get("restarts") or {}).values())
    pid = child.get("pid")
    words = tuple(_words(child))
    return SummaryRow(
        name=name,
        state=", ".join(words),
        process="" if pid is None else f"pid {pid}",
        address=child.get("address") or "",
        restarts=f"{restarts} restart{'s' * (restarts != 1)}" if restarts else "",
        reason="" if child.get("health") in (None, _SERVING) else child.get("reason") or "",
        served=served,
        active=child.get("active"),
        health=_health(words),
    )


def _words(child: Mapping[str, Any]) -> Iterator[str]:
    state, health = child.get("state"), child.get("health")
    yield (state or health or "unknown").replace("_", " ")
    if state == _SERVING and health not in (None, _SERVING):
        yield health
    # Proxies only: of a worker it means nothing, since most programs know no such question.
    if "covered" in child and state == _SERVING and not child.get("answers"):
        yield "does not answer"
    if child.get("covered"):
        yield "listeners taken over by the others"


def _health(words: tuple[str, ...]) -> str:
    if words == (_SERVING,):
        return "good"
    waits = words[0] in _ON_THEIR_WAY or words[1:] in (("draining",), ("checking",))
    return "wait" if waits or words[0] in ("unknown", "checking") else "bad"


def _duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
