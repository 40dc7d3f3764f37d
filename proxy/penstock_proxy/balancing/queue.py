"""Those who wait for a worker, in the order in which they came.

Owns: the queue of one service, how long it may get, and what somebody who is not served is
told. Must not know: what waits, or who is free. It holds, for each that waits, the callable that
serves it. No I/O, no clock.

There is one queue for all workers: whoever is free takes the first, so nobody waits behind
a slow one. It is bounded by number and by time; what cannot be served in time is refused
while its client still listens, and costs no worker anything.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import ceil

from penstock_proxy.config import Limits
from penstock_proxy.errors import NO_WORKER, QUEUE_FULL, QUEUE_TIMEOUT, Fault


class Queue(OrderedDict[object, Callable[[], None]]):
    """First come, first served; every step costs the same however many wait.

    Not a dict: to find the first of one, all that have left since it grew are passed. And
    one by inheritance, as every request asks whether anybody waits.
    """

    __slots__ = ("_limits", "_patience_s")

    def __init__(self, limits: Limits, patience_s: float) -> None:
        super().__init__()
        self._limits = limits
        self._patience_s = patience_s

    def enter(
        self, who: object, serve: Callable[[], None], started: float, now: float, workers: int
    ) -> Fault | float:
        """Wait at the end: the seconds left for that, or why it may not.

        `serve`: called when its turn has come. `started`: since when it has been on its way;
        `workers`: how many are in the rotation.
        """
        patience = started + self._patience_s - now
        if patience <= 0:
            return nobody(workers)
        if len(self) >= self._room(workers):
            return QUEUE_FULL
        self[who] = serve
        return patience

    def _room(self, workers: int) -> int:
        limits = self._limits
        if not limits.queue_per_worker:
            return limits.queue
        # While there is no worker at all one is about to come back.
        return min(limits.queue, limits.queue_per_worker * max(1, workers))

    def first(self) -> Callable[[], None]:
        """Take out the one who has waited longest: what serves it. KeyError: nobody waits."""
        return self.popitem(last=False)[1]

    def leave(self, who: object) -> None:
        """It waits no more; harmless if it did not."""
        self.pop(who, None)


def nobody(workers: int) -> Fault:
    """Why somebody was not served, with so many workers in the rotation."""
    return QUEUE_TIMEOUT if workers else NO_WORKER


def retry_after(fault: Fault, now: float, back: Iterable[float], patience_s: float) -> int:
    """Whole seconds after which a client that got a 503 may try again, at least 1.

    `back`: when workers that were ejected come back; `patience_s`: how long others wait now.
    What else may end the trouble, a restart above all, is a matter of moments or unknown.
    """
    known = [at - now for at in back]
    if fault is QUEUE_FULL or fault is QUEUE_TIMEOUT:
        known.append(patience_s)
    return max(1, ceil(min(known, default=1.0)))
