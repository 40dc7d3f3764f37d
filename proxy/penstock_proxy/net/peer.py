"""Who is at the far end of a client's connection.

Owns: the answer, which a PROXY header may have changed, and what a service wants to know of such
a header. Must not know: how a header is read, or what becomes of the connection.
"""

from typing import Any, Literal, NamedTuple

from penstock_worker.net.proxy_protocol import Endpoint, Header

HeaderHandling = Literal["take", "look", "no"]
"""What is done with a PROXY header: taken off the connection; looked at, because whoever gets the
connection reads it; or not even that, because nobody here needs to know the address."""


class Peer(NamedTuple):
    """Whose connection it is."""

    address: Any
    """As `accept` says it: the true one, if a proxy has said who that is."""
    destination: Endpoint = None
    """What the client connected to, if a proxy has said it."""
    may_be_trusted: bool = True
    """May what it says of others be trusted, if it is one of `trusted_proxies`? Not what a
    proxy passes on for somebody whom it cannot name."""


def peer_from_header(header: Header, address: Any) -> Peer:
    """Whose connection it is that came from `address` with this header."""
    if isinstance(header.source, tuple):
        return Peer(header.source, header.destination)
    # A unix socket at the far end, like nothing at all, is no address to say.
    return Peer(address, None, header.local)
