"""The queue of requests and connections that wait for a worker: first in, first out.

Owns: the queue of one service, its limits, and the fault of a waiter that is not served. Must
not know: what waits, and which worker is free. For each waiter it holds a callable; calling it
serves that waiter. No I/O, no clock.

There is one queue for all workers, and the next free worker takes the first waiter, so that
nothing waits behind a slow worker. The queue is limited in length and in time. A waiter whose
time is over is refused at once, so no worker spends time on a client that has gone.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import ceil

from penstock_proxy.config import Limits
from penstock_proxy.errors import NO_WORKER, QUEUE_FULL, QUEUE_TIMEOUT, Fault


class Queue(OrderedDict[object, Callable[[], None]]):
    """The queue: each operation has constant cost.

    An OrderedDict and not a dict, because finding a dict's first key skips all keys that were
    removed since it last grew. By inheritance, because every request checks whether the queue is
    empty.
    """

    __slots__ = ("_limits", "_timeout_s")

    def __init__(self, limits: Limits, timeout_s: float) -> None:
        super().__init__()
        self.configure(limits, timeout_s)

    def configure(self, limits: Limits, timeout_s: float) -> None:
        """Set the limits for those that come from now on. Whoever waits already may stay."""
        self._limits = limits
        self._timeout_s = timeout_s

    def add(
        self, waiter: object, serve: Callable[[], None], started: float, now: float, workers: int
    ) -> Fault | float:
        """Add a waiter at the end. Returns the seconds that the waiter may wait, or a fault.

        `serve`: called when the waiter's turn comes. `started`: when its request began.
        `workers`: how many are in the rotation.
        """
        wait_s = started + self._timeout_s - now
        if wait_s <= 0:
            return no_worker_fault(workers)
        if len(self) >= self._capacity(workers):
            return QUEUE_FULL
        self[waiter] = serve
        return wait_s

    def _capacity(self, workers: int) -> int:
        limits = self._limits
        if not limits.queue_per_worker:
            return limits.queue
        # Without any worker the limit is that of one, because one may come back soon.
        return min(limits.queue, limits.queue_per_worker * max(1, workers))

    def pop_first(self) -> Callable[[], None]:
        """Remove the first waiter; returns the callable that serves it. KeyError: no waiter."""
        return self.popitem(last=False)[1]

    def remove(self, waiter: object) -> None:
        """Remove a waiter. Does nothing if it is not in the queue."""
        self.pop(waiter, None)


def no_worker_fault(workers: int) -> Fault:
    """The fault of a waiter that was not served; `workers`: how many are in the rotation."""
    return QUEUE_TIMEOUT if workers else NO_WORKER


def retry_after(fault: Fault, now: float, ejection_ends: Iterable[float], timeout_s: float) -> int:
    """Whole seconds after which a client that got a 503 may try again, at least 1.

    `ejection_ends`: when each ejected worker comes back. `timeout_s`: the queue's time-out.
    Other ends, such as that of a restart, cannot be predicted or are moments away.
    """
    seconds = [at - now for at in ejection_ends]
    if fault is QUEUE_FULL or fault is QUEUE_TIMEOUT:
        seconds.append(timeout_s)
    return max(1, ceil(min(seconds, default=1.0)))
