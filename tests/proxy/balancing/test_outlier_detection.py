"""One that fails far more than the others is found, whatever comes between; nobody else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.outlier_detection import WINDOW_S, OutlierDetection
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import Ejection

HALF = Ejection(share=0.5, requests=20)


class Town:
    """Workers that do as they are told, and who looks at them each second."""

    def __init__(self, n: int, ejection: Ejection = HALF) -> None:
        self.members = [Member(slot, "", 1, MemberState.UP) for slot in range(n)]
        self.requests = dict.fromkeys(self.members, 0)
        self.now = 100.0
        self.outlier_detection = OutlierDetection(ejection, self.now)
        self.second()

    def second(self, *did: tuple[int, int]) -> str:
        """Each fails so many of so many in a second; who is found, and why."""
        for member, (failed, count) in zip(self.members, did, strict=False):
            member.total_failures += failed
            self.requests[member] += count
        self.now += 1.0
        assert self.outlier_detection.is_due(self.now)
        found = self.outlier_detection.worst(self.requests, self.now)
        assert not self.outlier_detection.is_due(self.now + 0.75)
        return f"{found.member.slot}: {found.description}" if found else ""


@pytest.mark.parametrize(
    ("did", "found"),
    [
        pytest.param([(10, 20), (0, 20), (0, 20)], "0: 10 failures of 20 requests", id="half"),
        pytest.param([(9, 20), (0, 20), (0, 20)], "", id="less than half"),
        pytest.param([(19, 19), (0, 20), (0, 20)], "", id="too few to say"),
        pytest.param([(10, 20), (15, 20), (0, 20)], "1: 15 failures of 20 requests", id="worst"),
        pytest.param([(10, 20), (10, 20), (10, 20)], "", id="all of them"),
        pytest.param([(20, 20), (11, 20), (11, 20)], "", id="not twice as often"),
        pytest.param([(20, 20), (10, 20), (10, 20)], "0: 20 failures of 20 requests", id="twice"),
        pytest.param([(10, 20), (0, 0), (0, 0)], "", id="nobody to compare with"),
        # A request counts as given when it is over, and may fail before.
        pytest.param([(20, 15), (0, 20)], "0: 20 failures of 20 requests", id="not over yet"),
    ],
)
def test_who_is_an_outlier(did: list[tuple[int, int]], found: str) -> None:
    assert Town(len(did)).second(*did) == found


def test_it_adds_up_ten_seconds_and_no_more() -> None:
    town = Town(2)
    said = [town.second((1, 2), (0, 2)) for _ in range(WINDOW_S)]
    assert said == [*[""] * 9, "0: 10 failures of 20 requests"]
    # From now on nothing fails, and the failures go out of sight one by one.
    assert town.second((0, 2), (0, 2)) == ""
    assert town.second((20, 20), (0, 20)) != ""
    said = [town.second() for _ in range(WINDOW_S)]
    assert all(said[:-1])
    assert not said[-1]


def test_what_was_before_it_came_into_the_rotation_is_not_held_against_it() -> None:
    town = Town(2)
    assert town.second((20, 20), (0, 20)) != ""
    bad = town.members[0]
    bad.state = MemberState.EJECTED
    assert town.second((0, 0), (0, 20)) == ""
    bad.state, bad.up_since = MemberState.UP, town.now
    assert town.second((1, 20), (0, 20)) == ""
    assert town.second((19, 20), (0, 20)) == "0: 20 failures of 40 requests"


def test_one_that_was_added_up_is_judged_by_what_it_did_since() -> None:
    town = Town(2)
    town.second((0, 20), (0, 20))
    # Up for ever, as far as it says: it was before a restart.
    new = Member(2, "", 1, MemberState.UP)
    town.members.append(new)
    town.requests[new] = 1000
    assert town.second((0, 20), (0, 20), (20, 20)) == ""
    assert town.second((0, 20), (0, 20), (19, 19)) == ""
    assert town.second((0, 20), (0, 20), (1, 1)) == "2: 20 failures of 20 requests"


def test_one_that_was_removed_is_not_found_and_is_forgotten() -> None:
    town = Town(3)
    town.second((10, 20), (0, 20), (0, 20))
    bad = town.members.pop(0)
    del town.requests[bad]
    assert town.second((0, 20), (0, 20)) == ""
    for _ in range(WINDOW_S):
        town.second((0, 1), (0, 1))
    assert all(bad not in seen for _, seen in town.outlier_detection._samples)


def test_without_a_share_nobody_looks() -> None:
    outliers = OutlierDetection(Ejection(share=0.0), 0.0)
    assert not outliers.is_due(1000.0)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=3, max_size=3),
        max_size=30,
    )
)
def test_who_never_fails_is_never_found(seconds: list[list[tuple[int, int]]]) -> None:
    town = Town(3)
    for did in seconds:
        (_, count), *others = did
        assert not town.second((0, count), *others).startswith("0:")
