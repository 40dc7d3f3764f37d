"""Finds free ports for workers, which are likely to stay free.

Owns the search. A port that is found is not bound here. Its worker binds it a moment later, and
again after every restart; until then every program can take it. So the search avoids the ports
that the kernel uses for outgoing connections, and those that this run has already assigned. Before
each start of a worker its port is tried again (`is_free`). The assignment itself is kept elsewhere
(`rollout/slot_ports`).

A slot has two ports: the worker that replaces another one listens beside it, on the port that the
other one does not have. So the ports of a slot are known, and are the same two for ever. In a
range that is too small for that, the first slots have two, and the last ones only their own.
"""

import errno
import random
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from penstock_proxy.net.address import Address
from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError
from penstock_supervisor.kernel.listening_processes import describe_holder

WORKER_HOST: Final = "127.0.0.1"
PORTS_PER_SLOT: Final = 2
_EPHEMERAL_RANGE_FILE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")

SlotAddresses = tuple[Address, ...]
"""Where the workers of one slot listen: its own address, and the second one if it has one."""


def choose_addresses(
    services: Sequence[Service],
    taken: Collection[int],
    kept: Mapping[str, Sequence[SlotAddresses]] = MappingProxyType({}),
) -> dict[str, list[SlotAddresses]]:
    """Choose the addresses of every slot of every service that has ports. By service and slot.

    The ports in `taken` are not used. Some of them look free, because nothing listens there yet.
    A slot in `kept` keeps what it has, except for what is outside its service's range now. `kept`
    may have more slots than the service: what these had goes to others only if nothing else is
    free. StartError: a slot gets no port at all.
    """
    chosen: dict[str, list[SlotAddresses]] = {service.name: [] for service in services}
    taken = {*taken, *(one.port for slots in kept.values() for slot in slots for one in slot)}
    # Services with a configured range choose first; the others avoid these ports.
    for service in sorted(services, key=lambda one: one.worker_ports is None):
        if not service.has_ports:
            continue
        before = kept.get(service.name, ())
        ports = _kept_ports(service, before)
        unused = {one.port for slot in before[service.workers :] for one in slot}
        for at_most in range(1, PORTS_PER_SLOT + 1):
            lacking = [slot for slot in ports if len(slot) < at_most]
            found = _ports_for(service, len(lacking), taken, all_needed=False)
            if len(found) < len(lacking):
                others = taken - unused
                found = _ports_for(service, len(lacking), others, all_needed=at_most == 1)
                unused.difference_update(found)
            taken.update(found)
            for slot, port in zip(lacking, found, strict=False):
                slot.append(port)
        chosen[service.name] = [
            tuple(Address(WORKER_HOST, port) for port in slot) for slot in ports
        ]
    return chosen


def _kept_ports(service: Service, kept: Sequence[SlotAddresses]) -> list[list[int]]:
    """The ports that each slot of the service has already."""
    first, last = service.worker_ports or (1, 65_535)
    ports = [[one.port for one in slot if first <= one.port <= last] for slot in kept]
    lacking = service.workers - len(ports)
    return ports[: service.workers] + [[] for _ in range(lacking)]


def spare_address(service: Service, taken: Collection[int]) -> Address:
    """One more address for a worker of this service. StartError: no port is free."""
    (port,) = _ports_for(service, 1, taken)
    return Address(WORKER_HOST, port)


def _ports_for(
    service: Service, count: int, taken: Collection[int], *, all_needed: bool = True
) -> list[int]:
    key = f"service.{service.name}.worker_ports"
    return free_ports(
        count,
        service.worker_ports,
        taken,
        key=key,
        random_below=random.randrange,
        all_needed=all_needed,
    )


def free_ports(
    count: int,
    port_range: tuple[int, int] | None,
    taken: Collection[int],
    *,
    key: str,
    random_below: Callable[[int], int],
    all_needed: bool = True,
) -> list[int]:
    """Find `count` free ports, in the given range or among the safe ones.

    `random_below(n)` returns a number in [0, n). The search starts at a random port, so that two
    runs that start together do not try the same ports. StartError: there are too few, and all of
    them are needed.
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
    if len(ports) < count and all_needed:
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
