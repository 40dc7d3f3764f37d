"""Makes room in a worker that has its clients' connections, as a proxy does that relays them.

Owns: which connections are ended for clients that wait: at this worker if it accepts them itself,
or at a proxy that is full and passes them on. They are those without a request, the oldest
first, and none that has just come, because its request may be on its way. Must not know how a
protocol tells that it has no request (`is_idle`), nor when somebody waits (`acceptor`, or
MAKE_ROOM of the contract).

A bounded number is looked at each time; with more connections, the next ones the next time.
"""

import logging
import socket
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE_S: Final = 1.0
"""What a client has for its first request, whoever waits."""
MAX_LOOKS: Final = 1024
_LOG_INTERVAL_S: Final = 10.0
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_log: Final = logging.getLogger("penstock.worker")


class OpenConnection(Protocol):
    """A connection that was accepted, here or by a proxy."""

    protocol: Any
    """What serves it, or served it first."""
    opened: float
    may_be_ended: bool

    def fileno(self) -> int: ...


class IdleClients:
    """The connections of one worker that may be ended for others."""

    def __init__(self, is_idle: "Callable[[Any], bool]") -> None:
        """`is_idle`: has this protocol no request, or only a part of one?"""
        self._is_idle = is_idle
        self._ended = 0
        """Not in the log yet."""
        self._log_at = 0.0

    def end(self, connections: dict[Any, None], wanted: int, now: float) -> int:
        """End up to `wanted` of them; returns how many. `connections` is an ordered set."""
        looked_at = list(islice(connections, MAX_LOOKS))
        if len(connections) > MAX_LOOKS:
            for connection in looked_at:
                del connections[connection]
                connections[connection] = None
        ended = 0
        for connection in looked_at:
            if ended == wanted:
                break
            ended += self._end_if_idle(connection, now)
        self._report(ended, now)
        return ended

    def _end_if_idle(self, connection: OpenConnection, now: float) -> bool:
        transport = getattr(connection.protocol, "transport", None)
        if (
            transport is None
            or not connection.may_be_ended
            or connection.opened + GRACE_S > now
            or transport.is_closing()
            or transport.get_write_buffer_size()
            or not self._is_idle(transport.get_protocol())
            or _has_unread(transport)
        ):
            return False
        transport.close()
        return True

    def _report(self, ended: int, now: float) -> None:
        self._ended += ended
        if self._ended and now >= self._log_at:
            _log.warning("connections ended to make room: %d", self._ended)
            self._ended, self._log_at = 0, now + _LOG_INTERVAL_S


def _has_unread(transport: Any) -> bool:
    """Has a request come that was not read yet?"""
    sock = transport.get_extra_info("socket")
    copy = socket.socket(sock.family, socket.SOCK_STREAM, 0, fileno=sock.fileno())
    try:
        return bool(copy.recv(1, _PEEK))
    except OSError:
        return False
    finally:
        # The descriptor is the transport's.
        copy.detach()
