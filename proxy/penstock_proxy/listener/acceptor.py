"""Takes connections from one listener as long as there is room for them.

Owns: when a listening socket is read from, and when it is left alone. Must not know: what
becomes of a connection (`deliver`), or who the workers are.

The listener itself belongs to the supervisor and stays open whatever happens here, so
pausing costs nobody a connection: the kernel's queue holds them. Whoever ticks calls
`resume` when there is room again, and `overdue` to hear who has waited there for too long.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from penstock_worker.listener.acceptor import EXHAUSTED, TRANSIENT
from penstock_worker.net import lingering_close
from penstock_worker.net.accept_queue import AcceptQueue
from penstock_worker.net.somaxconn import max_backlog
from penstock_worker.net.stream import Stream

_BATCH: Final = 16
"""Connections a wake-up, so that one busy listener does not starve the rest."""
_log = logging.getLogger(__name__)


class Acceptor:
    """One listener. `room` is asked before each batch."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        room: Callable[[], int],
        deliver: Callable[[Stream, Any], None],
        on_full: Callable[[], None] = lambda: None,
        on_exhausted: Callable[[], None] = lambda: None,
        patience_s: float = 0.0,
        on_batch: Callable[[], None] | None = None,
    ) -> None:
        """`room`: how many more may come. `on_batch`: called when those that came together
        have been delivered."""
        self._loop = loop
        self.listener = listener
        self._family = int(listener.family)
        self._room = room
        self._deliver = deliver
        self._started = False
        self._reading = False
        self._closed = False
        self._on_full = on_full
        self._on_exhausted = on_exhausted
        self._on_batch = on_batch
        self._accept_queue = AcceptQueue(patience_s)
        self._taken = 0
        self.is_exhausted = False
        """The last accept failed for want of a descriptor, or of memory."""

    @property
    def is_reading(self) -> bool:
        return self._reading

    def start(self) -> None:
        """Accept from now on."""
        self._started = True
        self.resume()

    def resume(self) -> None:
        """There may be room again. Harmless while accepting, and before and after."""
        if self._reading:
            # Whoever came since the last time was let in.
            self.is_exhausted = False
        if self._started and not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self.listener, self._readable)

    def overdue(self, now: float) -> int:
        """How many wait, and have done so for longer than their patience."""
        if self._closed or not self._started:
            return 0
        if self._reading and not self._accept_queue.was_occupied:
            return 0
        return self._accept_queue.overdue(
            now, self._taken, lingering_close.accept_queue_length(self.listener)
        )

    def take(self) -> Stream | None:
        """One that waits, whether there is room or not, for who has something to tell it."""
        try:
            fd, _ = self.listener._accept()  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._lacking(error)
            return None
        self._taken += 1
        return Stream(fd, self._family)

    def taken(self) -> None:
        """Somebody else took one off the queue."""
        self._taken += 1

    def drain(self, refuse: Callable[[], bool] = lambda: False) -> None:
        """Take what the kernel has queued, then close: those clients were told yes.

        `refuse` is called for each that cannot be taken for want of a descriptor.
        """
        if self._closed:
            return
        try:
            # As many as can wait there at a time, which is one more than the backlog: new ones
            # may come as fast as these are taken.
            left = max_backlog() + 1 if self._started else 0
            while left > 0 and self._accept():
                left -= 1
            while left > 0 and self.is_exhausted and refuse():
                left -= 1
        except OSError as error:
            # Whoever drains has more to do, and here there is nothing left to save.
            _log.error("cannot accept what was queued: %s", error.strerror)
        finally:
            if self._on_batch is not None:
                self._on_batch()
            self._pause()
            self._closed = True
            self.listener.close()

    def close(self) -> None:
        """Take no more; what waits is taken by another who has the same socket."""
        if not self._closed:
            self._pause()
            self._closed = True
            self.listener.close()

    def _readable(self) -> None:
        try:
            self._take_batch()
        finally:
            if self._on_batch is not None:
                self._on_batch()

    def _take_batch(self) -> None:
        left = min(_BATCH, self._room())
        if left < 1:
            # Only who is woken knows that somebody waits.
            self._pause()
            self._on_full()
        while left > 0 and self._accept():
            left -= 1

    def _accept(self) -> bool:
        try:
            # `accept` itself would make a socket object; see dial.Stream.
            fd, peer = self.listener._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            return self._not_accepted(error)
        self.is_exhausted = False
        self._taken += 1
        self._deliver(Stream(fd, self._family), peer)
        return True

    def _not_accepted(self, error: OSError) -> bool:
        """Nothing came; True if the next one may."""
        if error.errno in TRANSIENT:
            return True
        # Whatever it is, it is there until the next tick: asking at once would be a busy loop.
        self._pause()
        if error.errno not in EXHAUSTED:
            raise error
        self._lacking(error)
        return False

    def _lacking(self, error: OSError) -> None:
        if not self.is_exhausted:
            _log.error("cannot accept: %s; trying again until it can", error.strerror)
        self.is_exhausted = True
        self._on_exhausted()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.listener)
