"""Accepts from one listening socket, in a worker.

Owns when connections are accepted. Other workers may share the socket, and one connection wakes
them all. So each accepts only a few at a time: otherwise the first to wake would take all of
a burst, and the others would be idle. Must not know what becomes of a connection, nor who
else listens.

The supervisor keeps the socket open whatever happens here, so no connection is lost when a
worker pauses or leaves. While no descriptor is free, clients wait in the accept queue. A
client that has waited too long is accepted on a spare descriptor and answered 503. Where the
socket is shared, another worker may accept it first.
"""

import errno
import logging
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import Final

from penstock_worker.net import lingering_close
from penstock_worker.net.accept_queue import AcceptQueue

ACCEPTS_PER_WAKEUP: Final = 2
"""One would be fairest, but would cost an epoll_wait for each connection of a burst."""
_RETRY_S: Final = 0.1
"""Until it tries again after it ran out of descriptors or memory."""
MAX_WAIT_S: Final = 2.0
"""In the accept queue. The default of a proxy's `timeouts.queue`."""
_MAX_REFUSED: Final = 64
_MAX_PLACES: Final = 16
"""Places that are made at a time: other workers may make some for the same clients."""
_NO_DESCRIPTOR: Final = b"out of descriptors\n"
_TOO_MANY: Final = b"too many connections\n"
_RESPONSE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nRetry-After: 1\r\nConnection: close\r\n\r\n%b"
)
_LOG_INTERVAL_S: Final = 10.0
"""Between two log lines about the connection limit, which may be reached many times a second."""
TRANSIENT: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
    }
)
"""Errors of one connection, which is gone. accept(2): treat them like EAGAIN."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log: Final = logging.getLogger("penstock.worker")


class Acceptor:
    """Owns `listener`, which listens already. `deliver(fd, family)` owns the descriptor."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        listener: socket.socket,
        deliver: Callable[[int, int], None],
        max_wait_s: float = MAX_WAIT_S,
        has_room: Callable[[], bool] = lambda: True,
        make_room: Callable[[int], object] = lambda _: None,
    ) -> None:
        """`has_room` is asked before each `accept`. When there is room again, call `resume`.
        `make_room` is called again and again as long as so many clients wait in vain."""
        self.closed = False
        self._loop = loop
        self._listener = listener
        self._family = int(listener.family)
        self._deliver = deliver
        self._has_room = has_room
        self._make_room = make_room
        self._holding = False
        self._logged_full_at = -_LOG_INTERVAL_S
        self._max_wait_s = max_wait_s
        self._accept_queue = AcceptQueue(max_wait_s)
        self._accepted = 0
        self._spare = lingering_close.SpareDescriptor()
        self._retry: TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on."""
        self._retry = None
        if not self.closed:
            self._loop.add_reader(self._listener, self._readable)

    def resume(self) -> None:
        """There is room for a connection again."""
        if self._retry is not None:
            self._retry.cancel()
            self.start()

    def pause(self) -> None:
        """Accept nothing until `start`; who connects waits in the queue."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if not self.closed:
            self._stop_reading()

    def fileno(self) -> int:
        return self._listener.fileno()

    def drain(self, limit: int) -> None:
        """Accept what is in the queue, for those clients are connected already; then close."""
        if not self.closed:
            while limit > 0 and self._accept():
                limit -= 1
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.pause()
        self.closed = True
        self._spare.close()
        self._listener.close()

    def _readable(self) -> None:
        for _ in range(ACCEPTS_PER_WAKEUP):
            if not self._accept():
                return

    def _accept(self) -> bool:
        if not self._has_room():
            self._hold_at_limit()
            return False
        try:
            # `accept` would make a socket object and ask the kernel for its family.
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            return self._accept_failed(error)
        self._holding = False
        self._accepted += 1
        self._deliver(fd, self._family)
        return True

    def _accept_failed(self, error: OSError) -> bool:
        """Nothing was accepted; True if the next `accept` may succeed."""
        if error.errno in TRANSIENT:
            return True
        if error.errno not in EXHAUSTED:
            # The supervisor has shut it down. No connection will come, and epoll would report it
            # for ever.
            _log.debug("no more connections from this socket: %s", error.strerror)
            self.close()
            return False
        if not self._holding:
            _log.error("cannot accept: %s; trying again until it can", error.strerror)
        self._hold(_NO_DESCRIPTOR)
        return False

    def _hold_at_limit(self) -> None:
        now = self._loop.time()
        if now - self._logged_full_at >= _LOG_INTERVAL_S:
            self._logged_full_at = now
            _log.warning("accepts no more connections: it is full")
        self._hold(_TOO_MANY)

    def _hold(self, reason: bytes) -> None:
        """Leave connections in the queue, and try again soon."""
        if self._retry is None:
            self._stop_reading()
            self._retry = self._loop.call_later(_RETRY_S, self.start)
        if not self._holding:
            self._accept_queue = AcceptQueue(self._max_wait_s)
        self._holding = True
        self._refuse_overdue(reason)

    def _refuse_overdue(self, reason: bytes) -> None:
        """Make room for those that wait, and answer 503 to those that have waited too long."""
        waiting = lingering_close.accept_queue_length(self._listener)
        if waiting:
            self._make_room(min(waiting, _MAX_PLACES))
        overdue = self._accept_queue.overdue(self._loop.time(), self._accepted, waiting)
        for _ in range(min(overdue, _MAX_REFUSED)):
            if not self._spare.refuse(self._listener, _RESPONSE % (len(reason), reason)):
                return
            self._accepted += 1

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._listener)
