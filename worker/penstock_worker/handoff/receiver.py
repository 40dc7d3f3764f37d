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
from penstock_worker.handoff.protocol import CREDIT, MAX_PER_MESSAGE, PROBE, receive
from penstock_worker.net.stream import Stream, inherited_end

_REPORT_S: Final = 0.05
"""Until an ended connection is reported on its own, if no announcement carried it along."""
_RESERVE: Final = 16
"""Descriptors that the program may need while connections come."""
_RETRY_S: Final = 0.1
"""Until the next attempt when no descriptor is left."""
# Plain numbers: Python 3.11 needs longer to combine two enum members than the kernel to send.
_NO_BLOCK: Final = int(socket.MSG_DONTWAIT)
_PEEK: Final = int(socket.MSG_PEEK) | _NO_BLOCK
_QUEUED: Final = struct.Struct("i")
_MAX_COUNT: Final = 0xFFFF

_log: Final = logging.getLogger("penstock.worker")


class LinkReceiver:
    """The worker's end of one link: takes connections and passes each to `on_connection`.

    `on_connection(stream, probe)` owns the stream. Its owner calls `ended` when a connection that
    was no probe is closed.
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
        """Announced, and not taken yet. If the proxy takes them back first, as many of the next
        ones need no announcement."""
        self._reading = False
        self._at_limit = False
        self._logged_no_fd = False
        """There was no free descriptor, and that was logged."""
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
            self._report = self._loop.call_later(_REPORT_S, self._send_report)
        self.fd_freed()

    def fd_freed(self) -> None:
        """A descriptor was closed, by whatever part of the process."""
        if self._at_limit:
            self._at_limit = False
            self.start()

    def fileno(self) -> int:
        return self._link.fileno()

    def drain(self) -> None:
        """Take what is in the link now, and nothing after it."""
        while self._take() and not self._at_limit:
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
        left = MAX_PER_MESSAGE
        while left > 0 and not self._at_limit and (taken := self._take()):
            left -= taken

    def _take(self) -> int:
        """Take the next message; returns how many connections it had."""
        try:
            count = self._next_size()
            if not count:
                self._pause()
                return 0
            if not self._has_fds_for(count):
                return 0
            # Before they are taken: if this worker dies now, they count as its own.
            self._announce(count)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # No proxy has the other end any more.
            self._pause()
            return 0
        # They are fewer, or others, if the proxy takes them back at this moment.
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

    def _next_size(self) -> int:
        """Connections that can be taken next; 0: the link has ended."""
        # There is a byte for each connection, so this many wait.
        count: int = _QUEUED.unpack(ioctl(self._link, FIONREAD, bytes(_QUEUED.size)))[0]
        if 0 < count <= MAX_PER_MESSAGE:
            return count
        # More than fit into one message: look at the first one only.
        return len(self._link.recv(MAX_PER_MESSAGE, _PEEK))

    def _has_fds_for(self, count: int) -> bool:
        """Are so many descriptors free? The only way to know is to open them."""
        link = self._link.fileno()
        numbers: list[int] = []
        try:
            # `extend` keeps those that were opened before an error, and `finally` closes them.
            numbers.extend(os.dup(link) for _ in range(count))
        except OSError as error:
            if not self._logged_no_fd:
                _log.error("cannot take connections: %s; trying again until it can", error.strerror)
            self._logged_no_fd = self._at_limit = True
            self._pause()
            if self._retry is None:
                self._retry = self._loop.call_later(_RETRY_S, self._try_again)
            return False
        finally:
            for number in numbers:
                os.close(number)
        self._logged_no_fd = False
        return True

    def _try_again(self) -> None:
        self._retry = None
        self.fd_freed()

    def _announce(self, count: int) -> None:
        """Announce that the next `count` are taken, less those that were announced before."""
        if count > self._announced:
            self._send_credit(count - self._announced)
            self._announced = count

    def _send_credit(self, taken: int) -> None:
        ended = min(self._ended, _MAX_COUNT)
        self._link.send(CREDIT.pack(taken, ended), _NO_BLOCK)
        self._ended -= ended

    def _adopt(self, kind: bytes, fd: int) -> None:
        if fd >= self._last_fd:
            # The kernel gives out the lowest free number, so all below are in use. It might
            # drop the next connection.
            self._at_limit = True
            self._pause()
        probe = kind == PROBE
        self.taken += not probe
        os.set_blocking(fd, False)
        self._on_connection(Stream(fd, _family(fd)), probe)

    def _send_report(self) -> None:
        self._report = None
        if not self._ended:
            return
        try:
            self._send_credit(0)
        except (BlockingIOError, InterruptedError):
            # The proxy does not read at the moment: send it later, with those that end until then.
            self._report = self._loop.call_later(_REPORT_S, self._send_report)
        except OSError:
            return

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._link)


def inherited(environ: Mapping[str, str]) -> tuple[socket.socket, ...]:
    """Adopt the ends that `environ` names, one for each proxy; ValueError: one is no link."""
    numbers = environ.get(LINK_FD)
    if numbers is None:
        return ()
    return tuple(inherited_end(LINK_FD, n, socket.SOCK_SEQPACKET) for n in numbers.split(","))


def _family(fd: int) -> int:
    """The socket family, which uvloop asks for to tell unix sockets from others."""
    sock = socket.socket(fileno=fd)
    family = int(sock.family)
    sock.detach()
    return family
