"""A connection under handoff that waits for a worker.

Owns: the descriptor, from the moment no worker can take it until one does or its time is over.
On its way a connection has no object; only one that has to wait becomes one of these. Must not
know: links, or who is picked; it asks its dispatcher.
"""

import os
from time import monotonic

from penstock_proxy.balancing.pool import Member
from penstock_proxy.net.timer_wheel import NEVER
from penstock_proxy.service.context import ServiceContext


class Dispatching:
    """What those who wait need of their dispatcher."""

    def pass_on(self, fd: int, address: str, tried: tuple[Member, ...], since: float) -> bool:
        """Pick a worker and put it on its way; False if nobody can take it now."""
        raise NotImplementedError

    def watch_links(self) -> None:
        """Somebody waits: the first word of any worker counts."""
        raise NotImplementedError

    def pending_closed(self) -> None:
        """A connection that waited has gone to a worker, or is closed."""
        raise NotImplementedError


class Pending:
    """One connection that waits."""

    __slots__ = (
        "_dispatcher",
        "_fd",
        "_service",
        "_tried",
        "address",
        "bucket",
        "deadline",
        "started",
    )

    def __init__(
        self,
        dispatcher: Dispatching,
        service: ServiceContext,
        fd: int,
        address: str,
        tried: tuple[Member, ...] = (),
        since: float | None = None,
    ) -> None:
        """`since`: if it has waited before."""
        self._dispatcher = dispatcher
        self._service = service
        self._fd = fd
        self._tried = tried
        self.address = address
        self.started = monotonic() if since is None else since
        self.deadline = NEVER
        self.bucket = NEVER

    def dispatch(self) -> None:
        """Try again; wait if there is still nobody."""
        if not self._dispatcher.pass_on(self._fd, self.address, self._tried, self.started):
            self.wait()
            return
        self._service.timers.disarm(self)
        self._dispatcher.pending_closed()

    def wait(self) -> None:
        """Wait for a worker, if there may be one in time."""
        self._tried = ()
        service = self._service
        patience = service.enqueue(self, self.dispatch, self.started)
        if isinstance(patience, float):
            service.timers.arm(self, monotonic() + patience)
            self._dispatcher.watch_links()
        else:
            self._give_up(patience.kind)

    def expired(self, now: float) -> None:
        self._service.queue.remove(self)
        self._give_up(self._service.no_worker().kind)

    def _give_up(self, reason: str) -> None:
        service = self._service
        service.timers.disarm(self)
        service.counters.rejected[reason] += 1
        os.close(self._fd)
        self._dispatcher.pending_closed()
