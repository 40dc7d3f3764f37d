"""Warnings about a configuration that is valid but risky.

`penstock check` prints them, and a run logs them when it starts. No I/O, no clock: the user id
is an argument.
"""

from collections.abc import Iterator
from ipaddress import ip_address

from penstock_proxy.net.address import parse_address
from penstock_supervisor.config.model import Config, Service


def check(config: Config, uid: int) -> Iterator[str]:
    """One line for each warning, for a run that `uid` starts."""
    if uid == 0 and config.user is None:
        yield (
            "user: proxies and workers run as root, because no user is named; "
            'name a user who is not root: user = "www-data", or --user www-data'
        )
    if config.admin and not _is_local(config.admin):
        yield (
            f"admin: other machines can reach {config.admin}, which tells everybody "
            "what runs here; 127.0.0.1 would be for this one only"
        )
    for service in config.services:
        if in_place := _slots_with_one_port(service):
            first, last = service.worker_ports or (0, 0)
            yield (
                f"service.{service.name}.worker_ports: {first}-{last} has fewer than two ports for "
                f"each worker: {in_place} of {service.workers} workers are replaced in place, so "
                "that each of them is away until its successor is ready"
            )


def _slots_with_one_port(service: Service) -> int:
    """How many workers have no second port, on which a successor could listen beside them."""
    if not service.has_ports or service.worker_ports is None:
        return 0
    first, last = service.worker_ports
    return max(0, min(service.workers, 2 * service.workers - (last - first + 1)))


def _is_local(text: str) -> bool:
    host, _, path = parse_address(text)
    if path or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # A name: the machine decides which host it is.
        return False
