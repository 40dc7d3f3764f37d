"""The worker's end of a link: connections that a proxy passes on, taken one message at a time.

Owns the order in which a connection changes hands, and when a worker stops taking any. A worker
announces a connection *before* it takes it out of the link. What it has not announced is
still in the kernel, where the proxy can read it back when this worker dies, stops or is full. What
it has announced is the worker's.

The kernel drops a descriptor for which the receiving process has no number. So a worker makes
sure of free numbers before it takes a message: the program may have used them all.

Must not know what a connection is for, nor which server it goes to.
"""

import logging
import os
import socket
import struct
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Mapping
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD
from typing import Final

from penstock_worker.contract import LINK_FD
from penstock_worker.handoff import CREDIT, MOST, PROBE, receive
from penstock_worker.streams import Stream, inherited_end

_REPORT_S: Final = 0.05
"""Until the proxy hears of an end that no announcement carried along."""
_RESERVE: Final = 16
"""Descriptors that the program may need while connections come."""
_RETRY_S: Final = 0.1
"""Until it is tried again when there is no descriptor left."""
# Plain numbers: Python 3.11 needs longer to combine two enum members than the kernel to send.
_NO_BLOCK: Final = int(socket.MSG_DONTWAIT)
_PEEK: Final = int(socket.MSG_PEEK) | _NO_BLOCK
_QUEUED: Final = struct.Struct("i")
_MOST: Final = 0xFFFF

_log: Final = logging.getLogger("penstock.worker")


class Taker:
    """A worker's end: takes what comes and passes it on.

    `on_connection(stream, probe)` owns the stream. Whoever serves it calls `ended` when a
    connection that was no probe is closed.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        link: socket.socket,
        on_connection: Callable[[Stream, bool], None],
        limit: int,
    ) -> None:
        """`limit`: how many descriptors this process may have."""
        self.taken = 0
        """Connections of clients so far."""
        self._loop = loop
        self._link = link
        self._on_connection = on_connection
        self._last_fd = limit - _RESERVE
        self._ended = 0
        self._announced = 0
        """Said to be taken, and then taken back by the front before they could be: as many of
        the next ones need no word."""
        self._reading = False
        self._full = False
        self._lacking = False
        """So full that not even one fits, which was logged."""
        self._report: TimerHandle | None = None
        self._retry: TimerHandle | None = None

    def start(self) -> None:
        """Take connections from now on."""
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._link, self._readable)

    def ended(self) -> None:
        """A client's connection is closed."""
        self._ended += 1
        if self._report is None:
            self._report = self._loop.call_later(_REPORT_S, self._tell)
        self.room()

    def room(self) -> None:
        """A descriptor is free, whosever it was."""
        if self._full:
            self._full = False
            self.start()

    def drain(self) -> None:
        """Take what is on its way, and nothing after it."""
        while self._take() and not self._full:
            pass
        self._pause()

    def close(self) -> None:
        self._pause()
        if self._report is not None:
            self._report.cancel()
            self._report = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._link.close()

    def _readable(self) -> None:
        left = MOST
        while left > 0 and not self._full and (taken := self._take()):
            left -= taken

    def _take(self) -> int:
        """Take some, up to MOST; how many that were."""
        try:
            count = self._waiting()
            if not count:
                self._pause()
                return 0
            if not self._fit(count):
                return 0
            # The credit first: who says that he takes one and dies is known to have had it.
            self._announce(count)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # No front has the other end any more.
            self._pause()
            return 0
        # Fewer, or others, if the front takes them back in this very moment.
        taken = 0
        while taken < count and (got := receive(self._link)) is not None:
            kinds, fds = got
            if not kinds:
                break
            taken += len(kinds)
            with suppress(OSError):
                self._announce(len(kinds))
            self._announced = max(0, self._announced - len(kinds))
            for fd in fds:
                self._adopt(kinds[:1], fd)
        return taken

    def _waiting(self) -> int:
        """How many come next; 0: the link has ended."""
        # A byte is a connection, so this many wait.
        count: int = _QUEUED.unpack(ioctl(self._link, FIONREAD, bytes(_QUEUED.size)))[0]
        if 0 < count <= MOST:
            return count
        # The first message only, whose size is known without taking it.
        return len(self._link.recv(MOST, _PEEK))

    def _fit(self, count: int) -> bool:
        """Are there numbers for so many? To have them is the only way to know."""
        link = self._link.fileno()
        numbers: list[int] = []
        try:
            # As far as it gets: what it has is closed in any case.
            numbers.extend(os.dup(link) for _ in range(count))
        except OSError as error:
            if not self._lacking:
                _log.error("cannot take connections: %s; trying again until it can", error.strerror)
            self._lacking = self._full = True
            self._pause()
            if self._retry is None:
                self._retry = self._loop.call_later(_RETRY_S, self._look_again)
            return False
        finally:
            for number in numbers:
                os.close(number)
        self._lacking = False
        return True

    def _look_again(self) -> None:
        self._retry = None
        self.room()

    def _announce(self, count: int) -> None:
        """Say of so many that they are taken, but for those of whom that was said before."""
        if count > self._announced:
            self._credit(count - self._announced)
            self._announced = count

    def _credit(self, taken: int) -> None:
        ended = min(self._ended, _MOST)
        self._link.send(CREDIT.pack(taken, ended), _NO_BLOCK)
        self._ended -= ended

    def _adopt(self, kind: bytes, fd: int) -> None:
        if fd >= self._last_fd:
            # The lowest number that was free: all below are in use. One more, and the kernel
            # would drop a client's connection on the floor.
            self._full = True
            self._pause()
        probe = kind == PROBE
        self.taken += not probe
        os.set_blocking(fd, False)
        self._on_connection(Stream(fd, _family(fd)), probe)

    def _tell(self) -> None:
        self._report = None
        if not self._ended:
            return
        try:
            self._credit(0)
        except (BlockingIOError, InterruptedError):
            # A front that is away: said again, with those that end until then.
            self._report = self._loop.call_later(_REPORT_S, self._tell)
        except OSError:
            return

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._link)


def inherited(environ: Mapping[str, str]) -> tuple[socket.socket, ...]:
    """Adopt the ends that `environ` names, one for each front; ValueError: one is no link."""
    numbers = environ.get(LINK_FD)
    if numbers is None:
        return ()
    return tuple(inherited_end(LINK_FD, n, socket.SOCK_SEQPACKET) for n in numbers.split(","))


def _family(fd: int) -> int:
    """uvloop asks for it, and only tells unix from the rest."""
    sock = socket.socket(fileno=fd)
    family = int(sock.family)
    sock.detach()
    return family
