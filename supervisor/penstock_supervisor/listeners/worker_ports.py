"""Finds free ports for workers, which are likely to stay free.

Owns the search. A port that is found is not bound here. Its worker binds it a moment later, and
again after every restart; until then every program can take it. So the search avoids the ports
that the kernel uses for outgoing connections, and those that this run has already assigned. Before
each start of a worker its port is tried again (`is_free`). The assignment itself is kept elsewhere
(`resources`).
"""

import errno
import random
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from penstock_proxy.net.address import Address
from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.kernel.listening_processes import describe_holder

WORKER_HOST: Final = "127.0.0.1"
_EPHEMERAL_RANGE_FILE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def choose_addresses(
    services: Sequence[Service], taken: Collection[int]
) -> dict[str, list[Address]]:
    """Choose an address for every slot of every service that has ports. By service and slot.

    The ports in `taken` are not used. Some of them look free, because nothing listens there yet.
    """
    addresses: dict[str, list[Address]] = {service.name: [] for service in services}
    taken = set(taken)
    # Services with a configured range choose first; the others avoid these ports.
    for service in sorted(services, key=lambda one: one.worker_ports is None):
        if not service.has_ports:
            continue
        ports = _ports_for(service, service.workers, taken)
        taken.update(ports)
        addresses[service.name] = [Address(WORKER_HOST, port) for port in ports]
    return addresses


def spare_address(service: Service, taken: Collection[int]) -> Address:
    """One more address for a worker of this service. StartError: no port is free."""
    (port,) = _ports_for(service, 1, taken)
    return Address(WORKER_HOST, port)


def _ports_for(service: Service, count: int, taken: Collection[int]) -> list[int]:
    key = f"service.{service.name}.worker_ports"
    return free_ports(count, service.worker_ports, taken, key=key, random_below=random.randrange)


def free_ports(
    count: int,
    port_range: tuple[int, int] | None,
    taken: Collection[int],
    *,
    key: str,
    random_below: Callable[[int], int],
) -> list[int]:
    """Find `count` free ports, in the given range or among the safe ones.

    `random_below(n)` returns a number in [0, n). The search starts at a random port, so that two
    runs that start together do not try the same ports. StartError: a range has too few.
    """
    ports: list[int] = []
    candidates = (
        range(port_range[0], port_range[1] + 1) if port_range else _safe_ports(count + len(taken))
    )
    # A given range is used from its first port on, as its author expects.
    start = 0 if port_range else random_below(len(candidates))
    for port in (*candidates[start:], *candidates[:start]):
        if len(ports) == count:
            break
        if port not in taken and is_free(port):
            ports.append(port)
    if len(ports) < count:
        where = f"{port_range[0]}-{port_range[1]}" if port_range else "the whole machine"
        raise StartError(
            f"{key}: {where} has {len(ports)} free ports and {count} are needed"
            f"{_first_holder(candidates, taken)}"
        )
    return ports


def _first_holder(candidates: Sequence[int], taken: Collection[int]) -> str:
    for port in candidates:
        if port not in taken and not is_free(port):
            return f"; {describe_holder(port)} has port {port}"
    return ""


def _safe_ports(needed: int) -> Sequence[int]:
    """Ports that the kernel never uses for outgoing connections.

    While a worker restarts, nothing is bound to its port, and one of the proxy's connections to
    other workers could get it. Ports below 10000 are avoided because many services have a
    well-known one there, and may be started later.
    """
    low, high = _ephemeral_range()
    for first in (10_000, 1024):
        safe = [port for port in range(first, 65_536) if not low <= port <= high]
        if len(safe) >= 4 * needed:
            return safe
    return range(10_000, 65_536)


def _ephemeral_range() -> tuple[int, int]:
    try:
        low, high = _EPHEMERAL_RANGE_FILE.read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32_768, 60_999


def is_free(port: int) -> bool:
    """Is it free on all addresses? A program may ignore HOST and bind to all of them."""
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            probe = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            # No IPv6 here.
            continue
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    return False
    return True
