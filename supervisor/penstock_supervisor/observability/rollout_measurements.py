"""What is measured of a roll-out: its requests, and how its canary does beside the others.

Owns no numbers: each is taken from a snapshot when it is asked for.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from penstock_supervisor.observability import request_count
from penstock_supervisor.observability.canary_counts import canary_counts
from penstock_supervisor.rollout.canary import Judgement, judge
from penstock_supervisor.rollout.request_totals import RequestTotals
from penstock_supervisor.snapshot import Snapshot

_COUNT_S: Final = 1.0
"""For children to say how many requests they had."""


class RolloutMeasurements:
    def __init__(self, take_snapshot: Callable[[float], Awaitable[Snapshot]]) -> None:
        self._take_snapshot = take_snapshot

    async def requests(self) -> RequestTotals:
        """All requests so far."""
        return request_count.count(await self.sample())

    async def sample(self) -> Snapshot:
        return await self._take_snapshot(_COUNT_S)

    def judge(
        self, before: Snapshot, now: Snapshot, service: str, member: int, *, early: bool
    ) -> Judgement:
        """Compare a worker with the others of its service, by what was counted since `before`.
        `early`: its time is not over."""
        counts = canary_counts(before, service), canary_counts(now, service)
        return judge({member}, *counts, early=early)
