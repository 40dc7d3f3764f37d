"""Finds the addresses behind the names of servers that somebody else runs.

Names are looked up once, when a run begins, as nginx does: a proxy knows numbers only, so
nothing on its way waits for a name server, and every proxy of a run means the same host.
"""

import socket
from collections.abc import Sequence

from penstock_proxy.net.address import Address, parse_address
from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError


def resolve(services: Sequence[Service]) -> dict[str, list[Address]]:
    """The upstreams of each service that has any, by number. StartError: an unknown name."""
    return {
        service.name: [_number(service.name, upstream.address) for upstream in service.upstreams]
        for service in services
        if service.upstreams
    }


def _number(service: str, text: str) -> Address:
    address = parse_address(text)
    if address.path:
        return address
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        raise StartError(f"service.{service}.upstreams: {text}: unknown host") from None
    # A name with both is taken on IPv4, where most local servers listen.
    _, _, _, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    return address._replace(host=str(where[0]))
