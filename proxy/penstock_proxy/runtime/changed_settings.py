"""Connections that are open are told of other settings of their service, one in each step.

Owns: which of the settings a connection has kept, so that it has to be told. All others are read
from the service at each use. Who comes while others are still told has the new settings already.
Must not know: what a connection does about it (`http.client_control`).
"""

from collections.abc import Iterator

from penstock_proxy.config import ServiceConfig
from penstock_proxy.http.context import HttpContext
from penstock_proxy.http.open_clients import ClientHandle
from penstock_proxy.tcp.duplex import ClientHalf


def telling(service: HttpContext, before: ServiceConfig) -> Iterator[None]:
    """Tell those that are open of what they have kept of the configuration before."""
    config, timeouts = service.config, before.timeouts
    speaks_otherwise = _speech(config) != _speech(before)
    rewrites_otherwise = rewriting(config) != rewriting(before)

    def tell(client: ClientHandle) -> None:
        if speaks_otherwise:
            client.retire()
        elif rewrites_otherwise:
            client.use_rewriter(service.rewriter)
        client.timeouts_changed(timeouts)

    if speaks_otherwise or rewrites_otherwise or config.timeouts != timeouts:
        yield from service.clients.each(tell)
        for owner, relay in tuple(service.relays.items()):
            if isinstance(relay, ClientHalf) and service.relays.get(owner) is relay:
                relay.timeouts = service.timeouts
            yield


def rewriting(config: ServiceConfig) -> tuple[object, ...]:
    """What requests are rewritten by."""
    headers = config.limits.headers
    return config.trusted_proxies, config.forwarding, config.tls, config.verifies, headers


def _speech(config: ServiceConfig) -> tuple[object, ...]:
    """What a connection was accepted with, and cannot change."""
    return config.tls, config.verifies, config.send_proxy
