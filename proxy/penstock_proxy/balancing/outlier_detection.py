"""Outlier detection: which worker fails a much larger share of its requests than the others?

Owns: how many requests each worker of one service had and failed in the last ten seconds,
second by second, and which of them is an outlier. Must not know: what a failure is (`retry`), and
what follows from it (`pool`). No I/O, no clock.

A worker that fails every second request never fails five in a row, so its share of failures is
measured, too. But a request that fails everywhere would eject healthy workers. So a worker is an
outlier only if its share is at least twice that of all others together (Envoy compares success
rates for the same reason).

Everything is read once a second from counters that exist anyway, so requests cost nothing more.
The counters also tell which members exist: nothing has to be done when a member is added, and a
removed one is forgotten within ten seconds.

Failures in a row eject a member whatever the others do. So whoever wants to know whether it was
the member's own fault is told what all of them had since it came into the rotation.

See docs/decisions/0011-traffic-ejects-checks-decide.md.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import Ejection

WINDOW_S: Final = 10
"""The window, in seconds."""
_INTERVAL_S: Final = 1.0
_APART_S: Final = 0.05
"""Members that come into the rotation at once share a sample."""
_BATCH: Final = 64
"""Members that are looked at in one step."""
_TIMES_THE_OTHERS: Final = 2
"""An outlier's share of failures, as a multiple of the others' share."""


Recent = list[tuple[int, int, int]]
"""Of each member its number, its failures and its requests."""


class Outlier(NamedTuple):
    """A member, and its requests and failures within the window."""

    member: Member
    failed: int
    requests: int

    @property
    def description(self) -> str:
        return f"{self.failed} failures of {self.requests} requests"


class OutlierDetection:
    """Outlier detection of one service in one proxy."""

    __slots__ = ("_failure_ratio", "_min_requests", "_sampled_at", "_samples")

    def __init__(self, ejection: Ejection, now: float) -> None:
        self.configure(ejection)
        self._sampled_at = now
        self._samples: deque[tuple[float, dict[Member, tuple[int, int]]]] = deque()
        """The time, and each member's failures and requests until then."""

    def configure(self, ejection: Ejection) -> None:
        """Set what makes an outlier. The samples stay: they say what was, and not what is bad."""
        self._failure_ratio = ejection.share
        self._min_requests = ejection.requests

    def is_due(self, now: float) -> bool:
        """Is it time for the next sample?"""
        return self._failure_ratio > 0 and now - self._sampled_at >= _INTERVAL_S

    def worst(self, requests: Mapping[Member, int], now: float) -> Outlier | None:
        """The outlier with the largest share of failures, or None.

        `requests`: the number of requests of each member since the start.
        """
        found: list[Outlier] = []
        for _ in self.judging(requests, now, found):
            pass
        return found[0] if found else None

    def judging(
        self, requests: Mapping[Member, int], now: float, found: list[Outlier]
    ) -> Iterator[None]:
        """Put what `worst` returns into `found`, if there is one; some members in each step."""
        self._sampled_at = now
        members, recent = tuple(requests.items()), list[Outlier]()
        counts: dict[Member, tuple[int, int]] = {}
        for at in range(0, len(members), _BATCH):
            for member, count in members[at : at + _BATCH]:
                one = self._recent(member, count, now)
                if one is not None:
                    recent.append(one)
                counts[member] = (member.total_failures, count)
            yield
        self._keep(counts, now)
        failed = sum(one.failed for one in recent)
        total = sum(one.requests for one in recent)
        yield
        outliers = [one for one in recent if one.failed and self._is_outlier(one, failed, total)]
        if outliers:
            found.append(max(outliers, key=lambda one: one.failed / one.requests))

    def entered(self, member: Member, requests: Callable[[], Mapping[Member, int]]) -> None:
        """This member has just come into the rotation: what comes now is compared."""
        if not self._samples or member.up_since - self._samples[-1][0] >= _APART_S:
            self._sample(requests(), member.up_since)

    def compared(self, one: Member, requests: Mapping[Member, int], now: float) -> Recent:
        """What all members had within the window, but not before this one last came into the
        rotation, whether they are in it or not."""
        since = max(one.up_since, now - WINDOW_S)
        # One that is missing in the sample was added later.
        seen = next((seen for at, seen in reversed(self._samples) if at <= since), {})
        recent = []
        for member, count in requests.items():
            failed_before, count_before = seen.get(member, (0, 0))
            failed = member.total_failures - failed_before
            recent.append((member.number, failed, max(count - count_before, failed)))
        return recent

    def _sample(self, requests: Mapping[Member, int], now: float) -> None:
        counts = {member: (member.total_failures, count) for member, count in requests.items()}
        self._keep(counts, now)

    def _keep(self, counts: dict[Member, tuple[int, int]], now: float) -> None:
        later = []
        while self._samples and self._samples[-1][0] > now:
            # It was made while this one was.
            later.append(self._samples.pop())
        self._samples.append((now, counts))
        self._samples.extend(reversed(later))
        # The first one that is kept is what the whole window is compared with.
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()

    def _recent(self, member: Member, count: int, now: float) -> Outlier | None:
        """Requests and failures of a member in the rotation, within the window, but not before it
        last entered the rotation. None: it is not in it, or has just come."""
        if member.state is not MemberState.UP:
            return None
        since = max(member.up_since, now - WINDOW_S)
        for at, seen in self._samples:
            # A member that was added later is missing in older samples.
            if at >= since and member in seen:
                failed_before, count_before = seen[member]
                failed = member.total_failures - failed_before
                # A request is counted at its end: its failures may be counted before.
                return Outlier(member, failed, max(count - count_before, failed))
        return None

    def _is_outlier(self, one: Outlier, failed: int, requests: int) -> bool:
        """`failed` and `requests`: of all together."""
        if one.requests < self._min_requests or one.failed < self._failure_ratio * one.requests:
            return False
        failed, requests = failed - one.failed, requests - one.requests
        return requests > 0 and one.failed * requests >= _TIMES_THE_OTHERS * failed * one.requests
