"""Where the clients of one service come in: its own listeners, and those it covers for.

Owns the acceptors of one service in one front. Another front that is away has a share of the
clients too, which the kernel deals to its listener; as long as it is away this one accepts
from there as well. All of them ask the same question before they accept, and deliver to the
same place.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

from penstock_proxy.acceptor import Acceptor
from penstock_proxy.admission import Admission
from penstock_worker.streams import Stream


class Gates:
    """`fds` are the numbers of the service's own listeners, which are adopted."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fds: tuple[int, ...],
        admission: Admission,
        has_room: Callable[[], bool],
        deliver: Callable[[Stream, Any], None],
    ) -> None:
        self._loop = loop
        self._admission = admission
        self._has_room = has_room
        self._deliver = deliver
        self._own = [self._acceptor(socket.socket(fileno=fd)) for fd in fds]
        self._covered: dict[int, Acceptor] = {}
        """By number of the front that is away."""
        self._draining = False

    def start(self) -> None:
        """The listeners listen: take what comes."""
        for acceptor in self._all():
            acceptor.start()

    def resume(self) -> None:
        """There may be room again."""
        for acceptor in self._all():
            acceptor.resume()

    def drain(self) -> None:
        """Take what waits, and nothing after it."""
        self._draining = True
        for acceptor in self._all():
            acceptor.drain()

    def cover(self, front: int, listener: socket.socket) -> None:
        """That front is away: accept from its listener too."""
        self.uncover(front)
        if self._draining:
            listener.close()
            return
        acceptor = self._covered[front] = self._acceptor(listener)
        self._admission.listeners += 1
        acceptor.start()

    def uncover(self, front: int) -> None:
        """That front is back, and takes what waits at its listener."""
        if (acceptor := self._covered.pop(front, None)) is not None:
            acceptor.close()
            self._admission.listeners -= 1

    def _all(self) -> Iterator[Acceptor]:
        yield from self._own
        yield from self._covered.values()

    def _acceptor(self, listener: socket.socket) -> Acceptor:
        return Acceptor(self._loop, listener, self._has_room, self._deliver)


def port_of(fds: tuple[int, ...]) -> int:
    """Where clients connect, by one of these listeners; 0 for a unix socket, and for none."""
    if not fds:
        return 0
    sock = socket.socket(fileno=fds[0])
    try:
        name = sock.getsockname()
    finally:
        sock.detach()
    return int(name[1]) if isinstance(name, tuple) else 0
