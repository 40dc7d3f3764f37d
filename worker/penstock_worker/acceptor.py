"""Accepts from one listening socket, in a worker.

Owns when the socket is read from. It may be shared with other workers, who are woken by the
same connection: a few at a time are taken and the rest is left to whoever is idle, or the
one that woke first would have them all and the others nothing to do. Must not know what
becomes of a connection, nor who else listens.

The supervisor keeps the socket open whatever happens here, so pausing and leaving cost
nobody a connection. Without a descriptor those who come wait in the kernel's queue; who has
waited too long is told so on one that is kept for that. Where the socket is shared, another
worker may take them first.
"""

import errno
import logging
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import Final

from penstock_worker import farewell
from penstock_worker.backlog import Backlog

FEW: Final = 2
"""Connections a wake-up. One would be fairest, and cost an epoll_wait for each of a burst."""
_RETRY_S: Final = 0.1
"""Until it is tried again when there is no descriptor left, or no memory."""
PATIENCE_S: Final = 2.0
"""As long as a front lets a request wait, unless told otherwise."""
_REFUSED_A_TRY: Final = 64
_LACKING: Final = b"out of descriptors\n"
_FULL: Final = b"too many connections\n"
_WORDS: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nRetry-After: 1\r\nConnection: close\r\n\r\n%b"
)
_QUIET_S: Final = 10.0
"""Between two lines that say that it is full: at its bound it is so again and again."""
PASSING: Final = frozenset(
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
"""The trouble of one connection that is not there any more: like EAGAIN, says accept(2)."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log: Final = logging.getLogger("penstock.worker")


class Acceptor:
    """Owns `listener`, which listens already. `deliver(fd, family)` owns the descriptor."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        listener: socket.socket,
        deliver: Callable[[int, int], None],
        patience_s: float = PATIENCE_S,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        """`has_room` is asked before each one; whoever makes room says so by `resume`."""
        self.closed = False
        self._loop = loop
        self._listener = listener
        self._family = int(listener.family)
        self._deliver = deliver
        self._has_room = has_room
        self._exhausted = False
        self._said_full = -_QUIET_S
        self._patience_s = patience_s
        self._backlog = Backlog(patience_s)
        self._taken = 0
        self._spare = farewell.Spare()
        self._retry: TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on."""
        self._retry = None
        if not self.closed:
            self._loop.add_reader(self._listener, self._readable)

    def resume(self) -> None:
        """Somebody has left."""
        if self._retry is not None:
            self._retry.cancel()
            self.start()

    def drain(self, most: int) -> None:
        """Take what the kernel has queued, then close: those clients were told yes."""
        if not self.closed:
            while most > 0 and self._accept():
                most -= 1
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        self._pause()
        self.closed = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._spare.close()
        self._listener.close()

    def _readable(self) -> None:
        for _ in range(FEW):
            if not self._accept():
                return

    def _accept(self) -> bool:
        if not self._has_room():
            self._is_full()
            return False
        try:
            # `accept` itself would make a socket object, and ask for the family of each.
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            return self._not_accepted(error)
        self._exhausted = False
        self._taken += 1
        self._deliver(fd, self._family)
        return True

    def _not_accepted(self, error: OSError) -> bool:
        """Nothing came; True if the next one may."""
        if error.errno in PASSING:
            return True
        if error.errno not in EXHAUSTED:
            # The supervisor has shut it: nobody will ever come this way again, and it would
            # be readable for ever.
            _log.debug("no more connections from this socket: %s", error.strerror)
            self.close()
            return False
        if not self._exhausted:
            _log.error("cannot accept: %s; trying again until it can", error.strerror)
        self._hold_back(_LACKING)
        return False

    def _is_full(self) -> None:
        now = self._loop.time()
        if now - self._said_full >= _QUIET_S:
            self._said_full = now
            _log.warning("accepts no more connections: it is full")
        self._hold_back(_FULL)

    def _hold_back(self, words: bytes) -> None:
        """Leave them in the queue, and look again soon."""
        if self._retry is None:
            self._pause()
            self._retry = self._loop.call_later(_RETRY_S, self.start)
        if not self._exhausted:
            self._backlog = Backlog(self._patience_s)
        self._exhausted = True
        self._refuse_overdue(words)

    def _refuse_overdue(self, words: bytes) -> None:
        """Tell those no who have waited too long already."""
        waiting = farewell.waiting(self._listener)
        overdue = self._backlog.look(self._loop.time(), self._taken, waiting)
        for _ in range(min(overdue, _REFUSED_A_TRY)):
            if not self._spare.refuse(self._listener, _WORDS % (len(words), words)):
                return
            self._taken += 1

    def _pause(self) -> None:
        self._loop.remove_reader(self._listener)
