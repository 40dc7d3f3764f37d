"""The PROXY header that a connection to a worker begins with under `send_proxy`.

Owns: which addresses are in it. Our own health checks need one too: a worker that expects the
header refuses a connection without it. Must not know: when a connection is made (`connector`
writes the header before anything else), or the grammar (`proxy_protocol`).

The header describes a whole connection. So a connection that has one is never used for a
second request: the next one may be another client's, and would carry the wrong address.
"""

import socket
from typing import Any, Final

from penstock_worker.net.proxy_protocol import Endpoint, build, build_local
from penstock_worker.net.stream import Stream

_STREAM: Final = int(socket.SOCK_STREAM)


def client_header(version: int, stream: Stream, peer: Any, destination: Endpoint) -> bytes:
    """The header for a client at `peer`. `destination` None: the local address of `stream`."""
    if not isinstance(peer, tuple):
        return build(version)
    if destination is None:
        sock = socket.socket(stream.family, _STREAM, 0, fileno=stream.fileno())
        try:
            destination = _endpoint(sock.getsockname())
        finally:
            sock.detach()
    return build(version, _endpoint(peer), destination)


def local_header(version: int, sock: socket.socket) -> bytes:
    """The header for a connection of our own.

    Version 1 has no LOCAL, and some servers refuse UNKNOWN; §2.1 recommends to send the
    connection's own addresses.
    """
    if version == 1:
        return build(1, _endpoint(sock.getsockname()), _endpoint(sock.getpeername()))
    return build_local()


def _endpoint(name: Any) -> Endpoint:
    """Address and port of a socket's name; None for a unix socket."""
    return (name[0], name[1]) if isinstance(name, tuple) else None
