"""A connection under handoff that waits for a worker.

Owns: the descriptor, from the moment when no worker can take it until one does or the queue
timeout is over. Must not know: links, or which worker is picked; it asks its dispatcher.
"""

import os
from time import monotonic

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import STOP_TIMEOUT
from penstock_proxy.net.timer_wheel import NEVER, HasDeadline
from penstock_proxy.service.context import ServiceContext


class PendingOwner:
    """What a `Pending` needs of its dispatcher."""

    def send_to_worker(
        self, fd: int, address: str, tried: tuple[Member, ...], waiting_since: float
    ) -> bool:
        """Pick a worker and enqueue the connection; False if no worker can take it now."""
        raise NotImplementedError

    def watch_links(self) -> None:
        """A connection waits: wake up for the first report of any worker."""
        raise NotImplementedError

    def pending_closed(self) -> None:
        """A connection that waited was sent to a worker, or is closed."""
        raise NotImplementedError


class Pending(HasDeadline):
    """One connection that waits for a worker."""

    __slots__ = (
        "_dispatcher",
        "_fd",
        "_service",
        "_tried",
        "address",
        "started",
    )

    def __init__(
        self,
        dispatcher: PendingOwner,
        service: ServiceContext,
        fd: int,
        address: str,
        tried: tuple[Member, ...] = (),
        waiting_since: float | None = None,
    ) -> None:
        """`waiting_since`: when it came, if it has waited before."""
        self._dispatcher = dispatcher
        self._service = service
        self._fd = fd
        self._tried = tried
        self.address = address
        self.started = monotonic() if waiting_since is None else waiting_since
        self.deadline = NEVER
        self.bucket = NEVER

    def dispatch(self) -> None:
        """Try again; wait on if there is still no worker."""
        if not self._dispatcher.send_to_worker(self._fd, self.address, self._tried, self.started):
            self.wait()
            return
        self._service.timers.disarm(self)
        self._dispatcher.pending_closed()

    def wait(self) -> None:
        """Join the queue; if that is not possible, close the connection."""
        self._tried = ()
        service = self._service
        wait_s = service.enqueue(self, self.dispatch, self.started)
        if isinstance(wait_s, float):
            service.timers.arm(self, monotonic() + wait_s)
            self._dispatcher.watch_links()
        else:
            self._reject(wait_s.kind)

    def expired(self, now: float) -> None:
        self._service.queue.remove(self)
        self._reject(self._service.no_worker().kind)

    def cut(self) -> bool:
        """The time to finish is over, and no worker has taken it: close the connection."""
        service = self._service
        service.queue.remove(self)
        service.counters.errors[STOP_TIMEOUT.kind] += 1
        self._close()
        return True

    def _reject(self, reason: str) -> None:
        self._service.counters.rejected[reason] += 1
        self._close()

    def _close(self) -> None:
        self._service.timers.disarm(self)
        os.close(self._fd)
        self._dispatcher.pending_closed()
