"""Limits on idle connections and request heads that uvicorn lacks.

Owns how long a connection may be without a request, and, with no proxy in front, how many bytes a
request head may have. uvicorn's own timeout starts after a response and stops at the first byte
of the next head, and its parser httptools collects header fields without a limit. Connections are
checked once a second, in place of uvicorn's timers: it sets one after each response and cancels it
at the next request, which is a twentieth of what a small request costs.
"""

from asyncio import AbstractEventLoop
from collections.abc import Iterable
from typing import Any, Final

from penstock_worker.net.lingering_close import LingeringClients

MAX_HEAD: Final = 64 << 10
"""The limit of h11, uvicorn's other parser."""
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class IdleConnections:
    """The connections of one worker that wait for a request."""

    def __init__(self, max_idle_s: float) -> None:
        self._max_idle_s = max_idle_s
        self._idle_since: dict[Any, tuple[Any, float]] = {}
        """By connection: its last request, and when it was first seen to wait for another."""

    def tick(self, connections: Iterable[Any], now: float) -> None:
        """Close the connections that have waited too long."""
        waiting = {
            connection: connection.cycle for connection in connections if awaits_head(connection)
        }
        before, self._idle_since = self._idle_since, {}
        for connection, cycle in waiting.items():
            last, since = before.get(connection, (cycle, now))
            if last is not cycle:
                since = now
            if now - since > self._max_idle_s:
                connection.transport.close()
            else:
                self._idle_since[connection] = (cycle, since)


class LoopWithoutTimers:
    """What uvicorn's connections use of the event loop, but for the time-out of kept connections:
    they set no other timer."""

    __slots__ = ("create_task",)

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.create_task = loop.create_task

    def call_later(self, delay: float, callback: Any, *args: Any) -> None:
        """No timer, and so nothing to cancel."""


def limit_heads(protocol_class: Any) -> Any:
    """uvicorn's protocol, with a limit on the bytes that come while no request is in hand."""
    feed = protocol_class.data_received

    class Limited(protocol_class):  # type: ignore[misc]
        head_bytes = 0

        def data_received(self, data: bytes) -> None:
            feed(self, data)
            cycle = self.cycle
            # As `awaits_head`, without its calls.
            if cycle is not None and (cycle.more_body or not cycle.response_complete):
                if self.head_bytes:
                    self.head_bytes = 0
                return
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    return Limited


def linger(protocol_class: Any, clients: LingeringClients) -> Any:
    """uvicorn's protocol, whose clients may finish what they send. uvicorn resets those that it
    closes: what it refuses, and requests whose answer says `Connection: close`."""

    class Lingering(protocol_class):  # type: ignore[misc]
        def connection_lost(self, exc: Exception | None) -> None:
            # Asked only where there may be more: most requests have no body, or it has come.
            if exc is None and (self.cycle is None or self.cycle.more_body):
                clients.take_over(self.transport, expected=self.cycle is not None)
            super().connection_lost(exc)

    return Lingering


def is_http(connection: Any) -> bool:
    """Is it HTTP? uvicorn has its WebSockets in the same set."""
    return hasattr(connection, "cycle")


def awaits_head(connection: Any) -> bool:
    """Is the connection between two requests?"""
    if not is_http(connection):
        return False
    cycle = connection.cycle
    return cycle is None or (cycle.response_complete and not cycle.more_body)
