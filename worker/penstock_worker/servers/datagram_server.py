"""Serves datagrams: runs the program's own protocol on a UDP socket.

Owns the endpoint. There are no connections, so nothing has to be accepted, counted or drained.
When the worker stops, datagrams that wait in the socket stay there for the next worker. A
socket that is replaced has no next reader, so it is read empty before it is closed.
"""

import asyncio
import os
import socket
from asyncio import DatagramProtocol, DatagramTransport
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_MAX_DATAGRAM: Final = 1 << 16
_MAX_DRAINED: Final = 1 << 12
"""Datagrams read from a socket that is closed. A bound, because more may arrive meanwhile."""


class DatagramServer:
    def __init__(self, make_protocol: Callable[[], DatagramProtocol], sock: socket.socket) -> None:
        self._make_protocol = make_protocol
        self._sock = sock
        self._endpoint: tuple[DatagramTransport, DatagramProtocol] | None = None
        self._replacing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make the protocol and read from now on. Errors of its factory are passed on."""
        self._endpoint = await self._open_endpoint(self._sock)

    def replace(self, sock: socket.socket) -> None:
        """Continue with this socket: the supervisor has closed the previous one."""
        if self._endpoint is None or (self._replacing is not None and not self._replacing.done()):
            sock.close()
            return
        self._replacing = asyncio.get_running_loop().create_task(self._replace(sock))

    def protocol(self, probe: bool) -> asyncio.Protocol:
        raise NotImplementedError("datagrams come without connections")

    def is_idle(self, protocol: asyncio.Protocol) -> bool:
        raise NotImplementedError("datagrams come without connections")

    async def farewell(self) -> None:
        """There are no clients that would stay."""

    def begin_drain(self) -> None:
        """There are no connections to end."""

    async def finish(self) -> None:
        """A datagram is answered when it is read, so nothing is in flight."""

    def cut(self) -> int:
        return 0

    async def clean_up(self) -> None:
        """Send what is buffered, and let `connection_lost` be called."""
        if self._replacing is not None:
            await asyncio.wait([self._replacing])
        if self._endpoint is not None:
            self._endpoint[0].close()
            # `connection_lost` is called in the loop's next turn.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def _replace(self, sock: socket.socket) -> None:
        assert self._endpoint is not None
        old, self._endpoint = self._endpoint, await self._open_endpoint(sock)
        # At once: with two sockets open, this worker would get twice its share.
        _drain_and_close(*old)

    async def _open_endpoint(
        self, sock: socket.socket
    ) -> tuple[DatagramTransport, DatagramProtocol]:
        loop = asyncio.get_running_loop()
        return await loop.create_datagram_endpoint(self._make_protocol, sock=sock)


def _drain_and_close(transport: DatagramTransport, protocol: DatagramProtocol) -> None:
    """Read what waits, and close it."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        with suppress(OSError):
            for _ in range(_MAX_DRAINED):
                protocol.datagram_received(*sock.recvfrom(_MAX_DATAGRAM, socket.MSG_DONTWAIT))
        transport.close()
