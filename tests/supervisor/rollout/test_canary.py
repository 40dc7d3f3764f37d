"""A worse version is found out, and a version that is as good is not called worse by chance."""

import math
from bisect import bisect_left
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_supervisor.rollout.canary import (
    MIN_REQUESTS,
    NOTHING,
    Counts,
    Judgement,
    Verdict,
    judge,
    tail,
)
from penstock_worker.telemetry.counters import BUCKETS_S

CANARY, OTHERS = 9, (0, 1, 2)


def durations(*seconds: tuple[float, int]) -> tuple[int, ...]:
    """So many requests that took so long."""
    counts = [0] * (len(BUCKETS_S) + 1)
    for one, count in seconds:
        counts[bisect_left(BUCKETS_S, one)] += count
    return tuple(counts)


def all_took(count: int, seconds: float = 0.004) -> tuple[int, ...]:
    return durations((seconds, count))


def compare(ours: Counts, theirs: Counts, *, early: bool = False) -> Judgement:
    """`theirs` are spread over three workers, and two proxies count."""
    now = {(CANARY, 1): ours}
    for at, member in enumerate(OTHERS):
        now[member, at % 2] = Counts(
            _third(theirs.requests, at),
            _third(theirs.failures, at),
            tuple(_third(one, at) for one in theirs.durations),
        )
    return judge([CANARY], {}, now, early=early)


def _third(count: int, at: int) -> int:
    return count // 3 + (at < count % 3)


def failing(failures: int, requests: int) -> Counts:
    return Counts(requests, failures, all_took(requests))


def slow(requests: int, *seconds: tuple[float, int]) -> Counts:
    rest = requests - sum(count for _, count in seconds)
    return Counts(requests, 0, durations((0.004, rest), *seconds))


# Failures


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((0, 1000), (0, 7000), Verdict.GOOD),
        ((0, 1000), (700, 7000), Verdict.GOOD),
        ((1, 1000), (0, 7000), Verdict.GOOD),
        ((3, 1000), (0, 7000), Verdict.WORSE),
        ((10, 1000), (70, 7000), Verdict.GOOD),
        ((13, 1000), (70, 7000), Verdict.GOOD),
        ((30, 1000), (70, 7000), Verdict.WORSE),
        # Certain, and too little to matter.
        ((10_800, 1_000_000), (70_000, 7_000_000), Verdict.GOOD),
        ((20_000, 1_000_000), (70_000, 7_000_000), Verdict.WORSE),
        # Everything fails: few are enough.
        ((5, 5), (0, 20), Verdict.WORSE),
        ((2, 2), (0, 2), Verdict.UNDECIDED),
        ((0, 0), (0, 7000), Verdict.UNDECIDED),
        ((3, 3), (0, 0), Verdict.UNDECIDED),
        # All of it is ours, and everybody fails like that.
        ((1000, 1000), (7000, 7000), Verdict.GOOD),
    ],
)
def test_the_share_of_failures_decides(
    ours: tuple[int, int], theirs: tuple[int, int], verdict: Verdict
) -> None:
    judgement = compare(failing(*ours), failing(*theirs))
    assert judgement.verdict is verdict, judgement.reason


def test_the_reason_has_the_figures() -> None:
    assert compare(failing(30, 1000), failing(70, 7000)).reason == (
        "30 of its 1,000 requests failed (3.00%), and 70 of the others' 7,000 (1.00%)"
    )
    assert compare(failing(0, 20), failing(0, 7000)).reason == (
        "too few requests: 20 of the new version, 7,000 of the others; 100 of each are needed"
    )
    assert compare(failing(0, 200), failing(0, 7000)).reason == (
        "0 of its 200 requests failed (0.00%), and 0 of the others' 7,000 (0.00%); "
        "p99 4.98 ms, the others' 4.98 ms"
    )


# How long they take


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (slow(1000), slow(7000), Verdict.GOOD),
        (slow(1000, (0.2, 5)), slow(7000), Verdict.GOOD),
        (slow(1000, (0.2, 50)), slow(7000), Verdict.WORSE),
        (slow(1000, (0.2, 50)), slow(7000, (0.2, 350)), Verdict.GOOD),
        # Only the others are slow.
        (slow(1000), slow(7000, (0.2, 700)), Verdict.GOOD),
        # The p99 crosses a bound, and hardly changes.
        (slow(10_000, (0.0051, 120)), slow(70_000, (0.0049, 700)), Verdict.GOOD),
        # Nobody is slower than that.
        (slow(1000, (90.0, 1000)), slow(7000, (90.0, 7000)), Verdict.GOOD),
        (slow(1000, (90.0, 1000)), slow(7000, (0.1, 7000)), Verdict.WORSE),
        # A process that has just started, and others that are very quick.
        (
            Counts(1000, 0, all_took(1000, 0.004)),
            Counts(7000, 0, all_took(7000, 0.0004)),
            Verdict.GOOD,
        ),
        (
            Counts(1000, 0, all_took(1000, 0.006)),
            Counts(7000, 0, all_took(7000, 0.0004)),
            Verdict.WORSE,
        ),
        # One percent of few requests is chance.
        (slow(100, (0.2, 3)), slow(300, (0.2, 1)), Verdict.GOOD),
    ],
)
def test_the_p99_decides(ours: Counts, theirs: Counts, verdict: Verdict) -> None:
    judgement = compare(ours, theirs)
    assert judgement.verdict is verdict, judgement.reason


