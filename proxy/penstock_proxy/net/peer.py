"""Who is at the far end of a client's connection.

Owns: the client's address, which a PROXY header may have changed, and how a service treats such
a header. Must not know: how a header is read, or what becomes of the connection.
"""

from typing import Any, Literal, NamedTuple

from penstock_worker.net.proxy_protocol import Endpoint, Header

HeaderHandling = Literal["consume", "peek", "ignore"]
"""What is done with a PROXY header. "consume": it is read off the connection. "peek": it is parsed
and stays there, because the worker reads it again. "ignore": it is not parsed, because nothing in
this process needs the address."""


class Peer(NamedTuple):
    """The far end of a client's connection."""

    address: Any
    """As returned by `accept`, or the client's own address if a PROXY header has named it."""
    destination: Endpoint = None
    """What the client connected to, if a PROXY header has named it."""
    may_be_trusted: bool = True
    """May X-Forwarded-For and the like be trusted if `address` is one of `trusted_proxies`? Not if
    a proxy passed on a client that it could not name: `address` is then the proxy's, the words are
    the client's."""


def peer_from_header(header: Header, address: Any) -> Peer:
    """The peer of a connection that came from `address` with this header."""
    if isinstance(header.source, tuple):
        return Peer(header.source, header.destination)
    # A header without an address, or with a unix socket's, names nobody.
    return Peer(address, None, header.local)
