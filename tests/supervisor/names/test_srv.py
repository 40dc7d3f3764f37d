"""Of the records of a service those of the best priority are used, with weights that we have."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.names.answers import MAX_ENDPOINTS, SrvRecord
from penstock_supervisor.names.srv import chosen


def record(priority: int, weight: int, target: str = "a", port: int = 80) -> SrvRecord:
    return SrvRecord(priority, weight, port, target)


def test_only_the_lowest_priority_is_used() -> None:
    best = chosen([record(2, 50, "c"), record(1, 5, "a"), record(1, 7, "b")])
    assert [(one.target, one.weight) for one in best] == [("b", 7), ("a", 5)]


def test_weights_keep_their_proportion_and_the_smallest_is_one() -> None:
    best = chosen([record(0, 60000, "a"), record(0, 30000, "b"), record(0, 1, "c")])
    assert [one.weight for one in best] == [100, 50, 1]
    assert [one.weight for one in chosen([record(0, 0, "a"), record(0, 0, "b")])] == [1, 1]


def test_a_record_without_a_port_or_a_target_is_none() -> None:
    assert chosen([record(0, 1, ""), record(0, 1, "a", port=0)]) == ()
    assert chosen([record(0, 1, ""), record(9, 1, "a")]) == (record(9, 1, "a"),)
    assert chosen([record(0, 1, one) for one in ("a b", "a\n", "a:1", "\\010", "é")]) == ()


RECORDS = st.builds(
    SrvRecord,
    st.integers(0, 2),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.text("ab", max_size=12),
)


@given(st.lists(RECORDS, max_size=600), st.randoms(use_true_random=False))
def test_their_order_does_not_matter_and_no_answer_is_too_large(
    records: list[SrvRecord], random: object
) -> None:
    best = chosen(records)
    assert len(best) <= MAX_ENDPOINTS
    assert all(1 <= one.weight <= 100 and one.port and one.target for one in best)
    shuffled = [*records]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert chosen(shuffled) == best
