"""Opens connections to the subject, with as few system calls as there can be.

A load with a connection for each request opens tens of thousands of them a second, and what one
costs is taken from the subject. So a socket is non-blocking from the beginning, and Nagle's
algorithm is left on: a client sends one request and waits for its response, so nothing is ever
held back by it.

Must not know what a connection is used for.
"""

import errno
import socket
from typing import Final

from penstock_proxy.net.address import parse_address

_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_CONNECTIONS_PER_SOURCE: Final = 16384
"""Connections from one loopback address before the next one is used. The kernel has 28,000
ports for each address, and keeps those of closed connections for a while."""
_SOURCES: Final = 200
_IP_BIND_ADDRESS_NO_PORT: Final = 24
"""linux/in.h: the port is chosen at connect, so it has to be free for that remote end only."""


class Connector:
    """Of one subject. OSError: its host name is unknown."""

    def __init__(self, address: str) -> None:
        parsed = parse_address(address)
        self._uses_many_sources = False
        self._source: tuple[str, int] | None = None
        """Where connections come from. None: the kernel chooses."""
        self._opened = 0
        """Connections from there so far."""
        self._sources = 1
        self._address: object
        if parsed.path:
            self._family, self._address = socket.AF_UNIX, parsed.path
            return
        resolved = socket.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM)
        family, _, _, _, self._address = resolved[0]
        self._family = socket.AddressFamily(family)
        self._uses_many_sources = family == socket.AF_INET and str(resolved[0][4][0]).startswith(
            "127."
        )

    def connect(self) -> socket.SocketType:
        """Start a connection. OSError."""
        self._opened += 1
        if self._opened >= _CONNECTIONS_PER_SOURCE and self._uses_many_sources:
            self._use_next_source()
        # Not the class `socket`: its constructor is written in Python, and takes twice as long.
        sock = socket.SocketType(self._family, _STREAM)
        error = self._start(sock)
        if error == errno.EADDRNOTAVAIL and self._uses_many_sources:
            sock.close()
            self._use_next_source()
            sock = socket.SocketType(self._family, _STREAM)
            error = self._start(sock)
        if error not in _STARTED:
            sock.close()
            raise OSError(error, "not connected")
        return sock

    def _start(self, sock: socket.SocketType) -> int:
        """Return what connect(2) says, closing the socket if anything else fails."""
        try:
            if self._source is not None:
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind(self._source)
            return sock.connect_ex(self._address)  # type: ignore[arg-type]
        except BaseException:
            sock.close()
            raise

    def _use_next_source(self) -> None:
        self._opened = 0
        source = self._sources % _SOURCES
        self._source = (f"127.0.0.{source + 1}", 0) if source else None
        self._sources += 1


_STARTED: Final = (errno.EINPROGRESS, 0)
