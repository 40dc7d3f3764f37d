"""The end of a worker: from the notice that it has to leave to what is cut when the time is over.

Owns the order, and the deadline that the supervisor has set:

    notice   STOP: the program's own shutdown begins, and tells those that would stay. Clients
             are still accepted.
    leave    TERM: nothing more is accepted, and what is open finishes.
    cut      the time to finish is over: what is still open is ended so that its client sees it.

The clean-up comes after that, and is the caller's. Without a notice TERM is one, and without a
deadline (somebody else has sent the TERM) what is open may take as long as it likes.

A loop that is blocked cannot cut anything. The kernel would close its connections when the process
is killed, with an end of file, and a client could take that for the end of its response. So a
thread has the kernel reset them, a little before the process is killed.

Must not know HTTP, nor how a server tells its clients.
"""

import asyncio
import threading
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import Final, Protocol

from penstock_worker.listener.connections import Connections

_CANCEL_S: Final = 0.25
"""For handlers that were cancelled to end before the program cleans up. At most: a handler that
ignores it does not keep the clean-up from its time."""


class Leaving(Protocol):
    """What leaves: a server."""

    async def farewell(self) -> None:
        """Run the program's own shutdown, and tell clients that would stay that the end comes."""

    def begin_drain(self) -> None:
        """From now on each response ends its connection."""

    async def finish(self) -> None:
        """Return when nothing is in flight any more."""

    def cut(self) -> int:
        """End what is in flight, so that its clients see it. Returns how much that was."""


class Departure:
    """Made when the process starts; `run` ends when the worker may clean up."""

    def __init__(
        self, loop: AbstractEventLoop, leave: asyncio.Event, on_cut: Callable[[int], None]
    ) -> None:
        """`leave` is set to have the worker leave. `on_cut(count)` is called if something was
        cut."""
        self._loop = loop
        self._leave = leave
        self._on_cut = on_cut
        self._noticed = asyncio.Event()
        self._over = asyncio.Event()
        self._cut_at: float | None = None
        self._timer: TimerHandle | None = None
        self._reset_timer: threading.Timer | None = None
        self._connections: Connections | None = None

    def notice(self, finish_s: float, within_s: float) -> None:
        """The worker has to leave: what is open may take `finish_s` seconds, and the process is
        killed after `within_s`. If this is said again, the earlier end holds."""
        cut_at = self._loop.time() + finish_s
        if self._cut_at is None or cut_at < self._cut_at:
            self._cut_at = cut_at
            self._cancel_timers()
            self._timer = self._loop.call_at(cut_at, self._time_is_over)
            self._reset_timer = threading.Timer((finish_s + within_s) / 2, self._reset_on_close)
            self._reset_timer.daemon = True
            self._reset_timer.start()
        self._noticed.set()

    async def run(self, server: Leaving, connections: Connections) -> None:
        """Wait until the worker has to leave, and let it finish. What the program's own shutdown
        raises is passed on, at the end."""
        self._connections = connections
        try:
            await _first(self._noticed.wait(), self._leave.wait())
            farewell = self._loop.create_task(server.farewell())
            # A supervisor that gave notice and is stuck now does not keep this from its end.
            await _first(self._leave.wait(), self._over.wait())
            self._leave.set()
            server.begin_drain()
            finish = self._loop.create_task(_finish(server, connections, farewell))
            await _first(asyncio.wait((finish,)), self._over.wait())
            if not finish.done():
                self._cut(server.cut())
                finish.cancel()
                farewell.cancel()
                await asyncio.wait((finish, farewell), timeout=_CANCEL_S)
            for task in (farewell, finish):
                if task.done() and not task.cancelled():
                    task.result()
        finally:
            self._cancel_timers()

    def _time_is_over(self) -> None:
        self._over.set()

    def _cut(self, count: int) -> None:
        if count:
            self._on_cut(count)

    def _reset_on_close(self) -> None:
        # In a thread of its own: the loop is blocked, or the program's clean-up takes long.
        if self._connections is not None:
            self._connections.reset_on_close()

    def _cancel_timers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reset_timer is not None:
            self._reset_timer.cancel()


async def _finish(
    server: Leaving, connections: Connections, farewell: "asyncio.Task[None]"
) -> None:
    await connections.drain()
    await asyncio.wait((farewell,))
    await server.finish()


async def _first(*awaitables: "asyncio._CoroutineLike[object]") -> None:
    """Return when one of them has ended; the others are cancelled."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(one) for one in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
