"""What a connection's bytes and whoever reads them may expect of each other.

Owns no code: two interfaces. They are asyncio's `Transport` and `Protocol`, less what nobody
here asks for. `SocketTransport` and `TlsConnection` are the one; `client_connection`,
`worker_connection` and `duplex` are the other. Not asyncio's own, because where the data path is
compiled a class with a foreign base stays a slow one.
"""

import socket
from typing import Protocol


class Receiver(Protocol):
    """Whoever the bytes of a connection are for. All are called by its transport."""

    def data_received(self, data: bytes) -> None:
        """Some bytes have come; never none."""

    def eof_received(self) -> bool:
        """The other side will say no more. True: go on writing; False: close."""

    def pause_writing(self) -> None:
        """More waits to be taken by the other side than should."""

    def resume_writing(self) -> None:
        """It has taken enough of it."""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is over; the descriptor is closed when this returns. Called once."""


class Adopter(Receiver, Protocol):
    """Whoever gets a connection when it is made."""

    def connection_made(self, transport: "Transport") -> None:
        """Called once, before anything else."""


class Transport:
    """Somebody's connection. Writing to one that is closing does nothing."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        raise NotImplementedError

    def write_eof(self) -> None:
        """Say that nothing follows, when all is written; go on reading."""
        raise NotImplementedError

    def close(self) -> None:
        """End it when all is written."""
        raise NotImplementedError

    def break_off(self) -> None:
        """The same, but who can be told so sees that there was more to come."""
        self.close()

    def abort(self) -> None:
        """End it now."""
        raise NotImplementedError

    def is_closing(self) -> bool:
        raise NotImplementedError

    def pause_reading(self) -> None:
        raise NotImplementedError

    def resume_reading(self) -> None:
        raise NotImplementedError

    def is_reading(self) -> bool:
        raise NotImplementedError

    def get_write_buffer_size(self) -> int:
        """Bytes that were written and are not in the kernel."""
        raise NotImplementedError

    def set_protocol(self, protocol: Receiver) -> None:
        """Another one reads from now on; it is not told that the connection was made."""
        raise NotImplementedError

    def borrow(self) -> socket.socket | None:
        """Its socket, for options and questions; None: there is none.

        It must not be closed, nor used once the connection is lost.
        """
        raise NotImplementedError
