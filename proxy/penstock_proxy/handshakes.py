"""Clients of one service that have connected and are not yet who they will be: TLS at its door.

Owns the contexts that handshakes begin with, how many may be unfinished at once, and what
became of them. Must not know: how a handshake goes (`tls_handshake`), what is done with
those that succeed (`arrivals`).

Strangers are bounded without shutting the door to everybody: beyond `limits.handshakes` the
oldest unfinished one makes room. Whoever wants to come in needs a few round trips; who holds
the place longest is who never will.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from penstock_proxy.tls import Contexts, Inbox
from penstock_proxy.tls_handshake import Handshake
from penstock_proxy.transport import adopt
from penstock_worker.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock_proxy.deadlines import Deadlines
    from penstock_proxy.service import ServiceFront
    from penstock_proxy.tls_connection import TlsConnection

_TEXT: Final = b"this port speaks TLS: ask for https://\n"
_PLAIN: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_TEXT), _TEXT)
)


class Handshakes:
    """Those of one service."""

    contexts: Contexts
    """Not there before the first set has come; nobody is accepted before."""
    ready = False
    """They are there."""

    def __init__(
        self,
        service: "ServiceFront",
        secured: "Callable[[Handshake, TlsConnection], None]",
    ) -> None:
        """`secured` is given each one that has become a connection."""
        self._service = service
        self._secured = secured
        self._pending: dict[Handshake, None] = {}
        """The oldest first."""
        self._limit = service.config.limits.handshakes
        self._inbox: Inbox | None = None
        self.plain_answer = _PLAIN if service.config.mode == "http" else b""
        """To who forgot the s of https."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._service.loop

    @property
    def deadlines(self) -> "Deadlines":
        return self._service.deadlines

    @property
    def pending(self) -> int:
        """How many are unfinished."""
        return len(self._pending)

    def begin(self, order: dict[str, Any]) -> None:
        """A new set of certificates follows."""
        self._inbox = Inbox(order)

    def add(self, order: dict[str, Any]) -> None:
        """One of the set; the last one makes it valid for whoever connects from now on."""
        if self._inbox is not None and (contexts := self._inbox.add(order)) is not None:
            self._inbox = None
            self.contexts = contexts
            self.ready = True

    def accepted(
        self, stream: Stream, peer: Any, preface: bytes, port: int, *, believed: bool
    ) -> None:
        """Somebody has connected, and was counted."""
        handshake = Handshake(self, peer, preface, port, believed=believed)
        self._pending[handshake] = None
        self.deadlines.arm_in(handshake, self._service.timeouts.handshake)
        if len(self._pending) > self._limit:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.displace()
        adopt(self._service.reactor, handshake, stream, self._service.config.limits.buffer)

    def done(self, handshake: Handshake, connection: "TlsConnection") -> None:
        """It has become a connection: the service has it now."""
        self._pending.pop(handshake, None)
        self.deadlines.disarm(handshake)
        self._service.counters.handshakes["resumed" if connection.is_resumed else "ok"] += 1
        self._secured(handshake, connection)

    def failed(self, handshake: Handshake, result: str) -> None:
        """It is gone, and never became one."""
        self._pending.pop(handshake, None)
        self._service.counters.handshakes[result] += 1
        service = self._service
        service.client_lost(service.counted_as(handshake.peer, believed=handshake.believed))
