"""Serves datagrams: runs the program's own protocol on a UDP socket.

Owns the endpoint. There are no connections, so nothing has to be accepted, counted or drained.
When the worker stops, datagrams that wait in the socket stay there for the next worker. A
socket that is replaced has no next reader, so it is read empty before it is closed. A worker that
is paused has no endpoint, and keeps the socket for the next one.
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
    """`accepting`: False if it reads nothing before `accept`."""

    def __init__(
        self,
        make_protocol: Callable[[], DatagramProtocol],
        sock: socket.socket,
        *,
        accepting: bool = True,
    ) -> None:
        self._make_protocol = make_protocol
        self._sock: socket.socket | None = sock
        """What is to be read; None: the endpoint reads it."""
        self._accepting = accepting
        self._first: DatagramProtocol | None = None
        """The program's protocol, until the first endpoint has it."""
        self._endpoint: tuple[DatagramTransport, DatagramProtocol] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._started = False

    async def start(self) -> None:
        """Make the protocol and read from now on. Errors of its factory are passed on."""
        self._first = self._make_protocol()
        await self._settle()
        self._started = True
        self._settle_soon()

    def replace(self, sock: socket.socket) -> None:
        """Continue with this socket: the supervisor has closed the previous one."""
        if not self._started or (self._endpoint is not None and self._sock is not None):
            sock.close()
            return
        if self._sock is not None:
            self._sock.close()
        self._sock = sock
        self._settle_soon()

    def accept(self) -> None:
        """Read from now on, with another protocol if it was read before."""
        self._accepting = True
        self._settle_soon()

    def pause(self) -> None:
        """Read nothing until `accept`. The protocol's connection is lost, as at a replacement."""
        self._accepting = False
        if self._settling is None or self._settling.done():
            self._stop_reading()

    def descriptors(self) -> list[int]:
        """Of its sockets, that of the endpoint included."""
        endpoint = [] if self._endpoint is None else [_number(self._endpoint[0])]
        return endpoint if self._sock is None else [*endpoint, self._sock.fileno()]

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
        self._started = False
        if self._settling is not None:
            await asyncio.wait([self._settling])
        if self._sock is not None:
            self._sock.close()
        if self._endpoint is not None:
            self._endpoint[0].close()
            # `connection_lost` is called in the loop's next turn.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _settle_soon(self) -> None:
        if self._started and (self._settling is None or self._settling.done()):
            self._settling = asyncio.get_running_loop().create_task(self._settle())

    async def _settle(self) -> None:
        """Read, or do not read, as was asked last."""
        while True:
            if self._accepting and self._sock is not None:
                old, sock, self._sock = self._endpoint, self._sock, None
                self._endpoint = await self._open_endpoint(sock)
                if old is not None:
                    # At once: with two sockets open, this worker would get twice its share.
                    _drain_and_close(*old)
            else:
                if not self._accepting:
                    self._stop_reading()
                return

    def _stop_reading(self) -> None:
        if self._endpoint is not None:
            if self._sock is None:
                self._sock = _copy(self._endpoint[0])
            self._endpoint[0].close()
            self._endpoint = None

    async def _open_endpoint(
        self, sock: socket.socket
    ) -> tuple[DatagramTransport, DatagramProtocol]:
        first, self._first = self._first, None
        loop = asyncio.get_running_loop()
        return await loop.create_datagram_endpoint(
            self._make_protocol if first is None else lambda: first, sock=sock
        )


def _copy(transport: DatagramTransport) -> socket.socket:
    """Its socket, for the time after its end."""
    return socket.socket(fileno=os.dup(_number(transport)))


def _number(transport: DatagramTransport) -> int:
    number: int = transport.get_extra_info("socket").fileno()
    return number


def _drain_and_close(transport: DatagramTransport, protocol: DatagramProtocol) -> None:
    """Read what waits, and close it."""
    with _copy(transport) as sock:
        with suppress(OSError):
            for _ in range(_MAX_DRAINED):
                protocol.datagram_received(*sock.recvfrom(_MAX_DATAGRAM, socket.MSG_DONTWAIT))
        transport.close()
