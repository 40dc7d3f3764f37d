"""Is a new version worse than the old one? Judged by what both were asked at the same time.

Owns the comparison of the *canary*, the first worker that was replaced, with all other workers of
its service: the share of requests that failed, and of those that took longer than nearly all of
the others' do (their p99). Must not know who counts (`observability.canary_counts`), nor what
follows from a verdict. No I/O, no clock.

A few failures must not roll back a good version by chance, so both shares are compared by Fisher's
exact test, one-sided: if it made no difference who serves a request, how likely would so many of
the bad ones be the canary's? (Agresti, *Categorical Data Analysis*, section 3.5.) It needs no
minimum of requests and no normal distribution: three failures of 1,000 against none of 7,000 are
enough, one is not. With a million requests it would find differences that nobody would call worse,
and requests do not fail independently of each other. So the share has to be larger by a margin,
too.

A p99 is known only as well as the buckets of its histogram. The test takes the upper bound of the
bucket that the others' p99 is in: at most one percent of their requests took longer. The canary is
slower if at least two percent of its own did, and not by chance. A p99 that only crosses a bound,
from 4.9 to 5.1 ms, does not do that; one that stays within its bucket is not seen. Below 5 ms
nobody is slow: a process that has just started has cold caches. For the same reason, before its
time is over a canary is only slower if every second of its requests is.
"""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum, auto
from math import exp, lgamma
from typing import Final, NamedTuple

from penstock_worker.telemetry.counters import BUCKETS_S

MIN_REQUESTS: Final = 100
"""Of the canary and of the others. Below, a share of one percent is no request at all."""
_CHANCE: Final = 0.01
"""How likely a difference may be by chance, and still be held against the canary."""
_EARLY_CHANCE: Final = 1e-6
"""The same before the time is over: who looks a thousand times finds something by chance."""
_FAILURE_MARGIN: Final = 1.25
"""Times the others' share of failures."""
_SLOW_MARGIN: Final = 2.0
"""Times the others' share of slow requests, which is at most one percent."""
_SLOW: Final = 0.01
_FAST_S: Final = 0.005
"""What takes no longer is not slow, however quick the others are."""
_EARLY_SLOW: Final = 0.5
"""The share of slow requests that is enough before the time is over."""
_NEGLIGIBLE: Final = 1e-12
"""Of a sum whose terms become ever smaller."""


class Counts(NamedTuple):
    """What was counted for some workers until one moment, or within a time."""

    requests: int = 0
    """That ended, or that were tried again elsewhere because these workers failed them."""
    failures: int = 0
    """Of those: a 5xx, no connection, or one that broke off."""
    durations: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    """How many took how long, by bucket, not cumulative."""

    def plus(self, other: "Counts") -> "Counts":
        return Counts(
            self.requests + other.requests,
            self.failures + other.failures,
            tuple(a + b for a, b in zip(self.durations, other.durations, strict=True)),
        )

    def since(self, before: "Counts") -> "Counts":
        """What was counted since. A counter that has gone down began anew."""
        if self.requests < before.requests or any(
            now < then for now, then in zip(self.durations, before.durations, strict=True)
        ):
            return self
        failures = max(0, self.failures - before.failures)
        return Counts(
            # A request is counted at its end: its failures may be counted before.
            max(self.requests - before.requests, failures),
            failures,
            tuple(a - b for a, b in zip(self.durations, before.durations, strict=True)),
        )


NOTHING: Final = Counts()
BySource = Mapping[tuple[int, int], Counts]
"""What a service's workers were counted for until one moment: by member, and by the process that
counted."""


class Verdict(Enum):
    GOOD = auto()
    WORSE = auto()
    UNDECIDED = auto()
    """Too few requests, or nobody counts them."""


class Judgement(NamedTuple):
    verdict: Verdict
    reason: str
    """In words, with the figures."""


def judge(
    canaries: Collection[int], before: BySource, now: BySource, *, early: bool = False
) -> Judgement:
    """Compare the members in `canaries` with all others of their service, by what was counted
    between two moments.

    `early`: the time is not over. Then only what is certain makes the canary WORSE.
    """
    ours = theirs = NOTHING
    for source, counts in now.items():
        counted = counts.since(before.get(source, NOTHING))
        if source[0] in canaries:
            ours = ours.plus(counted)
        else:
            theirs = theirs.plus(counted)
    chance, least = (_EARLY_CHANCE, _EARLY_SLOW) if early else (_CHANCE, _SLOW_MARGIN * _SLOW)
    worse = _fails_more(ours, theirs, chance) or _is_slower(ours, theirs, chance, least)
    if worse:
        return Judgement(Verdict.WORSE, worse)
    if min(ours.requests, theirs.requests) < MIN_REQUESTS:
        few = f"too few requests: {ours.requests:,} of the new version, {theirs.requests:,} of the "
        return Judgement(Verdict.UNDECIDED, f"{few}others; {MIN_REQUESTS} of each are needed")
    return Judgement(Verdict.GOOD, f"{_failures(ours, theirs)}; {_p99s(ours, theirs)}")


