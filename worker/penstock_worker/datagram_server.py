"""Serves datagrams: the program's own protocol on a UDP socket that is given.

Owns the one endpoint. There are no connections here, so nothing has to be accepted, counted
or drained: what waits in a passed socket stays there for whoever reads it next.
"""

import asyncio
import socket
from collections.abc import Callable


class DatagramServer:
    def __init__(self, make: Callable[[], asyncio.DatagramProtocol], sock: socket.socket) -> None:
        self._make = make
        self._sock = sock
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        """Make the protocol and read from now on; errors of its making come out."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(self._make, sock=self._sock)

    def protocol(self, probe: bool) -> asyncio.Protocol:
        raise NotImplementedError("datagrams come without connections")

    async def finish(self) -> None:
        """Send what is buffered, and let the protocol hear of its end."""
        if self._transport is not None:
            self._transport.close()
            # `connection_lost` is called in the loop's next turn.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
