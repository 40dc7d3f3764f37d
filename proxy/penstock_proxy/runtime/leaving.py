"""A service that was removed from the configuration, until nothing of it is left.

Owns: when it is gone, and what it had counted. It accepts what waits in the queues of its
listeners, ends what is idle and finishes the rest; what has not ended in time is cut. Then its
sockets, tasks and log are closed, and nobody refers to it. Must not know: why it was removed.
"""

from collections.abc import Iterator

from penstock_proxy.metrics import Series, series
from penstock_proxy.runtime import stats
from penstock_proxy.runtime.cuts import Cuts
from penstock_proxy.runtime.service import Service


class LeavingService:
    """One such service."""

    __slots__ = ("_cut", "_cuts", "_gone_at", "service")

    def __init__(
        self, service: Service, cuts: Cuts, now: float, finish_s: float, last_close_s: float
    ) -> None:
        """`finish_s`: then it is cut. `last_close_s`: after that, for clients to take what they
        were sent last."""
        self.service = service
        self._cuts = cuts
        self._gone_at = now + finish_s + last_close_s
        self._cut = cuts.cut_service(service, finish_s)

    def draining(self) -> Iterator[None]:
        """Accept what waits, and tell what is idle to end; a part in each step."""
        return self.service.draining()

    def cut_within(self, seconds: float) -> None:
        """The process stops: the earlier end holds."""
        self._cuts.cut_service(self.service, seconds)

    def is_gone(self, now: float) -> bool:
        """Nothing is left of it, or its time is over."""
        return now >= self._gone_at or (self.is_empty and not self.service.counters.opened)

    @property
    def is_empty(self) -> bool:
        """It has no client here. Workers may still have some that were handed over to them."""
        counters = self.service.counters
        return self.service.has_drained and not counters.active + counters.in_flight

    def closing(self) -> Iterator[None]:
        """Close what is left, a part in each step."""
        self._cut.cancel()
        return self.service.closing()

    def series(self) -> Series:
        """What it has counted so far."""
        stats.update_gauges(self.service)
        return series(self.service.counters, self.service.error_log.dropped)
