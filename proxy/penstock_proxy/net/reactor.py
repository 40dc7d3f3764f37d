"""One epoll for all connections of a proxy.

Owns: the epoll object, the handler of each descriptor, in which order they are called, and what is
done when all handlers that were ready have been called. Deferred writes go out then, and receivers
of lost connections are told; neither happens in the middle of another call. It also owns how long
a turn of the loop may be: events that do not fit are left to the next turn, and work that has to
be done for many (all clients, all services) is done by `slices`, a part in each turn.

Connections to workers are read before those of clients. So when a client's request is read,
whatever had come from an idle connection to a worker by then has been seen, and to use that
connection again takes no system call (`is_current`).

The event loop of the process sees one descriptor. A connection of the loop's own would cost
five more system calls to make, two turns of the loop before it is served, and four times the
memory (measured; a connection per request: 104 µs of CPU against 75). All else in a proxy
(timers, channel, checks) stays with the loop.

Must not know: protocols, HTTP, what a connection is for (`socket_transport`).

See docs/decisions/0001-own-epoll-reactor.md.
"""

import asyncio
import logging
import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Final

from penstock_proxy.net.pipes import Pipes
from penstock_proxy.net.trait import trait
from penstock_worker.telemetry.loop_lag import LagHistogram

IN: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI
"""There is something to read, or the peer has shut down its writing side."""
URGENT: Final = select.EPOLLPRI
"""An urgent mark is in what is to be read; one read stops there."""
PEER_CLOSED: Final = select.EPOLLRDHUP
ERROR: Final = select.EPOLLERR
HANGUP: Final = select.EPOLLHUP
"""Both directions have ended, or the connection is gone."""
OUT: Final = select.EPOLLOUT

_MAX_EVENTS: Final = 256
"""Of one poll."""
_TURN_S: Final = 0.00075
"""What one turn may take. What is ready and was not handled then is reported again."""
_LOOKS: Final = 4
"""After so many events the clock is read: four TLS handshakes take a turn."""
_SLICE_S: Final = 0.00025
"""The part of a turn that is for `Slices`."""
_MANY_EVENTS: Final = 4
"""After so many events it is likely that more have come meanwhile, and we poll again."""
_MAX_POLLS_WAITED: Final = 4
"""Polls that find something, before `call_when_quiet` waits no longer."""

_log = logging.getLogger("penstock.proxy")


@trait
class EventHandler:
    """The owner of a registered descriptor."""

    __slots__ = ()

    def ready(self, events: int) -> None:
        """It is ready for `events`, or has failed (EPOLLERR and EPOLLHUP are always reported)."""
        raise NotImplementedError

    def send_deferred(self) -> None:
        """All ready handlers have been called. Called only on those in `Reactor.deferred`."""
        raise NotImplementedError

    def failed(self) -> None:
        """A method of this handler raised an unexpected exception."""
        raise NotImplementedError


class Slices:
    """Does work for many, a slice in each turn of the loop.

    A work is an iterator: each of its steps is short, and others may change what it works on
    between two of them. So it has to go through a copy, or to take out what it works on.
    """

    __slots__ = ("_lag", "_loop", "_running", "_scheduled", "_works")

    def __init__(self, loop: asyncio.AbstractEventLoop, lag: LagHistogram) -> None:
        self._loop = loop
        self._lag = lag
        self._works: deque[Iterator[object]] = deque()
        self._running = False
        self._scheduled = False

    def run(self, work: Iterable[object]) -> None:
        """Go through `work` to its end. If nothing else waits the first slice is done at once,
        and with it all of a short work; the rest is done in later turns."""
        self._works.append(iter(work))
        if not (self._running or self._scheduled):
            self._run_slice(monotonic() + _SLICE_S)

    def run_soon(self, work: Iterable[object]) -> None:
        """`run`, with the first slice in the next turn: many of these may begin in this one."""
        self._works.append(iter(work))
        if not (self._running or self._scheduled):
            self._scheduled = True
            self._loop.call_soon(self._run_next)

    def _run_next(self) -> None:
        self._scheduled = False
        began = monotonic()
        self._run_slice(began + _SLICE_S)
        self._lag.observe(monotonic() - began)

    def _run_slice(self, end: float) -> None:
        works = self._works
        self._running = True
        while works:
            if not self._is_done(works[0], end):
                # The others have the next slice: what is short does not wait for what is long.
                works.rotate(-1)
                break
            works.popleft()
        self._running = False
        if works:
            self._scheduled = True
            self._loop.call_soon(self._run_next)

    def _is_done(self, work: Iterator[object], end: float) -> bool:
        try:
            for _ in work:
                if monotonic() >= end:
                    return False
        except Exception:  # noqa: BLE001 — whatever it is, the other works go on
            _log.exception("work for many could not be finished")
        return True


