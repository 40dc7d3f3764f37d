"""How many requests each member of a service had, counted some in each step.

Owns: which counters that are, by mode. A thousand members have several thousand counters: to add
them up at once would take half a turn of the loop. What is counted meanwhile may be in it or not.
Must not know: what the numbers are for (`stats`, `balancing.outlier_detection`).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from penstock_proxy.balancing.pool import Member
from penstock_proxy.http.context import HttpContext

_BATCH: Final = 128
"""Counters of one step."""


def counting(
    service: HttpContext, members: Sequence[Member], counts: dict[Member, int], *, of_http: bool
) -> Iterator[None]:
    """Put the requests or connections of each of these since the start, failed or not, into
    `counts`."""
    counters = service.counters
    if not of_http:
        # `worker_connections` has only those that were established: failed ones are added.
        for at in range(0, len(members), _BATCH):
            for member in members[at : at + _BATCH]:
                counts[member] = counters.worker_connections[member] + member.total_failures
            yield
        return
    ended: defaultdict[object, int] = defaultdict(int)
    requests = tuple(counters.requests.items())
    for at in range(0, len(requests), _BATCH):
        for (_, _, worker), count in requests[at : at + _BATCH]:
            ended[worker] += count
        yield
    for at in range(0, len(members), _BATCH):
        for member in members[at : at + _BATCH]:
            counts[member] = ended[member] + member.retried_elsewhere
        yield
