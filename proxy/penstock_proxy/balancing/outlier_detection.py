"""Outlier detection: which worker fails a much larger share of its requests than the others?

Owns: how many requests each worker of one service had and failed in the last ten seconds,
second by second, and which of them is an outlier. Must not know: what a failure is (`retry`),
what is done about it (`pool`). No I/O, no clock.

A worker that fails every second request never fails five in a row. But a share alone would
also condemn the healthy for a request that fails wherever it goes; so a worker's share is held
against it only if it is at least twice that of the others together (Envoy compares success
rates for the same reason). All is read from counters that are there anyway, once a second:
a request costs nothing. These counters also say who is a member, so nothing has to be done
when one is added; a removed one is forgotten within the ten seconds.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import Ejection

WINDOW_S: Final = 10
"""How far it looks back."""
_INTERVAL_S: Final = 1.0
_TIMES_THE_OTHERS: Final = 2
"""As many failures as the others have, for as many requests, are its own fault."""


class Outlier(NamedTuple):
    """The worst one, and why."""

    member: Member
    failed: int
    requests: int

    @property
    def description(self) -> str:
        return f"{self.failed} failures of {self.requests} requests"


class OutlierDetection:
    """Of one service, as one proxy sees it."""

    __slots__ = ("_failure_ratio", "_min_requests", "_sampled_at", "_samples")

    def __init__(self, ejection: Ejection, now: float) -> None:
        self._failure_ratio = ejection.share
        self._min_requests = ejection.requests
        self._sampled_at = now
        self._samples: deque[tuple[float, dict[Member, tuple[int, int]]]] = deque(maxlen=WINDOW_S)
        """When, and what each had failed and was given by then."""

    def is_due(self, now: float) -> bool:
        """Is it time to look again?"""
        return self._failure_ratio > 0 and now - self._sampled_at >= _INTERVAL_S

    def worst(self, given: Mapping[Member, int], now: float) -> Outlier | None:
        """The one that fails most, if that is too much; `given`: since the start, to all."""
        self._sampled_at = now
        found = list(self._recent(given, now))
        self._samples.append(
            (now, {one: (one.total_failures, count) for one, count in given.items()})
        )
        bad = [one for one in found if self._is_outlier(one, found)]
        return max(bad, key=lambda one: one.failed / one.requests, default=None)

    def _recent(self, given: Mapping[Member, int], now: float) -> Iterable[Outlier]:
        """What each in the rotation did since it last came into it, or for as long as it counts."""
        for member, count in given.items():
            if member.state is not MemberState.UP:
                continue
            since = max(member.up_since, now - WINDOW_S)
            for at, seen in self._samples:
                # A member that was up when it was added is missing in older samples.
                if at >= since and member in seen:
                    failed, before = seen[member]
                    # A request counts as given when it is over: failures may come first.
                    of = max(count - before, member.total_failures - failed)
                    yield Outlier(member, member.total_failures - failed, of)
                    break

    def _is_outlier(self, one: Outlier, all_: Iterable[Outlier]) -> bool:
        if one.requests < self._min_requests or one.failed < self._failure_ratio * one.requests:
            return False
        others = [other for other in all_ if other is not one]
        failed, given = sum(o.failed for o in others), sum(o.requests for o in others)
        return given > 0 and one.failed * given >= _TIMES_THE_OTHERS * failed * one.requests
