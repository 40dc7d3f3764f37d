"""Accepts connections from one listening socket as long as there is room for them.

Owns: when the socket is accepted from, and when accepting is paused. Must not know: what becomes
of a connection (`deliver`), or anything about workers.

The socket belongs to the supervisor and stays open whatever happens here. So a pause loses no
connection: those that wait stay in the kernel's queue. Every tick calls `resume` if there is room
again, and `overdue` to learn how many have waited too long.
"""

import asyncio
import logging
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

from penstock_worker.listener.acceptor import EXHAUSTED, TRANSIENT
from penstock_worker.net import lingering_close
from penstock_worker.net.accept_queue import AcceptQueue
from penstock_worker.net.somaxconn import max_backlog
from penstock_worker.net.stream import Stream

_BATCH: Final = 16
"""Connections accepted in one wake-up, so that a busy listener does not starve the others."""
_log = logging.getLogger("penstock.proxy")


class Acceptor:
    """One listening socket."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        room: Callable[[], int],
        deliver: Callable[[Stream, Any], None],
        on_full: Callable[[], None] = lambda: None,
        on_exhausted: Callable[[], None] = lambda: None,
        max_wait_s: float = 0.0,
        on_batch: Callable[[], None] | None = None,
    ) -> None:
        """`room`: asked before each batch how many more may be accepted. `on_full`: called when
        a connection waits and there is none. `on_batch`: called after each batch."""
        self._loop = loop
        self.listener = listener
        self._family = int(listener.family)
        self._room = room
        self._deliver = deliver
        self._started = False
        self._reading = False
        self._closed = False
        self._draining = False
        """What is queued is accepted, and nothing after it."""
        self._on_full = on_full
        self._on_exhausted = on_exhausted
        self._on_batch = on_batch
        self._accept_queue = AcceptQueue(max_wait_s)
        self._accepted_count = 0
        self.is_exhausted = False
        """The last accept failed, because the system has no descriptor or no memory."""

    def configure(self, deliver: Callable[[Stream, Any], None], max_wait_s: float) -> None:
        """Set where the next connections go, and how long one may wait in the kernel's queue."""
        self._deliver = deliver
        self._accept_queue.max_wait_s = max_wait_s

    @property
    def is_reading(self) -> bool:
        return self._reading

    def start(self) -> None:
        """Begin to accept."""
        self._started = True
        self.resume()

    def resume(self) -> None:
        """There may be room again. Harmless while accepting, before `start` and after the end."""
        if self._reading:
            # Every accept since the last call has succeeded.
            self.is_exhausted = False
        if self._started and not (self._reading or self._closed or self._draining):
            self._reading = True
            self._loop.add_reader(self.listener, self._on_readable)

    def overdue(self, now: float) -> int:
        """How many have waited in the kernel's queue for longer than `max_wait_s`."""
        if self._closed or self._draining or not self._started:
            return 0
        if self._reading and not self._accept_queue.was_occupied:
            return 0
        return self._accept_queue.overdue(
            now, self._accepted_count, lingering_close.accept_queue_length(self.listener)
        )

    @property
    def waiting(self) -> int:
        """How many wait in the kernel's queue while nobody accepts. Of a unix socket only
        whether somebody does is known: a batch then."""
        if self._reading or self._closed or self._draining or not self._started:
            return 0
        if self._family != socket.AF_UNIX:
            return lingering_close.accept_queue_length(self.listener)
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        return _BATCH if poll.poll(0) else 0

    def accept_one(self) -> Stream | None:
        """Accept one even if there is no room, so that it can be refused; None if that fails."""
        try:
            fd, _ = self.listener._accept()  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._report_exhausted(error)
            return None
        self._accepted_count += 1
        return Stream(fd, self._family)

    def accepted_elsewhere(self) -> None:
        """One was accepted from this socket by other means."""
        self._accepted_count += 1

    def drain(self, refuse: Callable[[], bool] = lambda: False) -> None:
        """`draining`, all of it at once."""
        for _ in self.draining(refuse):
            pass

    def draining(self, refuse: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Accept what the kernel has queued, one in each step, then close: the clients see these
        as connected. The socket stays open until the last one is accepted, so nobody is lost
        between two steps; who connects meanwhile is accepted, too.

        `refuse` is called for each that cannot be accepted for want of a descriptor.
        """
        if self._closed or self._draining:
            return
        self._pause()
        self._draining = True
        try:
            # At most as many as can wait at a time, which is one more than the backlog: new ones
            # may come as fast as these are accepted.
            left = max_backlog() + 1 if self._started else 0
            while left > 0 and self._accept():
                left -= 1
                if self._on_batch is not None and left % _BATCH == 0:
                    self._on_batch()
                yield
            while left > 0 and self.is_exhausted and refuse():
                left -= 1
                yield
        except OSError as error:
            # The caller has more to drain, and nothing more can be done here.
            _log.error("cannot accept what was queued: %s", error.strerror)
        finally:
            if self._on_batch is not None:
                self._on_batch()
            self.close()

    def close(self) -> None:
        """Accept no more. What waits is left to others that have the same socket."""
        if not self._closed:
            self._pause()
            self._closed = True
            self.listener.close()

    def _on_readable(self) -> None:
        try:
            self._accept_batch()
        finally:
            if self._on_batch is not None:
                self._on_batch()

    def _accept_batch(self) -> None:
        left = min(_BATCH, self._room())
        if left < 1:
            # We were woken, so a connection waits.
            self._pause()
            self._on_full()
        while left > 0 and self._accept():
            left -= 1

    def _accept(self) -> bool:
        try:
            # `accept` would make a socket object, which costs more than a `Stream`.
            fd, peer = self.listener._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            return self._accept_failed(error)
        self.is_exhausted = False
        self._accepted_count += 1
        self._deliver(Stream(fd, self._family), peer)
        return True

    def _accept_failed(self, error: OSError) -> bool:
        """An accept failed. True: another one may succeed."""
        if error.errno in TRANSIENT:
            return True
        # It will not pass at once: without a pause until the next tick this is a busy loop.
        self._pause()
        if error.errno not in EXHAUSTED:
            raise error
        self._report_exhausted(error)
        return False

    def _report_exhausted(self, error: OSError) -> None:
        if not self.is_exhausted:
            _log.error("cannot accept: %s; trying again until it can", error.strerror)
        self.is_exhausted = True
        self._on_exhausted()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.listener)
