"""The addresses of peers, and which of them are trusted proxies.

Owns how a peer's address is written, and the key `trusted_proxies`: addresses, networks, and the
word "unix" for every peer on a unix socket. Must not know what a trusted proxy may claim. No
I/O, no clock.
"""

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from penstock_worker.contract import ACCEPT_PROXY

UNIX: Final = "unix"


def peer_address(peer: Any) -> str:
    """`peer` (from `accept`) as text. IPv4-mapped IPv6 becomes IPv4; a unix socket ""."""
    if not isinstance(peer, tuple):
        return ""
    address: str = peer[0]
    return address.removeprefix("::ffff:") if "." in address else address


class TrustedProxies:
    """A set of peers. `in` takes an address as `peer_address` returns it."""

    def __init__(self, texts: Iterable[str]) -> None:
        named = tuple(texts)
        self._has_unix = UNIX in named
        self._networks = tuple(ip_network(text) for text in named if text != UNIX)

    def __contains__(self, address: str) -> bool:
        if not address:
            return self._has_unix
        if not self._networks:
            return False
        found = ip_address(address.partition("%")[0])
        return any(found.version == net.version and found in net for net in self._networks)


class AcceptProxy(NamedTuple):
    """How a worker reads PROXY headers."""

    seconds: float
    """For a header to be complete."""
    trusted: tuple[str, ...]


def format_accept_proxy(accept_proxy: AcceptProxy) -> str:
    """The value of the variable."""
    return json.dumps([accept_proxy.seconds, list(accept_proxy.trusted)])


def parse_accept_proxy(environ: Mapping[str, str]) -> AcceptProxy | None:
    """From the environment; None: connections have no header. ValueError: a malformed value."""
    text = environ.get(ACCEPT_PROXY)
    if text is None:
        return None
    try:
        seconds, trusted = json.loads(text)
        return AcceptProxy(float(seconds), tuple(map(str, trusted)))
    except (ValueError, TypeError):
        raise ValueError(f"{ACCEPT_PROXY}={text!r} says nothing") from None