def test_of_few_requests_nobody_is_told_a_p99() -> None:
    judgement = compare(slow(14, (0.2, 14)), slow(66))
    assert judgement == (
        Verdict.WORSE,
        "longer than 5 ms took 100.00% of its 14 requests and 0.00% of the others' 66",
    )


def test_the_reason_has_both_p99s() -> None:
    assert compare(slow(1000, (0.2, 50)), slow(7000)).reason == (
        "p99 220 ms, the others' 4.98 ms; longer than 5 ms took 5.00% of its 1,000 requests and "
        "0.00% of the others' 7,000"
    )
    assert "p99 more than 60 s" in compare(slow(1000, (90.0, 1000)), slow(7000)).reason


# Chance


@pytest.mark.parametrize("share", [0.0, 0.002, 0.02, 0.3])
@pytest.mark.parametrize("requests", [100, 1000])
def test_a_version_that_is_as_good_is_seldom_called_worse(share: float, requests: int) -> None:
    random, trials = Random(f"{share} {requests}"), 400

    def sample(count: int) -> Counts:
        failed = sum(random.random() < share for _ in range(count))
        late = sum(random.random() < 0.012 for _ in range(count))
        return Counts(count, failed, durations((0.004, count - late), (0.3, late)))

    verdicts = [compare(sample(requests), sample(3 * requests)).verdict for _ in range(trials)]
    # One percent of each test is expected at the most.
    assert verdicts.count(Verdict.WORSE) <= 0.04 * trials


@pytest.mark.parametrize(("share", "others"), [(0.05, 0.001), (0.5, 0.1), (1.0, 0.3)])
def test_a_version_that_is_much_worse_is_nearly_always_found_out(
    share: float, others: float
) -> None:
    random, trials = Random(f"{share}"), 100

    def sample(count: int, share: float) -> Counts:
        return failing(sum(random.random() < share for _ in range(count)), count)

    verdicts = [compare(sample(300, share), sample(900, others)).verdict for _ in range(trials)]
    assert verdicts.count(Verdict.WORSE) >= 0.95 * trials


def test_before_the_time_is_over_only_what_is_certain_counts() -> None:
    few, many = failing(3, 1000), failing(300, 1000)
    others = failing(0, 7000)
    assert compare(few, others, early=True).verdict is Verdict.GOOD
    assert compare(many, others, early=True).verdict is Verdict.WORSE


def test_a_start_with_cold_caches_is_no_slow_version_before_the_time_is_over() -> None:
    cold, stuck = slow(1000, (0.2, 100)), slow(1000, (0.2, 600))
    assert compare(cold, slow(7000), early=True).verdict is Verdict.GOOD
    assert compare(cold, slow(7000)).verdict is Verdict.WORSE
    assert compare(stuck, slow(7000), early=True).verdict is Verdict.WORSE


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 40), st.integers(0, 40),
)  # fmt: skip
def test_the_tail_is_that_of_the_hypergeometric_distribution(
    drawn: int, rest: int, ours: int, theirs: int
) -> None:
    ours, theirs = min(ours, drawn), min(theirs, rest)
    if ours * rest <= theirs * drawn:
        return
    total, marked = drawn + rest, ours + theirs
    exact = sum(
        math.comb(marked, k) * math.comb(total - marked, drawn - k)
        for k in range(ours, min(drawn, marked) + 1)
        if drawn - k <= total - marked
    ) / math.comb(total, drawn)
    assert tail(ours, drawn, marked, total) == pytest.approx(exact, rel=1e-9)


# What was counted between two moments


def test_only_what_was_counted_between_the_two_moments_counts() -> None:
    before = {(CANARY, 1): failing(500, 1000), (0, 1): failing(0, 1000)}
    now = {(CANARY, 1): failing(500, 2000), (0, 1): failing(0, 4000)}
    assert judge([CANARY], before, now).verdict is Verdict.GOOD
    assert judge([CANARY], {}, now).verdict is Verdict.WORSE


def test_a_process_that_began_to_count_anew_is_counted_from_zero() -> None:
    before = {(CANARY, 1): failing(0, 5000), (0, 1): failing(0, 5000)}
    now = {(CANARY, 1): failing(100, 200), (0, 1): failing(0, 9000)}
    assert judge([CANARY], before, now).verdict is Verdict.WORSE


def test_a_failure_that_is_counted_before_its_request_is_a_request() -> None:
    assert Counts(10, 4).since(Counts(10, 0)) == Counts(4, 4)
    assert NOTHING.since(NOTHING) == NOTHING


@given(
    *(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)) for _ in range(2)),
    st.lists(st.integers(0, 10**8), min_size=17, max_size=17),
    st.lists(st.integers(0, 10**8), min_size=17, max_size=17),
)
def test_any_numbers_have_a_verdict(
    ours: tuple[int, int], theirs: tuple[int, int], our_times: list[int], their_times: list[int]
) -> None:
    one = Counts(max(ours), min(ours), tuple(our_times))
    other = Counts(max(theirs), min(theirs), tuple(their_times))
    judgement = judge([CANARY], {}, {(CANARY, 1): one, (0, 1): other})
    assert judgement.reason
    assert (
        min(one.requests, other.requests) >= MIN_REQUESTS or judgement.verdict is not Verdict.GOOD
    )
