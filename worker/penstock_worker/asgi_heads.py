"""Heads of requests that uvicorn reads without an end, and here have one.

Owns, where no front stands before the worker: how long a connection may go without a request
in hand, and how many bytes of a head are taken. uvicorn starts a clock only behind an answer,
and stops it at the first byte of what follows; httptools gathers fields for as long as they
come. Connections are looked at once a second, because a timer for each would cost every
request one.
"""

from collections.abc import Iterable
from typing import Any, Final

MOST_HEAD: Final = 64 << 10
"""As h11 has it, uvicorn's other parser."""
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class Heads:
    """Of all connections of one worker."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: dict[Any, tuple[Any, float]] = {}
        """By connection without a request in hand: its last one, and when that was seen."""

    def tick(self, connections: Iterable[Any], now: float) -> None:
        """Close who has waited for too long, or makes us wait."""
        waiting = {one: one.cycle for one in connections if _waits(one)}
        before, self._since = self._since, {}
        for one, cycle in waiting.items():
            last, since = before.get(one, (cycle, now))
            if last is not cycle:
                since = now
            if now - since > self._patience_s:
                one.transport.close()
            else:
                self._since[one] = (cycle, since)


def bounded(kind: Any) -> Any:
    """uvicorn's protocol, which counts what comes while there is no request in hand."""

    class Bounded(kind):  # type: ignore[misc]
        gathered = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not _waits(self):
                self.gathered = 0
                return
            self.gathered += len(data)
            if self.gathered > MOST_HEAD and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    return Bounded


def _waits(connection: Any) -> bool:
    """Is the next thing to come the head of a request? What is left of a body is none."""
    cycle = connection.cycle
    return cycle is None or (cycle.response_complete and not cycle.more_body)
