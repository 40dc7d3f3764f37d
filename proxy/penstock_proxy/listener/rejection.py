"""Rejects a client before anything was read from it.

Owns: the answer, and the rejected clients that have not closed yet. They need a lingering close: a
plain close would make the kernel reset the connection, and the answer would be lost. Must not
know: why a client is rejected (`overload`).
"""

import socket
from typing import Final

from penstock_proxy.errors import Fault
from penstock_proxy.http1.error_response import error_response
from penstock_proxy.net.timer_wheel import NEVER, TICK_S, HasDeadline
from penstock_proxy.service.context import ServiceContext
from penstock_worker.net import lingering_close
from penstock_worker.net.stream import Stream

MAX_LINGERING: Final = 16
"""Rejected clients that have not closed yet, at most: beyond, the one that was rejected first is
closed. Their descriptors are of the reserve."""
_RETRY_AFTER_S: Final = 1


def answer(fault: Fault) -> bytes:
    """A complete response, sent before a request was read."""
    return error_response(fault, _RETRY_AFTER_S, "close")[0]


class Rejections:
    """The rejected clients of one service."""

    def __init__(self, service: ServiceContext, *, speaks_http: bool) -> None:
        """`speaks_http`: clients get an answer; otherwise their connections are only closed."""
        self._service = service
        self.speaks_http = speaks_http
        """It can be changed at any time."""
        self._lingering: dict[_Lingering, None] = {}
        """As an ordered set."""

    def reject(self, stream: Stream, fault: Fault) -> None:
        """Send the answer, and leave the client a moment to read it."""
        fd = stream.fileno()
        stream.detach()
        sock = lingering_close.begin(fd, stream.family, self.answer(fault))
        if lingering_close.is_complete(sock):
            sock.close()
            return
        if len(self._lingering) >= MAX_LINGERING:
            next(iter(self._lingering)).end()
        _Lingering(self._service, sock, self._lingering)

    def answer(self, fault: Fault) -> bytes:
        """The answer to a client; empty for a client that would not understand an answer."""
        return answer(fault) if self.speaks_http else b""

    def close(self) -> None:
        """Close the connections of all rejected clients now."""
        for lingering in tuple(self._lingering):
            lingering.end()


class _Lingering(HasDeadline):
    """One rejected client, until it has closed."""

    __slots__ = ("_ends_at", "_registry", "_service", "_sock")

    def __init__(
        self, service: ServiceContext, sock: socket.socket, lingering: "dict[_Lingering, None]"
    ) -> None:
        self._service = service
        self._sock = sock
        self._registry = lingering
        self.deadline = NEVER
        self.bucket = NEVER
        lingering[self] = None
        service.loop.add_reader(sock, self._readable)
        self._ends_at = service.timers.now + lingering_close.TOTAL_S
        service.timers.arm_in(self, lingering_close.IDLE_S)

    def _readable(self) -> None:
        if lingering_close.is_complete(self._sock):
            self.end()
            return
        timers = self._service.timers
        timers.arm(self, min(timers.now + TICK_S + lingering_close.IDLE_S, self._ends_at))

    def expired(self, now: float) -> None:
        self.end()

    def end(self) -> None:
        self._service.loop.remove_reader(self._sock)
        self._service.timers.disarm(self)
        self._registry.pop(self, None)
        self._sock.close()
