"""A worker that fails far more requests than the others is found, and no other one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.outlier_detection import WINDOW_S, OutlierDetection
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import Ejection

HALF = Ejection(share=0.5, requests=20)


class Workers:
    """Workers with given results, and their outlier detection."""

    def __init__(self, n: int, ejection: Ejection = HALF) -> None:
        self.members = [Member(slot, slot, "", 1, MemberState.UP) for slot in range(n)]
        self.requests = dict.fromkeys(self.members, 0)
        self.now = 100.0
        self.outlier_detection = OutlierDetection(ejection, self.now)
        self.pass_second()

    def pass_second(self, *results: tuple[int, int]) -> str:
        """In one second each worker has (failures, requests); returns the outlier, described."""
        for member, (failed, count) in zip(self.members, results, strict=False):
            member.total_failures += failed
            self.requests[member] += count
        self.now += 1.0
        assert self.outlier_detection.is_due(self.now)
        found = self.outlier_detection.worst(self.requests, self.now)
        assert not self.outlier_detection.is_due(self.now + 0.75)
        return f"{found.member.slot}: {found.description}" if found else ""


@pytest.mark.parametrize(
    ("results", "found"),
    [
        pytest.param([(10, 20), (0, 20), (0, 20)], "0: 10 failures of 20 requests", id="half"),
        pytest.param([(9, 20), (0, 20), (0, 20)], "", id="less than half"),
        pytest.param([(19, 19), (0, 20), (0, 20)], "", id="too few requests"),
        pytest.param([(10, 20), (15, 20), (0, 20)], "1: 15 failures of 20 requests", id="worst"),
        pytest.param([(10, 20), (10, 20), (10, 20)], "", id="all of them"),
        pytest.param([(20, 20), (11, 20), (11, 20)], "", id="not twice as often"),
        pytest.param([(20, 20), (10, 20), (10, 20)], "0: 20 failures of 20 requests", id="twice"),
        pytest.param([(10, 20), (0, 0), (0, 0)], "", id="no other to compare with"),
        # A request counts as given when it is over, and may fail before.
        pytest.param([(20, 15), (0, 20)], "0: 20 failures of 20 requests", id="not over yet"),
    ],
)
def test_the_worst_member_is_an_outlier_if_it_fails_enough(
    results: list[tuple[int, int]], found: str
) -> None:
    assert Workers(len(results)).pass_second(*results) == found


def test_the_window_is_ten_seconds() -> None:
    workers = Workers(2)
    outliers = [workers.pass_second((1, 2), (0, 2)) for _ in range(WINDOW_S)]
    assert outliers == [*[""] * 9, "0: 10 failures of 20 requests"]
    # From now on nothing fails, and the failures go out of sight one by one.
    assert workers.pass_second((0, 2), (0, 2)) == ""
    assert workers.pass_second((20, 20), (0, 20)) != ""
    outliers = [workers.pass_second() for _ in range(WINDOW_S)]
    assert all(outliers[:-1])
    assert not outliers[-1]


def test_failures_before_it_entered_the_rotation_do_not_count() -> None:
    workers = Workers(2)
    assert workers.pass_second((20, 20), (0, 20)) != ""
    bad = workers.members[0]
    bad.state = MemberState.EJECTED
    assert workers.pass_second((0, 0), (0, 20)) == ""
    bad.state, bad.up_since = MemberState.UP, workers.now
    assert workers.pass_second((1, 20), (0, 20)) == ""
    assert workers.pass_second((19, 20), (0, 20)) == "0: 20 failures of 40 requests"


def test_a_member_that_was_added_as_up_is_measured_since_then() -> None:
    workers = Workers(2)
    workers.pass_second((0, 20), (0, 20))
    # Up for ever, as far as it knows: it was before a restart.
    new = Member(2, 2, "", 1, MemberState.UP)
    workers.members.append(new)
    workers.requests[new] = 1000
    assert workers.pass_second((0, 20), (0, 20), (20, 20)) == ""
    assert workers.pass_second((0, 20), (0, 20), (19, 19)) == ""
    assert workers.pass_second((0, 20), (0, 20), (1, 1)) == "2: 20 failures of 20 requests"


def test_a_removed_member_is_no_outlier_and_is_forgotten() -> None:
    workers = Workers(3)
    workers.pass_second((10, 20), (0, 20), (0, 20))
    bad = workers.members.pop(0)
    del workers.requests[bad]
    assert workers.pass_second((0, 20), (0, 20)) == ""
    for _ in range(WINDOW_S):
        workers.pass_second((0, 1), (0, 1))
    assert all(bad not in seen for _, seen in workers.outlier_detection._samples)


def test_all_are_compared_since_one_of_them_entered_the_rotation() -> None:
    workers = Workers(2)
    workers.pass_second((7, 20), (1, 30))
    new = Member(5, 0, "", 1, MemberState.UP, up_since=workers.now + 0.5)
    old, other = workers.members
    old.total_failures += 3
    workers.requests |= {old: 25, new: 0}
    workers.outlier_detection.entered(new, lambda: workers.requests)
    old.total_failures += 2
    new.total_failures += 5
    workers.requests |= {old: 28, other: 31, new: 4}
    workers.now += 1.0
    compared = workers.outlier_detection.compared(new, workers.requests, workers.now)
    assert compared == [(0, 2, 3), (1, 0, 1), (5, 5, 5)]


def test_they_are_compared_for_ten_seconds_at_most() -> None:
    workers = Workers(2)
    new = workers.members[0]
    workers.outlier_detection.entered(new, lambda: workers.requests)
    for _ in range(2 * WINDOW_S):
        workers.pass_second((1, 2), (0, 3))
    compared = workers.outlier_detection.compared(new, workers.requests, workers.now)
    assert compared == [(0, 10, 20), (1, 0, 30)]
    assert len(workers.outlier_detection._samples) == WINDOW_S + 1


def test_those_that_enter_at_once_share_a_sample() -> None:
    workers = Workers(9)
    for member in workers.members:
        member.up_since = workers.now + 0.5
        workers.outlier_detection.entered(member, lambda: workers.requests)
    assert len(workers.outlier_detection._samples) == 2


def test_without_a_share_there_is_no_sample() -> None:
    outliers = OutlierDetection(Ejection(share=0.0), 0.0)
    assert not outliers.is_due(1000.0)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=3, max_size=3),
        max_size=30,
    )
)
def test_a_member_that_never_fails_is_no_outlier(seconds: list[list[tuple[int, int]]]) -> None:
    workers = Workers(3)
    for results in seconds:
        (_, count), *others = results
        assert not workers.pass_second((0, count), *others).startswith("0:")
