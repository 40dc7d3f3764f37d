"""Whose connection it is, and whether what it says of others is believed.

Owns how a peer is written and the judgement `trusted_proxies`: addresses and networks, and the
word "unix" for whoever may connect to our unix sockets. Must not know what is believed of
them. No I/O, no clock.
"""

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from penstock_worker.contract import ACCEPT_PROXY

UNIX: Final = "unix"


def peer_address(peer: Any) -> str:
    """The address of `accept`'s peer; IPv4 in IPv6 as IPv4; empty for a unix socket."""
    if not isinstance(peer, tuple):
        return ""
    address: str = peer[0]
    return address.removeprefix("::ffff:") if "." in address else address


class Trusted:
    """Some peers. What is asked is text as of `peer_address`."""

    def __init__(self, texts: Iterable[str]) -> None:
        named = tuple(texts)
        self._unix = UNIX in named
        self._networks = tuple(ip_network(text) for text in named if text != UNIX)

    def __contains__(self, address: str) -> bool:
        if not address:
            return self._unix
        if not self._networks:
            return False
        found = ip_address(address.partition("%")[0])
        return any(found.version == net.version and found in net for net in self._networks)


class Terms(NamedTuple):
    """On what terms a worker reads PROXY headers."""

    seconds: float
    """For a header to come."""
    trusted: tuple[str, ...]


def written(terms: Terms) -> str:
    """As in the environment."""
    return json.dumps([terms.seconds, list(terms.trusted)])


def told(environ: Mapping[str, str]) -> Terms | None:
    """Do connections begin with a header? ValueError: it is not said as we would."""
    text = environ.get(ACCEPT_PROXY)
    if text is None:
        return None
    try:
        seconds, trusted = json.loads(text)
        return Terms(float(seconds), tuple(map(str, trusted)))
    except (ValueError, TypeError):
        raise ValueError(f"{ACCEPT_PROXY}={text!r} says nothing") from None