def fails_more(ours: Counts, theirs: Counts) -> bool:
    """Of one that fails so often that it is noticed: does it fail more than the others, as far as
    can be said? Where nothing failed but its own requests, it does."""
    return not theirs.failures or bool(_fails_more(ours, theirs, _CHANCE))


def _fails_more(ours: Counts, theirs: Counts, chance: float) -> str:
    """Why the canary fails more than the others, or empty."""
    is_more = _is_larger(
        (ours.failures, ours.requests), (theirs.failures, theirs.requests), _FAILURE_MARGIN, chance
    )
    return _failures(ours, theirs) if is_more else ""


def _is_slower(ours: Counts, theirs: Counts, chance: float, least: float) -> str:
    """Why the canary's p99 is above the others', or empty. `least`: the share of its requests that
    has to be."""
    bucket = _bucket_of(theirs.durations, 1 - _SLOW)
    if bucket is None or bucket >= len(BUCKETS_S):
        return ""
    bucket = max(bucket, BUCKETS_S.index(_FAST_S))
    our_slow, their_slow = (sum(one.durations[bucket + 1 :]) for one in (ours, theirs))
    our_all, their_all = sum(ours.durations), sum(theirs.durations)
    if our_slow < least * our_all:
        return ""
    if not _is_larger((our_slow, our_all), (their_slow, their_all), _SLOW_MARGIN, chance):
        return ""
    bound = _seconds(BUCKETS_S[bucket])
    # Of fewer requests the slowest percent is not even one.
    has_p99s = min(our_all, their_all) >= MIN_REQUESTS
    p99s = f"{_p99s(ours, theirs)}; " if has_p99s else ""
    return (
        f"{p99s}longer than {bound} took {_share(our_slow, our_all)} of its "
        f"{our_all:,} requests and {_share(their_slow, their_all)} of the others' {their_all:,}"
    )


def _is_larger(
    ours: tuple[int, int], theirs: tuple[int, int], margin: float, chance: float
) -> bool:
    """Is our share (a part and the whole) larger, by the margin, and not by chance?"""
    (part, whole), (their_part, their_whole) = ours, theirs
    if not part or not their_whole or part * their_whole < margin * their_part * whole:
        return False
    return tail(part, whole, part + their_part, whole + their_whole) < chance


def tail(part: int, drawn: int, marked: int, total: int) -> float:
    """The probability that at least `part` of `drawn` are marked, drawn at random from `total`
    of which `marked` are: the upper tail of the hypergeometric distribution."""
    if part <= max(0, drawn + marked - total):
        return 1.0
    log_term = (
        _log_choose(marked, part)
        + _log_choose(total - marked, drawn - part)
        - _log_choose(total, drawn)
    )
    # Beyond the mean each term is smaller than the one before. The callers' parts are: their share
    # is above the average.
    term = result = exp(log_term)
    for k in range(part, min(drawn, marked)):
        term *= (marked - k) * (drawn - k) / ((k + 1) * (total - marked - drawn + k + 1))
        result += term
        if term <= _NEGLIGIBLE * result:
            break
    return min(1.0, result)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _bucket_of(durations: Sequence[int], share: float) -> int | None:
    """The bucket in which this share of the requests is reached; None: there are none."""
    total, seen = sum(durations), 0
    for bucket, count in enumerate(durations):
        seen += count
        if total and seen >= share * total:
            return bucket
    return None


def _p99_s(durations: Sequence[int]) -> float | None:
    """The p99, by linear interpolation in its bucket, as Prometheus' histogram_quantile."""
    bucket = _bucket_of(durations, 1 - _SLOW)
    if bucket is None:
        return None
    if bucket >= len(BUCKETS_S):
        return BUCKETS_S[-1]
    below, above = (BUCKETS_S[bucket - 1] if bucket else 0.0), BUCKETS_S[bucket]
    rank = (1 - _SLOW) * sum(durations) - sum(durations[:bucket])
    return below + (above - below) * rank / max(1, durations[bucket])


# Words


def _failures(ours: Counts, theirs: Counts) -> str:
    return (
        f"{ours.failures:,} of its {ours.requests:,} requests failed "
        f"({_share(ours.failures, ours.requests)}), and {theirs.failures:,} of the others' "
        f"{theirs.requests:,} ({_share(theirs.failures, theirs.requests)})"
    )


def _p99s(ours: Counts, theirs: Counts) -> str:
    return f"p99 {_p99(ours)}, the others' {_p99(theirs)}"


def _p99(counts: Counts) -> str:
    seconds = _p99_s(counts.durations)
    if seconds is None:
        return "not known"
    is_beyond = _bucket_of(counts.durations, 1 - _SLOW) == len(BUCKETS_S)
    return f"more than {_seconds(seconds)}" if is_beyond else _seconds(seconds)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "none"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
