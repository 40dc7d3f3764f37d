"""What has kept a loop is in its histogram, with a loop that a test moves."""

from collections.abc import Callable
from typing import Any

import pytest

from penstock_worker.telemetry.loop_lag import BUCKETS_S, LagHistogram, LoopLag


class Timer:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """The part of a loop that is used; it calls its timer when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None], Timer]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer()
        self.timers.append((when, callback, timer))
        return timer

    def run_late(self, seconds: float) -> None:
        when, callback, timer = self.timers.pop()
        assert not timer.cancelled
        self.now = when + seconds
        callback()


def lag_of(loop: Loop) -> LoopLag:
    return LoopLag(loop)  # type: ignore[arg-type]


@pytest.mark.parametrize("bucket", range(len(BUCKETS_S)))
def test_a_bound_belongs_to_its_bucket(bucket: int) -> None:
    histogram = LagHistogram()
    histogram.observe(BUCKETS_S[bucket])
    histogram.observe(BUCKETS_S[bucket] * 1.001)
    assert [histogram.counts[bucket], histogram.counts[bucket + 1]] == [1, 1]
    assert histogram.flat() == [*histogram.counts, pytest.approx(BUCKETS_S[bucket] * 2.001)]


def test_what_keeps_the_loop_is_counted_and_the_grain_of_its_timers_is_not() -> None:
    loop = Loop()
    lag = lag_of(loop)
    lag.start()
    for seconds in (0.0, 0.0009, 0.04, 0.0):
        loop.run_late(seconds)
    counts: Any = lag.histogram.counts
    assert counts[0] == 3
    assert counts[BUCKETS_S.index(0.05)] == 1
    assert lag.histogram.sum_s == pytest.approx(0.039)


def test_after_a_stop_nothing_is_called_any_more() -> None:
    loop = Loop()
    lag = lag_of(loop)
    lag.start()
    lag.stop()
    lag.stop()
    assert loop.timers[0][2].cancelled
