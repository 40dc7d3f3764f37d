"""Why a run is not ready, and what is wrong with it although it is: the words of two probes.

/readyz asks whether every service can be served, and /healthz whether the supervisor lives. What
is wrong with workers is never a reason to kill a supervisor that restarts them, so /healthz is
about its loop alone, and has the rest in its body. From one `Snapshot`. No I/O, no clock.
"""

from collections.abc import Iterator
from typing import Final

from penstock_supervisor.observability.traffic import Traffic, WorkerRow
from penstock_supervisor.snapshot import ChildView, Snapshot

_READY: Final = "ready"
_CRASH_LOOP: Final = "crash_loop"
_MAX_NAMED: Final = 4
"""Workers of a service that are named; with more the line would be too long for a log."""


def services_without_worker(snapshot: Snapshot) -> tuple[str, ...]:
    """The services that have no worker in rotation, as far as has been reported."""
    traffic = Traffic(snapshot)
    return tuple(name for name in snapshot.services if not traffic.serves(name))


def not_ready(snapshot: Snapshot) -> str:
    """Why the run is not ready, in one line; "not ready" if the reason is not known."""
    reasons = [*_proxies_away(snapshot), *_services(snapshot)]
    return f"not ready: {'; '.join(reasons)}" if reasons else "not ready"


def crash_loops(snapshot: Snapshot) -> Iterator[str]:
    """A line for each child that is in a crash loop."""
    for child in snapshot.children:
        if child.crash_loop:
            why = f": {child.last_exit_reason}" if child.last_exit_reason else ""
            if child.state == _CRASH_LOOP:
                yield f"{_name(child)}: {_process(child)}{why}"
            else:
                yield f"{_name(child)}: {_process(child)} after a crash loop{why}"


def _proxies_away(snapshot: Snapshot) -> Iterator[str]:
    proxies = [child for child in snapshot.children if child.role == "proxy"]
    if proxies and not any(
        proxy.state == _READY and proxy.slot not in snapshot.covered for proxy in proxies
    ):
        # One that is ready is covered because it does not answer.
        silent = {proxy.slot for proxy in proxies if proxy.state == _READY}
        words = [
            f"{_name(one)} {'does not answer' if one.slot in silent else _process(one)}"
            for one in proxies
        ]
        yield f"no proxy accepts{_listed(words) if silent else _states(proxies, {})}"


def _services(snapshot: Snapshot) -> Iterator[str]:
    pools = Traffic(snapshot).pools
    for name in services_without_worker(snapshot):
        rows = pools.get(name, {})
        workers = [child for child in snapshot.children if child.service == name]
        if workers:
            why = _states(workers, rows)
        else:
            why = _listed([f"{row['address']} {_member(row)}" for row in rows.values()])
        yield f"no worker in rotation for {name}{why}"


def _states(children: list[ChildView], rows: dict[int, WorkerRow]) -> str:
    if all(child.state == _CRASH_LOOP for child in children):
        # The same for all: when the first of them is tried again is what matters.
        planned = [child for child in children if child.next_start_s is not None]
        soonest = min(planned, key=lambda child: child.next_start_s or 0.0, default=children[0])
        return f": {_process(soonest)}"
    return _listed(
        [
            f"{_name(child)} {_out(child, rows) if child.state == _READY else _process(child)}"
            for child in children
        ]
    )


def _out(child: ChildView, rows: dict[int, WorkerRow]) -> str:
    """Why a process that is ready serves nobody. A proxy has no member state: it is stuck."""
    if child.role == "proxy":
        return "does not answer"
    return _member(rows.get(child.slot)) or _process(child)


def _listed(words: list[str]) -> str:
    more = len(words) - _MAX_NAMED
    shown = ", ".join(words[:_MAX_NAMED])
    return f": {shown}, and {more} more" if more > 0 else f": {shown}" if words else ""


def _name(child: ChildView) -> str:
    return f"{child.service or child.role}/{child.slot}"


def _process(child: ChildView) -> str:
    state = child.state.replace("_", " ")
    if child.next_start_s is not None:
        return f"{state}, next start in {child.next_start_s:.0f} s"
    return f"{state}, not started again by itself" if child.state == _CRASH_LOOP else state


def _member(row: WorkerRow | None) -> str:
    if row is None:
        return ""
    reason = row.get("reason")
    return f"{row['health']} ({reason})" if reason else str(row["health"])
