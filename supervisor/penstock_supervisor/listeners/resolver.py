"""Resolves the host names of upstreams.

Names are looked up once, when a run starts, as in nginx. Proxies get numeric addresses only. So
no connection waits for a name server, and all proxies of a run use the same host.

A name server that does not answer takes half a minute for each name. Meanwhile a run has to hear
TERM, so a thread waits (`blocking`). A start waits as long as that takes. A reload has others
behind it: its names are looked up side by side, and in a given time.
"""

import asyncio
import socket
from asyncio import Future
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from penstock_proxy.net.address import Address, parse_address
from penstock_supervisor import blocking
from penstock_supervisor.config.model import Service
from penstock_supervisor.errors import StartError

_AT_ONCE: Final = 16
"""Names that are looked up at the same time. Each has a thread, and these are counted."""
_UNKNOWN: Final = "unknown host"

_Found = dict[str, Address | None]
"""What each name stands for. None: nobody knows it."""


def resolve_in_thread(services: Sequence[Service]) -> Future[dict[str, list[Address]]]:
    """As `resolve`, without blocking. It may be abandoned. StartError: also if too many earlier
    ones still wait."""
    try:
        return blocking.start("resolver", resolve, services)
    except blocking.BlockedError as error:
        raise StartError(f"upstreams: no name can be looked up: {error}") from None


async def resolve_within(seconds: float, services: Sequence[Service]) -> dict[str, list[Address]]:
    """As `resolve`, without blocking. StartError: unknown names, or some that are not answered in
    this time; all of them are named."""
    left = deque({upstream.address for service in services for upstream in service.upstreams})
    found: _Found = {}
    try:
        threads = [
            blocking.start("resolver", _look_up, left, found)
            for _ in range(min(_AT_ONCE, len(left)))
        ]
    except blocking.BlockedError as error:
        left.clear()
        raise StartError(f"upstreams: no name can be looked up: {error}") from None
    try:
        if threads:
            await asyncio.wait(threads, timeout=seconds)
    finally:
        left.clear()
        for thread in threads:
            thread.cancel()
    for thread in threads:
        if not thread.cancelled():
            thread.result()
    if problems := tuple(_problems(services, found, seconds)):
        raise StartError("; ".join(problems))
    return {
        service.name: [_known(found, upstream.address) for upstream in service.upstreams]
        for service in services
        if service.upstreams
    }


def _look_up(left: deque[str], found: _Found) -> None:
    """One thread of several: look up what is left, until nothing is."""
    while True:
        try:
            text = left.popleft()
        except IndexError:
            return
        try:
            found[text] = _address_of(text)
        except OSError:
            found[text] = None


def _known(found: _Found, text: str) -> Address:
    address = found[text]
    assert address is not None
    return address


def _problems(services: Sequence[Service], found: _Found, seconds: float) -> Iterator[str]:
    late = f"no name server has answered within {seconds:g} s"
    for service in services:
        texts = dict.fromkeys(upstream.address for upstream in service.upstreams)
        unknown = [text for text in texts if text in found and found[text] is None]
        missing = [text for text in texts if text not in found]
        for names, why in ((unknown, _UNKNOWN), (missing, late)):
            if names:
                yield f"service.{service.name}.upstreams: {', '.join(names)}: {why}"


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
    try:
        return _address_of(text)
    except OSError:
        raise StartError(f"service.{service}.upstreams: {text}: {_UNKNOWN}") from None


def _address_of(text: str) -> Address:
    """OSError: nobody knows this name."""
    address = parse_address(text)
    if address.path:
        return address
    resolved = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    # If a name has IPv4 and IPv6 addresses, use IPv4, where most local servers listen.
    _, _, _, _, sockaddr = min(resolved, key=lambda one: one[0] != socket.AF_INET)
    return address._replace(host=str(sockaddr[0]))
