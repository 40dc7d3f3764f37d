"""From a bare descriptor to a connected protocol, at the least cost.

Owns that step for sockets that were accepted, connected or received, in a proxy and in a worker;
and the adoption of an inherited end of a socket pair. Must not know what is spoken.
"""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Final


class Stream:
    """A connected stream socket with only what uvloop asks for.

    A `socket.socket` looks up two enum members each time uvloop asks for its family and type (a
    tenth of what Python does for a relayed connection), asks the kernel for its own name when it
    is made, and stays in memory for the connection's life: 90 bytes without use.
    """

    __slots__ = ("_fd", "blocks", "family")

    type: Final = int(socket.SOCK_STREAM)

    def __init__(self, fd: int, family: int, *, blocks: bool = True) -> None:
        """`blocks`: the descriptor is in blocking mode, as accepted ones are."""
        self._fd = fd
        self.family = family
        self.blocks = blocks

    def fileno(self) -> int:
        return self._fd

    def detach(self) -> None:
        """Give up the descriptor: a transport has it now, and will close it."""
        self._fd = -1

    def close(self) -> None:
        """Close it, unless it was given up."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def inherited_end(variable: str, number: str, kind: socket.SocketKind) -> socket.socket:
    """Adopt the end of a Unix socket pair whose number is the value of `variable`.

    ValueError if it is no such socket. Afterwards it is close-on-exec, so no child inherits it.
    """
    try:
        sock = socket.socket(fileno=int(number))
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{variable}={number!r} is no socket: {error}") from None
    if (sock.family, sock.type) != (socket.AF_UNIX, kind):
        sock.detach()
        raise ValueError(f"{variable}={number!r} is no Unix socket of kind {kind.name}")
    os.set_inheritable(sock.fileno(), False)
    sock.setblocking(False)
    return sock


def adopt(loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, stream: Stream) -> None:
    """Give a connected stream to a protocol; `connection_made` follows in the next turn.

    Drives the coroutine `connect_accepted_socket` by hand. It awaits exactly one future of the
    loop's, so one callback can replace a task.
    """
    wrapping = loop.connect_accepted_socket(lambda: protocol, stream)  # type: ignore[arg-type]
    waiter = wrapping.send(None)
    stream.detach()
    assert waiter is not None
    waiter._asyncio_future_blocking = False

    def finish(_: object) -> None:
        # If the connection failed before it was made, the protocol is told.
        with suppress(StopIteration, OSError, asyncio.CancelledError):
            wrapping.send(None)

    waiter.add_done_callback(finish)
