"""The two interfaces of a connection: `Transport` and `Receiver`.

Owns no code. They are asyncio's `Transport` and `Protocol` without what is not used here.
`SocketTransport` and `TlsConnection` are transports; `client_connection`, `worker_connection` and
`duplex` are receivers. They do not derive from asyncio's classes: when the data path is compiled,
a class with a base that is not compiled stays slow.
"""

from socket import SocketType

from penstock_proxy.net.pipes import Pipe
from penstock_proxy.net.trait import trait


@trait
class Receiver:
    """Reads a connection. All methods are called by its transport."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Bytes have come; at least one."""
        raise NotImplementedError

    def eof_received(self) -> bool:
        """The peer sends no more. Return True to go on writing, False to close."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        """More than the high-water mark waits to be sent."""
        raise NotImplementedError

    def resume_writing(self) -> None:
        """Enough of it has been sent."""
        raise NotImplementedError

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is over; the descriptor is closed when this returns. Called once."""
        raise NotImplementedError

    def sink(self) -> "Transport | None":
        """Where all that is received goes, as it is, from now on. None: that is not so.

        Asked of the receiver of a bulk stream. From then on bytes may go there by themselves, and
        `bytes_spliced` is called in place of `data_received`.
        """
        return None

    def bytes_spliced(self, count: int) -> None:
        """So many bytes have come, at least one, and were written to `sink`."""
        raise NotImplementedError


@trait
class FirstReceiver(Receiver):
    """The first receiver of a connection: it is also told that the connection was made."""

    __slots__ = ()

    def connection_made(self, transport: "Transport") -> None:
        """Called once, before anything else."""
        raise NotImplementedError


class Transport:
    """One connection. Writing to one that is closing does nothing."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        raise NotImplementedError

    def lend_pipe(self) -> Pipe | None:
        """An empty pipe, for bytes that are to be written next: it has to come back by
        `write_pipe`, or goes back to where it came from (`Pipes.give`).

        None: there is none, something else has to be written first, or nothing can be.
        """
        return None

    def write_pipe(self, pipe: Pipe) -> None:
        """Write what is in this pipe, which was lent."""
        raise NotImplementedError

    def write_eof(self) -> None:
        """Shut down for writing when all is written; reading goes on."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it when all is written."""
        raise NotImplementedError

    def break_off(self) -> None:
        """Close it when all is written, and show the peer that more was to come.

        Only TLS can show that (no close_notify); elsewhere it is `close`.
        """
        self.close()

    def abort(self) -> None:
        """Close it now; what is unsent is lost."""
        raise NotImplementedError

    def is_closing(self) -> bool:
        raise NotImplementedError

    def pause_reading(self) -> None:
        raise NotImplementedError

    def resume_reading(self) -> None:
        raise NotImplementedError

    def is_reading(self) -> bool:
        raise NotImplementedError

    def is_quiet(self) -> bool:
        """Is it open, and has nothing come that was not read yet, nor its end?

        To be asked of one that is being read, before a request is written to it: what has come
        before cannot be the answer. Only connections to workers know it.
        """
        raise NotImplementedError

    def get_write_buffer_size(self) -> int:
        """Bytes that were written and are not in the kernel yet."""
        raise NotImplementedError

    def set_protocol(self, protocol: Receiver) -> None:
        """Change the receiver. The new one is not told that the connection was made."""
        raise NotImplementedError

    def borrow(self) -> SocketType | None:
        """Its socket, to set and read options; None: there is none.

        It must not be closed, nor used once the connection is lost.
        """
        raise NotImplementedError
