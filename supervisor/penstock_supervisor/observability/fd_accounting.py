"""How many descriptors one client connection takes, in all processes together.

In this the schemes differ most. A connection takes three descriptors if a proxy forwards it. It
takes one if the client's socket is handed over, or accepted by the worker itself. Processes that
report their number of descriptors are trusted. For a program that reports nothing, the kernel is
asked for its accepted connections (`count_accepted`). No I/O of its own, no clock.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from penstock_proxy.net.address import parse_address
from penstock_supervisor.kernel.sock_diag import TcpEndpoint
from penstock_supervisor.observability.traffic import Traffic
from penstock_supervisor.observability.worker_series import as_dict, as_number
from penstock_supervisor.snapshot import ChildView, Snapshot

CountAccepted = Callable[[Collection[TcpEndpoint]], Mapping[TcpEndpoint, int] | None]
"""Open connections accepted at each address. None: the kernel does not tell."""

_ANY_HOST: Final = ("0.0.0.0", "::")


def per_connection(
    snapshot: Snapshot, traffic: Traffic, count_accepted: CountAccepted
) -> Iterator[tuple[str, float]]:
    """By service. Without services that have no client now, or whose numbers are not known."""
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
            fds = _fds_with_proxy(service, workers, traffic, count_accepted)
            clients = traffic.open_connections(service)
        else:
            fds, clients = _fds_and_clients_without_proxy(
                service, facts["listen"], workers, traffic, count_accepted
            )
        if fds is not None and clients:
            yield service, fds / clients


def place(address: str) -> TcpEndpoint | None:
    """The local end of TCP connections to this address. None for a path, or no address."""
    try:
        host, port, _ = parse_address(address)
    except ValueError:
        return None
    return TcpEndpoint("" if host in _ANY_HOST else host, port) if port else None


def _fds_with_proxy(
    service: str, workers: list[ChildView], traffic: Traffic, count_accepted: CountAccepted
) -> float | None:
    total = as_number(traffic.series.get(service, {}).get("penstock_connection_fds", {}).get(""))
    if total is None:
        return None
    unreported = set()
    for child in workers:
        if (fds := _reported_fds(child)) is not None:
            total += fds
        elif where := place(child.socket or child.address):
            unreported.add(where)
        else:
            return None
    counts = count_accepted(unreported) if unreported else {}
    return None if counts is None else total + sum(counts.values())


def _fds_and_clients_without_proxy(
    service: str,
    listen: str,
    workers: list[ChildView],
    traffic: Traffic,
    count_accepted: CountAccepted,
) -> tuple[float | None, float | None]:
    reported = [fds for child in workers if (fds := _reported_fds(child)) is not None]
    if len(reported) == len(workers):
        return sum(reported), traffic.open_connections(service)
    # All workers accept from one port, and the kernel does not tell which connection is whose.
    # So all connections of the port are counted.
    where = place(listen)
    counts = count_accepted({where}) if where else None
    fds = None if counts is None or where is None else counts[where]
    return fds, fds


def _reported_fds(child: ChildView) -> float | None:
    """The client descriptors that the worker reports. None if it reports nothing."""
    fds = as_dict(as_dict(child.stats.get("metrics")).get("fds"))
    return as_number(fds.get("client"))
