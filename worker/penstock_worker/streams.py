"""Connected sockets on their way into a transport, at the least cost.

Owns the step from a bare descriptor to a protocol that is connected: what is opened by
accepting, connecting or receiving is adopted here, on the front's side and on a worker's;
and so is the end of a socket pair that our parent has left to us.
"""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Final


class Stream:
    """A connected stream socket, as little of it as uvloop asks for.

    A `socket.socket` would look up two enum members each time uvloop asks for its family
    and type (a tenth of what Python does for a relayed connection), ask the kernel for its
    own name when it is made, and stay for the connection's life as 90 bytes of nothing.
    """

    __slots__ = ("_fd", "blocks", "family")

    type: Final = int(socket.SOCK_STREAM)

    def __init__(self, fd: int, family: int, *, blocks: bool = True) -> None:
        """`blocks`: as what was accepted does, and what we opened does not."""
        self._fd = fd
        self.family = family
        self.blocks = blocks

    def fileno(self) -> int:
        return self._fd

    def given(self) -> None:
        """A transport has the descriptor now, and will close it."""
        self._fd = -1

    def close(self) -> None:
        """Close it, unless a transport has it."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def inherited_end(variable: str, number: str, kind: socket.SocketKind) -> socket.socket:
    """The end of a Unix socket pair that `variable` says we have under this number.

    ValueError if it is none of this kind. Afterwards no child of ours can find it: the
    descriptor is close-on-exec.
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

    Drives `connect_accepted_socket` by hand: it waits exactly once, for a future of the
    loop's, so one callback does what a task would.
    """
    wrapping = loop.connect_accepted_socket(lambda: protocol, stream)  # type: ignore[arg-type]
    waiter = wrapping.send(None)
    stream.given()
    assert waiter is not None
    waiter._asyncio_future_blocking = False

    def finish(_: object) -> None:
        # A connection that failed before it was made is told to the protocol.
        with suppress(StopIteration, OSError, asyncio.CancelledError):
            wrapping.send(None)

    waiter.add_done_callback(finish)
