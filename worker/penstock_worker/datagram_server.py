"""Serves datagrams: the program's own protocol on a UDP socket that is given.

Owns the endpoint. There are no connections here, so nothing has to be accepted, counted or
drained: what waits in a passed socket stays there for whoever reads it next. Only a socket
that is replaced has nobody after us, so what waits in it is read before it is closed.
"""

import asyncio
import os
import socket
from asyncio import DatagramProtocol, DatagramTransport
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_LARGEST: Final = 1 << 16
_MOST: Final = 1 << 12
"""Datagrams that are read of a socket that has to go; it is sent more meanwhile."""


class DatagramServer:
    def __init__(self, make: Callable[[], DatagramProtocol], sock: socket.socket) -> None:
        self._make = make
        self._sock = sock
        self._endpoint: tuple[DatagramTransport, DatagramProtocol] | None = None
        self._replacing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make the protocol and read from now on; errors of its making come out."""
        self._endpoint = await self._made(self._sock)

    def replace(self, sock: socket.socket) -> None:
        """Go on with this socket: the supervisor has given up the one before."""
        if self._endpoint is None or (self._replacing is not None and not self._replacing.done()):
            sock.close()
            return
        self._replacing = asyncio.get_running_loop().create_task(self._replace(sock))

    def protocol(self, probe: bool) -> asyncio.Protocol:
        raise NotImplementedError("datagrams come without connections")

    def begin_drain(self) -> None:
        """There are no connections to end."""

    async def shutdown(self) -> None:
        """Send what is buffered, and let the protocol hear of its end."""
        if self._replacing is not None:
            await asyncio.wait([self._replacing])
        if self._endpoint is not None:
            self._endpoint[0].close()
            # `connection_lost` is called in the loop's next turn.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def _replace(self, sock: socket.socket) -> None:
        assert self._endpoint is not None
        old, self._endpoint = self._endpoint, await self._made(sock)
        # At once: the kernel would send this worker two shares.
        _empty(*old)

    async def _made(self, sock: socket.socket) -> tuple[DatagramTransport, DatagramProtocol]:
        loop = asyncio.get_running_loop()
        return await loop.create_datagram_endpoint(self._make, sock=sock)


def _empty(transport: DatagramTransport, protocol: DatagramProtocol) -> None:
    """Read what waits, and close it."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        with suppress(OSError):
            for _ in range(_MOST):
                protocol.datagram_received(*sock.recvfrom(_LARGEST, socket.MSG_DONTWAIT))
        transport.close()
