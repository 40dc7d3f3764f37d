"""Takes connections from one listener as long as there is room for them.

Owns: when a listening socket is read from, and when it is left alone. Must not know: what
becomes of a connection (`deliver`), or who the workers are.

The listener itself belongs to the supervisor and stays open whatever happens here, so
pausing costs nobody a connection: the kernel's queue holds them. Whoever ticks calls
`resume` when there is room again.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from penstock_worker.acceptor import EXHAUSTED, PASSING
from penstock_worker.streams import Stream

_BATCH: Final = 16
"""Connections a wake-up, so that one busy listener does not starve the rest."""
_log = logging.getLogger(__name__)


class Acceptor:
    """One listener. `has_room` is asked before each accept."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        has_room: Callable[[], bool],
        deliver: Callable[[Stream, Any], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._family = int(listener.family)
        self._has_room = has_room
        self._deliver = deliver
        self._started = False
        self._reading = False
        self._closed = False
        self._exhausted = False

    def start(self) -> None:
        """Accept from now on."""
        self._started = True
        self.resume()

    def resume(self) -> None:
        """There may be room again. Harmless while accepting, and before and after."""
        if self._started and not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self._listener, self._readable)

    def drain(self) -> None:
        """Take what the kernel has queued, then close: those clients were told yes."""
        if self._closed:
            return
        try:
            while self._started and self._accept():
                pass
        except OSError as error:
            # Whoever drains has more to do, and here there is nothing left to save.
            _log.error("cannot accept what was queued: %s", error.strerror)
        finally:
            self._pause()
            self._closed = True
            self._listener.close()

    def close(self) -> None:
        """Take no more; what waits is taken by another who has the same socket."""
        if not self._closed:
            self._pause()
            self._closed = True
            self._listener.close()

    def _readable(self) -> None:
        for _ in range(_BATCH):
            if not self._has_room():
                self._pause()
                return
            if not self._accept():
                return

    def _accept(self) -> bool:
        try:
            # `accept` itself would make a socket object; see dial.Stream.
            fd, peer = self._listener._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._not_accepted(error)
            return False
        self._exhausted = False
        self._deliver(Stream(fd, self._family), peer)
        return True

    def _not_accepted(self, error: OSError) -> None:
        if error.errno in PASSING:
            return
        # Whatever it is, it is there until the next tick: asking at once would be a busy loop.
        self._pause()
        if error.errno not in EXHAUSTED:
            raise error
        if not self._exhausted:
            _log.error("cannot accept: %s; trying again until it can", error.strerror)
        self._exhausted = True

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._listener)