class Reactor:
    """Belongs to one event loop. In a proxy it lives as long as the process; tests `close` it."""

    __slots__ = (
        "_callbacks",
        "_epoll",
        "_first_handlers",
        "_handlers",
        "_later",
        "_left_at",
        "_loop",
        "_polls_waited",
        "_scheduled",
        "deferred",
        "dispatching",
        "is_current",
        "lag",
        "pipes",
        "slices",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll: select.epoll | None = None
        self._handlers: dict[int, EventHandler] = {}
        self._first_handlers: dict[int, EventHandler] = {}
        """Called before the others."""
        self._callbacks: list[Callable[[], None]] = []
        self._later: list[Callable[[], None]] = []
        """Called when a poll has found nothing, or after a few of them."""
        self._polls_waited = 0
        self._scheduled = False
        self.dispatching = False
        """Ready handlers are being called; those in `deferred` follow."""
        self._left_at = -1
        """The descriptor whose turn it was when the time was over. The kernel reports the others
        in the same order again, and whoever comes first would always be first."""
        self.is_current = False
        """What this turn's poll has found at those that are called first has been handled, and it
        has found all of it."""
        self.deferred: list[EventHandler] = []
        """Handlers that have something to send when all ready ones have been called."""
        self.lag = LagHistogram()
        """How long turns were, in which nobody else was served."""
        self.slices = Slices(loop, self.lag)
        self.pipes = Pipes()
        """For bytes that go from one connection to another."""

    def register(self, fd: int, handler: EventHandler, events: int, *, first: bool = False) -> None:
        """Call `handler.ready` whenever `fd` is ready for `events`, until `unregister`.

        `first`: before the handlers without this.
        """
        epoll = self._epoll
        if epoll is None:
            epoll = self._epoll = select.epoll()
            self._loop.add_reader(epoll.fileno(), self._run)
        epoll.register(fd, events)
        if first:
            self._first_handlers[fd] = handler
        else:
            self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events from now on."""
        assert self._epoll is not None
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Stop. Needed when no event is waited for: epoll would report an error again and again."""
        assert self._epoll is not None
        self.discard(fd)
        self._epoll.unregister(fd)

    def discard(self, fd: int) -> None:
        """Forget a descriptor that is about to be closed. The kernel drops it by itself then."""
        if self._handlers.pop(fd, None) is None:
            self._first_handlers.pop(fd, None)

    def call_after_events(self, callback: Callable[[], None]) -> None:
        """Call `callback` when all handlers that are ready now have been called."""
        self._callbacks.append(callback)
        if not (self.dispatching or self._scheduled):
            self._scheduled = True
            self._loop.call_soon(self._run_callbacks)

    def call_when_quiet(self, callback: Callable[[], None]) -> None:
        """Call `callback` when a poll finds nothing, or after a few of them.

        For work that is not needed if that comes first which mostly follows.
        """
        if not self._later:
            self._polls_waited = 0
            self._loop.call_soon(self._run_later)
        self._later.append(callback)

    def close(self) -> None:
        self._run_all_callbacks()
        self.pipes.close()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _run(self) -> None:
        assert self._epoll is not None
        poll = self._epoll.poll
        began = monotonic()
        end = began + _TURN_S
        now = began
        self.dispatching = True
        try:
            while now < end:
                self.is_current = False
                ready = poll(0, _MAX_EVENTS)
                if self._left_at >= 0:
                    ready = _beginning_with(self._left_at, ready)
                    self._left_at = -1
                all_first = self._dispatch(self._first_handlers, ready, end)
                self.is_current = all_first and len(ready) < _MAX_EVENTS
                self._dispatch(self._handlers, ready, end)
                if self._later:
                    self._postpone(found=len(ready))
                while self.deferred or self._callbacks:
                    self._send_deferred()
                    self._run_callbacks()
                now = monotonic()
                if len(ready) < _MANY_EVENTS:
                    break
        finally:
            self.dispatching = self.is_current = False
            self.lag.observe(now - began)

    def _postpone(self, found: int) -> None:
        """A poll has found so many events, which are handled."""
        self._polls_waited += 1
        if not found or self._polls_waited > _MAX_POLLS_WAITED:
            self._callbacks += self._later
            self._later.clear()

    def _run_later(self) -> None:
        if self._epoll is None:
            # Nothing can come.
            self._run_all_callbacks()
        elif self._later:
            self._run()
            if self._later:
                self._loop.call_soon(self._run_later)

    def _run_all_callbacks(self) -> None:
        self._callbacks += self._later
        self._later.clear()
        self._run_callbacks()

    def _dispatch(
        self, handlers: dict[int, EventHandler], ready: list[tuple[int, int]], end: float
    ) -> bool:
        """Call those of these handlers that are ready. False: the turn's time was over before."""
        left = _LOOKS
        for fd, events in ready:
            handler = handlers.get(fd)
            if handler is None:
                # It is one of the others, or the call of another handler has removed it.
                continue
            if not left:
                left = _LOOKS
                if monotonic() >= end:
                    self._left_at = fd
                    return False
            left -= 1
            try:
                handler.ready(events)
            except Exception:  # noqa: BLE001 — whatever it is, it is one connection's
                _log.exception("a connection could not be handled")
                handler.failed()
        return True

    def _send_deferred(self) -> None:
        deferred, self.deferred = self.deferred, []
        for handler in deferred:
            try:
                handler.send_deferred()
            except Exception:  # noqa: BLE001 — whatever it is, it is one connection's
                _log.exception("a connection could not be written to")
                handler.failed()

    def _run_callbacks(self) -> None:
        self._scheduled = False
        # A callback may append another one.
        for callback in self._callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 — whatever it is, it is one connection's
                _log.exception("the end of a connection could not be handled")
        self._callbacks.clear()


def _beginning_with(fd: int, ready: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same events, from those of this descriptor on, if it is among them."""
    at = next((index for index, (one, _) in enumerate(ready) if one == fd), 0)
    return ready[at:] + ready[:at]
