"""How many descriptors one client connection takes, in all processes together.

It is what the schemes differ in most: three where a proxy forwards, one where the client's
socket itself is passed, or accepted by the worker. Those that say how many they have are
believed; a program that says nothing is counted from outside, by `accepted`, which is asked
of the kernel. No I/O of its own, no clock.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from penstock_proxy.net.address import parse_address
from penstock_supervisor.kernel.sock_diag import TcpEndpoint
from penstock_supervisor.observability.traffic import Traffic
from penstock_supervisor.observability.worker_series import number, table
from penstock_supervisor.snapshot import ChildView, Snapshot

Accepted = Callable[[Collection[TcpEndpoint]], Mapping[TcpEndpoint, int] | None]

_ANYWHERE: Final = ("0.0.0.0", "::")


def per_connection(
    snapshot: Snapshot, traffic: Traffic, accepted: Accepted
) -> Iterator[tuple[str, float]]:
    """By service; without those that have no client now, or of which too little is known."""
    for service, facts in snapshot.services.items():
        workers = [
            child
            for child in snapshot.children
            if child.service == service and child.role == "worker" and child.pid is not None
        ]
        proxied = facts["scheme"] in ("ports", "handoff")
        if facts["mode"] == "udp":
            continue
        if proxied:
            held = _behind_a_proxy(service, workers, traffic, accepted)
            clients = traffic.open(service)
        else:
            held, clients = _accepting(service, facts["listen"], workers, traffic, accepted)
        if held is not None and clients:
            yield service, held / clients


def place(address: str) -> TcpEndpoint | None:
    """Where TCP connections end; None for a path, or no address."""
    try:
        host, port, _ = parse_address(address)
    except ValueError:
        return None
    return TcpEndpoint("" if host in _ANYWHERE else host, port) if port else None


def _behind_a_proxy(
    service: str, workers: list[ChildView], traffic: Traffic, accepted: Accepted
) -> float | None:
    held = number(traffic.series.get(service, {}).get("penstock_connection_fds", {}).get(""))
    if held is None:
        return None
    silent = set()
    for child in workers:
        if (told := _told(child)) is not None:
            held += told
        elif where := place(child.address):
            silent.add(where)
        else:
            return None
    counts = accepted(silent) if silent else {}
    return None if counts is None else held + sum(counts.values())


def _accepting(
    service: str, listen: str, workers: list[ChildView], traffic: Traffic, accepted: Accepted
) -> tuple[float | None, float | None]:
    told = [_told(child) for child in workers]
    known = [one for one in told if one is not None]
    if len(known) == len(told):
        return sum(known), traffic.open(service)
    # On one port nobody can tell from outside whose they are: all of them, then.
    where = place(listen)
    counts = accepted({where}) if where else None
    held = None if counts is None or where is None else counts[where]
    return held, held


def _told(child: ChildView) -> float | None:
    fds = table(table(child.stats.get("metrics")).get("fds"))
    return number(fds.get("client"))
