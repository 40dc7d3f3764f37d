"""Resolves the host names of upstreams.

Names are looked up once, when a run starts, as in nginx. Proxies get numeric addresses only. So
no connection waits for a name server, and all proxies of a run use the same host.

A name server that does not answer takes half a minute for each name. Meanwhile a run has to hear
TERM, so a thread waits. It is a daemon, because nothing can interrupt it.
"""

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from penstock_proxy.net.address import Address, parse_address
from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError


def resolve_in_thread(services: Sequence[Service]) -> "asyncio.Future[dict[str, list[Address]]]":
    """As `resolve`, without blocking. It may be abandoned."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[dict[str, list[Address]]] = loop.create_future()

    def settle(result: dict[str, list[Address]] | StartError) -> None:
        if future.cancelled():
            return
        if isinstance(result, StartError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def wait() -> None:
        result: dict[str, list[Address]] | StartError
        try:
            result = resolve(services)
        except StartError as error:
            result = error
        # The run, and its loop, may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=wait, name="resolver", daemon=True).start()
    return future


def resolve(services: Sequence[Service]) -> dict[str, list[Address]]:
    """The resolved upstreams of each service that has any. StartError: an unknown name."""
    return {
        service.name: [
            _resolve_one(service.name, upstream.address) for upstream in service.upstreams
        ]
        for service in services
        if service.upstreams
    }


def _resolve_one(service: str, text: str) -> Address:
    address = parse_address(text)
    if address.path:
        return address
    try:
        resolved = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        raise StartError(f"service.{service}.upstreams: {text}: unknown host") from None
    # If a name has IPv4 and IPv6 addresses, use IPv4, where most local servers listen.
    _, _, _, _, sockaddr = min(resolved, key=lambda one: one[0] != socket.AF_INET)
    return address._replace(host=str(sockaddr[0]))
