"""Ports for workers: which ones nobody has, and nobody is likely to take meanwhile.

Owns the search. A port that is found is not bound: its worker binds it, a moment later and
after every restart, and until then it looks free to everybody. So it is looked for where the
kernel does not take ports for outgoing connections, and away from what this run has given out.
Who has which port is not known here (`resources`).
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

WORKER_HOST: Final = "127.0.0.1"
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def choose_addresses(
    services: Sequence[Service], taken: Collection[int]
) -> dict[str, list[Address]]:
    """Give every slot of every service the address that it keeps as long as nobody moves it.

    The ports in `taken` are nobody's: until somebody listens, they look free to a probe.
    """
    ports: dict[str, list[int]] = {service.name: [] for service in services}
    taken = set(taken)
    # Those that are bound to a range choose first; the others go around them.
    for service in sorted(services, key=lambda one: one.worker_ports is None):
        if not service.has_ports:
            continue
        found = _ports_for(service, service.workers, taken)
        taken.update(found)
        ports[service.name] = found
    return {name: [Address(WORKER_HOST, port) for port in found] for name, found in ports.items()}


def spare_address(service: Service, taken: Collection[int]) -> Address:
    """One more address for a worker of this service; StartError if there is none."""
    (port,) = _ports_for(service, 1, taken)
    return Address(WORKER_HOST, port)


def _ports_for(service: Service, count: int, taken: Collection[int]) -> list[int]:
    key = f"service.{service.name}.worker_ports"
    return free_ports(count, service.worker_ports, taken, key=key, draw=random.randrange)


def free_ports(
    count: int,
    given: tuple[int, int] | None,
    taken: Collection[int],
    *,
    key: str,
    draw: Callable[[int], int],
) -> list[int]:
    """Find `count` ports that nobody has, in the given range or wherever it is safe.

    `draw(n)` gives a number in [0, n): the start is random, so that two runs that begin
    together do not try the same ports. StartError if a given range has too few.
    """
    found: list[int] = []
    candidates = range(given[0], given[1] + 1) if given else _safe_ports(count + len(taken))
    # A given range is filled from its start: that is what its owner expects to see.
    start = 0 if given else draw(len(candidates))
    for port in (*candidates[start:], *candidates[:start]):
        if len(found) == count:
            break
        if port not in taken and _is_free(port):
            found.append(port)
    if len(found) < count:
        where = f"{given[0]}-{given[1]}" if given else "the whole machine"
        raise StartError(f"{key}: {where} has {len(found)} free ports and {count} are needed")
    return found


def _safe_ports(needed: int) -> Sequence[int]:
    """Ports that the kernel never gives to an outgoing connection.

    While a worker restarts its port is nobody's, and the proxy's own connections to its
    neighbours could take it. Below 10000 live the well-known services, which may only be
    started later.
    """
    low, high = _ephemeral_range()
    for first in (10_000, 1024):
        safe = [port for port in range(first, 65_536) if not low <= port <= high]
        if len(safe) >= 4 * needed:
            return safe
    return range(10_000, 65_536)


def _ephemeral_range() -> tuple[int, int]:
    try:
        low, high = _EPHEMERAL.read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32_768, 60_999


def _is_free(port: int) -> bool:
    """Nobody has it on any address: a program may well ignore HOST and bind all of them."""
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
