"""Peeks at the first bytes of a connection and leaves them in the kernel (MSG_PEEK).

Owns: a descriptor from accept until it is handed on or closed, its time limit, and when to peek
again. Must not know: what the bytes mean (`proxy_protocol`, `sni_router`).

A transport is not used, because what a transport has read cannot be put back. While the bytes are
too few, SO_RCVLOWAT makes the kernel wake us only when more have come. SO_RCVLOWAT has no effect on
unix sockets and after an end of file. There we peek again at the next tick, so there is no busy
loop.
"""

import asyncio
import select
import socket
from typing import Final

from penstock_proxy.errors import Fault
from penstock_proxy.net.timer_wheel import NEVER, HasDeadline, TimerWheel
from penstock_worker.net.stream import Stream

DRAIN_S: Final = 1.0
"""Time limit of connections that are still peeked at when the proxy drains."""
# Plain numbers: Python 3.11 takes longer to look up an enum member than the kernel to peek.
# DONTWAIT: accepted sockets are blocking, whatever the listener is.
PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_SOCKET: Final = int(socket.SOL_SOCKET)
_LOWAT: Final = int(socket.SO_RCVLOWAT)
_STREAM: Final = int(socket.SOCK_STREAM)


class PeekedConnection(HasDeadline):
    """One connection that is peeked at. A subclass implements `_peek`."""

    __slots__ = (
        "_family",
        "_loop",
        "_reading",
        "_seen",
        "_sock",
        "_time_limit",
        "_timers",
        "_waiting",
        "counted_address",
        "idle_since",
    )

    is_kept_alive = False
    """No request has come yet."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timers: TimerWheel,
        waiting: "dict[PeekedConnection, None]",
        stream: Stream,
        counted_address: str = "",
    ) -> None:
        """`waiting`: has this connection until it is released or closed, the oldest first.
        `counted_address`: the address that the client limit counts it for."""
        self._loop = loop
        self._timers = timers
        self._waiting = waiting
        self._family = stream.family
        # Family, type and protocol are given, so that the kernel is not asked for them.
        self._sock = socket.socket(stream.family, _STREAM, 0, fileno=stream.fileno())
        stream.detach()
        self._seen = 0
        """Bytes that were peeked at so far."""
        self._reading = False
        self._time_limit = NEVER
        self.counted_address = counted_address
        self.idle_since = NEVER
        """Since when it waits. An overloaded service may end it for others, see
        `http.open_clients.ClientHandle`."""
        self.deadline = NEVER
        self.bucket = NEVER

    def start(self, seconds: float) -> None:
        """Peek at once: most often the bytes have come with the connection."""
        self._waiting[self] = None
        self._timers.arm_in(self, seconds)
        self.idle_since = self.deadline - seconds
        self._time_limit = self.deadline
        self._peek()

    def limit_time(self, seconds: float) -> None:
        """Shorten the time that is left to `seconds`."""
        self._time_limit = min(self._time_limit, self._timers.now + seconds)
        self._timers.arm(self, self._time_limit)

    def expired(self, now: float) -> None:
        """Give up if the time limit has passed, else peek again."""
        if now >= self._time_limit:
            self._timed_out()
        else:
            self._peek()

    def _peek(self) -> None:
        raise NotImplementedError

    def _timed_out(self) -> None:
        raise NotImplementedError

    def end_idle(self, fault: Fault) -> bool:
        """Close it, because another client needs its place."""
        raise NotImplementedError

    def _wait_readable(self) -> None:
        """Peek again when there is something to read."""
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._sock, self._peek)

    def _wait_for_more(self, seen: int, missing: int) -> None:
        """Peek again when there is more than the `seen` bytes; `missing` more are needed."""
        timers = self._timers
        if seen > self._seen:
            self._seen = seen
            self._sock.setsockopt(_SOCKET, _LOWAT, seen + missing)
            self._wait_readable()
            timers.arm(self, self._time_limit)
        else:
            self._pause()
            timers.arm(self, min(timers.now, self._time_limit))

    def _is_at_end(self, seen: int) -> bool:
        """Has the peer closed after the `seen` bytes? Bytes that are only peeked at hide an end of
        file that follows them."""
        if seen > self._seen:
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        # Peek once more: the last bytes may have come with the end.
        return bool(poll.poll(0)) and len(self._sock.recv(seen + 1, PEEK)) <= seen

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _release(self) -> Stream:
        """Give the descriptor away, with all bytes and its options as they were."""
        if self._seen:
            self._sock.setsockopt(_SOCKET, _LOWAT, 1)
        self._unregister()
        return Stream(self._sock.detach(), self._family)

    def _close(self) -> None:
        self._unregister()
        self._sock.close()

    def _unregister(self) -> None:
        self._pause()
        self._timers.disarm(self)
        self._waiting.pop(self, None)
