"""What a connection to a worker begins with under `send_proxy`: the PROXY header.

Owns whose addresses are in it, for clients and for our own checks, which a worker that wants
the header would refuse without one. Must not know when a connection is made (`connector`, which
writes it before anything else can), nor the grammar (`proxy_protocol`).

The header speaks for a whole connection, so a connection that has one is never used for a
second request: the next may be somebody else's, and would be told of under a wrong name.
"""

import socket
from typing import Any, Final

from penstock_worker.net.proxy_protocol import Endpoint, build, build_local
from penstock_worker.net.stream import Stream

_STREAM: Final = int(socket.SOCK_STREAM)


def client_header(version: int, stream: Stream, peer: Any, destination: Endpoint) -> bytes:
    """For a client at `peer`; None as destination: what it is connected to here."""
    if not isinstance(peer, tuple):
        return build(version)
    if destination is None:
        sock = socket.socket(stream.family, _STREAM, 0, fileno=stream.fileno())
        try:
            destination = _place(sock.getsockname())
        finally:
            sock.detach()
    return build(version, _place(peer), destination)


def local_header(version: int, sock: socket.socket) -> bytes:
    """For a connection of our own. Version 1 has no word for that, and servers that refuse
    UNKNOWN; what is recommended (§2.1) is to say the connection's own addresses."""
    if version == 1:
        return build(1, _place(sock.getsockname()), _place(sock.getpeername()))
    return build_local()


def _place(name: Any) -> Endpoint:
    """The address and port of a socket's name; None for a unix socket's."""
    return (name[0], name[1]) if isinstance(name, tuple) else None
