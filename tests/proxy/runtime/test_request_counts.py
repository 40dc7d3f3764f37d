"""Requests of a thousand members are counted and judged some in each step, and none is left out."""

import random

import pytest
from tests.proxy.balancing.test_rotation import Events
from tests.proxy.conftest import Harness

from penstock_proxy.balancing.outlier_detection import Outlier, OutlierDetection
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import Ejection
from penstock_proxy.runtime.request_counts import counting

MANY = 1000


def members() -> tuple[Member, ...]:
    return Events("random", random.Random(1), MANY, 1).pool.members


@pytest.mark.parametrize("of_http", [True, False])
def test_what_members_had_is_counted_some_in_each_step(harness: Harness, of_http: bool) -> None:
    counters, all_ = harness.service.counters, members()
    for number, member in enumerate(all_):
        for status in (200, 404):
            counters.requests["GET", status, member] += number
        counters.requests["GET", 0, None] += 1
        counters.worker_connections[member] += 3 * number
        member.retried_elsewhere, member.total_failures = 5, 7
    counts: dict[Member, int] = {}
    most = before = 0
    for _ in counting(harness.service, all_, counts, of_http=of_http):
        most, before = max(most, len(counts) - before), len(counts)
    assert 0 < most <= 128
    times, more = (2, 5) if of_http else (3, 7)
    assert counts == {member: times * number + more for number, member in enumerate(all_)}


def test_members_are_judged_some_in_each_step() -> None:
    all_ = members()
    detection = OutlierDetection(Ejection(share=0.5, requests=20), 0.0)
    assert detection.worst(dict.fromkeys(all_, 0), 0.0) is None
    bad = all_[700]
    bad.total_failures = 30
    requests = dict.fromkeys(all_, 40)
    found: list[Outlier] = []
    steps = 0
    for _ in detection.judging(requests, 1.0, found):
        steps += 1
        if steps == 3:
            # Another one has come meanwhile, and a sample was made for it.
            all_[2].up_since = 1.05
            detection.entered(all_[2], lambda: dict.fromkeys(all_, 41))
    assert steps >= MANY / 64
    assert [(one.member, one.failed, one.requests) for one in found] == [(bad, 30, 40)]
    assert [at for at, _ in detection._samples] == [0.0, 1.0, 1.05]
