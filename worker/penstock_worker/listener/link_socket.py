"""The unix socket by which the proxies of this machine reach a worker, beside its port.

Owns how it is bound, and what the program sees of a connection that comes over it. Only the user
of proxies and workers can connect to it: the supervisor has made its directory private, and the
socket has mode 0600. So who comes over it is a proxy of ours. Must not know where the path comes
from, nor what is spoken.

To the program such a connection looks like one of the proxy's to the worker's port: its peer is
this machine, and its own end the port. Programs, and their servers, trust the fields of a proxy
by that address (X-Forwarded-For).
"""

import asyncio
import os
import socket
from asyncio import Transport
from collections.abc import Mapping
from typing import Any, Final

from penstock_worker.net.named_transport import NamedTransport

_MODE: Final = 0o600
_LOCALHOST: Final = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0, 0, 0)}


def bind(path: str) -> socket.socket:
    """A socket that is bound there, and does not listen yet. OSError: it cannot be; EADDRINUSE if
    there is a file already, whose owner the supervisor has to know."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The file has the mode of the socket, but for the bits of the umask: never more than this.
        os.fchmod(sock.fileno(), _MODE)
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    return sock


def names_beside(port: socket.socket) -> Mapping[str, Any]:
    """What the sockets of the proxy's connections would be named if they came to this port."""
    return {"peername": _LOCALHOST[port.family], "sockname": port.getsockname()}


class NamingProtocol(asyncio.Protocol):
    """The first protocol of such a connection: gives its transport the names, and it away."""

    def __init__(self, protocol: asyncio.Protocol, names: Mapping[str, Any]) -> None:
        self._protocol = protocol
        self._names = names

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        named = NamedTransport(transport, self._names)
        named.set_protocol(self._protocol)
        self._protocol.connection_made(named)
