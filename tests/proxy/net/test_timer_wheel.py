"""A deadline expires once, never early and at most a tick late, whatever moves or removes it."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock_proxy.net.timer_wheel import NEVER, TICK_S, HasDeadline, TimerWheel

START = 1000.1
Then = Callable[[float], None]


class Timed(HasDeadline):
    """Something with a deadline; `then` is what it does when it expires."""

    def __init__(self) -> None:
        self.deadline = NEVER
        self.bucket = NEVER
        self.expiries: list[float] = []
        self.then: Then = lambda _now: None

    def expired(self, now: float) -> None:
        self.expiries.append(now)
        self.then(now)


def test_a_deadline_expires_once_at_the_first_tick_after_it() -> None:
    timers, timed = TimerWheel(START), Timed()
    timers.arm(timed, START + 1.0)
    for step in range(1, 20):
        timers.tick(START + step * TICK_S)
    assert timed.expiries == [START + 1.0 + TICK_S]


def test_a_deadline_that_is_only_written_later_moves() -> None:
    # What a request does: no call, as long as it is later.
    timers, timed = TimerWheel(START), Timed()
    timers.arm(timed, START + 1.0)
    timed.deadline = START + 5.0
    timers.tick(START + 3.0)
    assert timed.expiries == []
    timers.tick(START + 5.5)
    assert timed.expiries == [START + 5.5]


def test_a_deadline_written_to_never_is_dropped() -> None:
    timers, timed = TimerWheel(START), Timed()
    timers.arm(timed, START + 1.0)
    timed.deadline = NEVER
    timers.tick(START + 100.0)
    assert (timed.expiries, timed.bucket) == ([], NEVER)


def test_a_timer_may_be_armed_without_a_deadline() -> None:
    timers, timed = TimerWheel(START), Timed()
    timers.arm(timed, NEVER)
    assert timed.bucket == NEVER


def test_a_new_deadline_may_be_set_from_within() -> None:
    timers, timed = TimerWheel(START), Timed()
    timed.then = lambda now: timers.arm(timed, now + 1.0) if len(timed.expiries) < 3 else None
    timers.arm(timed, START)
    for step in range(100):
        timers.tick(START + step * 0.1)
    assert len(timed.expiries) == 3
    gaps = [b - a for a, b in pairwise(timed.expiries)]
    assert all(1.0 <= gap <= 1.0 + TICK_S + 0.11 for gap in gaps)


def test_an_expiry_may_disarm_or_move_the_others() -> None:
    timers = TimerWheel(START)
    entries = [Timed() for _ in range(3)]

    def first(now: float) -> None:
        for timed in entries:
            timed.then = lambda _now: None
        disarmed, moved = (timed for timed in entries if not timed.expiries)
        timers.disarm(disarmed)
        timers.arm(moved, now + 1.0)

    for timed in entries:
        timed.then = first
        timers.arm(timed, START + 0.1)
    timers.tick(START + 1.0)
    assert sum(len(timed.expiries) for timed in entries) == 1
    timers.tick(START + 3.0)
    assert sorted(len(timed.expiries) for timed in entries) == [0, 1, 1]


def test_an_exception_of_one_costs_no_other_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    timers = TimerWheel(START)
    entries = [Timed() for _ in range(8)]

    def raising(_now: float) -> None:
        raise ZeroDivisionError

    for timed in entries:
        timers.arm(timed, START + 0.1)
    for timed in entries[::2]:
        timed.then = raising
    for step in range(1, 9):
        timers.tick(START + step)
    assert [timed.expiries for timed in entries] == [[START + 1]] * 8
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 4
    # And it may be armed again.
    timers.arm(entries[0], START + 9.0)
    entries[0].then = lambda _now: None
    timers.tick(START + 10.0)
    assert entries[0].expiries == [START + 1, START + 10.0]


@pytest.mark.parametrize("late", [0.0, 0.01, 0.1, TICK_S - 0.001])
@pytest.mark.parametrize("jitter", [0.0, 0.01, 0.1])
def test_a_deadline_set_without_the_time_is_not_early_either(late: float, jitter: float) -> None:
    timers, timed = TimerWheel(START), Timed()
    armed_at = START + late
    timers.arm_in(timed, 1.0)
    step = 0
    while not timed.expiries:
        step += 1
        timers.tick(START + step * TICK_S + jitter)
    assert armed_at + 1.0 <= timed.expiries[0] <= START + 1.0 + 3 * TICK_S + jitter


def test_disarming_what_was_never_armed_is_harmless() -> None:
    timers, timed = TimerWheel(START), Timed()
    timers.disarm(timed)
    timers.arm(timed, START + 1.0)
    timers.disarm(timed)
    timers.disarm(timed)
    timers.tick(START + 9.0)
    assert timed.expiries == []


class Clockwork(RuleBasedStateMachine):
    """The wheel against a table of when each entry has to expire."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.last_tick = START
        self.timers = TimerWheel(START)
        self.entries = [Timed() for _ in range(4)]
        self.due = dict.fromkeys(range(4), NEVER)
        self.armed_at = dict.fromkeys(range(4), START)

    @rule(which=st.integers(0, 3), delay=st.floats(-2.0, 20.0))
    def arm(self, which: int, delay: float) -> None:
        self.timers.arm(self.entries[which], self.now + delay)
        self.due[which], self.armed_at[which] = self.now + delay, self.now

    @rule(which=st.integers(0, 3), delay=st.floats(0.0, 20.0))
    def only_write(self, which: int, delay: float) -> None:
        """Allowed when its bucket comes up before that."""
        if self.now + delay >= self.entries[which].bucket:
            self.entries[which].deadline = self.due[which] = self.now + delay
            self.armed_at[which] = self.now

    @rule(which=st.integers(0, 3))
    def disarm(self, which: int) -> None:
        self.timers.disarm(self.entries[which])
        self.due[which] = NEVER

    @rule(which=st.integers(0, 3), again=st.floats(0.5, 5.0) | st.none())
    def on_expiry(self, which: int, again: float | None) -> None:
        def then(now: float) -> None:
            if again is not None:
                self.timers.arm(self.entries[which], now + again)

        self.entries[which].then = then
        self.again = getattr(self, "again", {})
        self.again[which] = again

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, TICK_S, 0.3, 1.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(back=st.sampled_from([0.0, 0.0, 0.0, 5.0]))
    @precondition(lambda self: self.now >= self.last_tick)
    def tick(self, back: float) -> None:
        """Now and then a tick with an earlier time: nothing may expire too early by it."""
        now = self.now - back
        before = {which: len(timed.expiries) for which, timed in enumerate(self.entries)}
        self.timers.tick(now)
        assert self.timers.now == now
        for which, timed in enumerate(self.entries):
            count = len(timed.expiries) - before[which]
            assert count <= 1
            if count:
                assert self.due[which] <= now, "early"
                again = getattr(self, "again", {}).get(which)
                self.due[which] = NEVER if again is None else now + again
            else:
                # One tick for the wheel's coarseness; one armed late waits for the next.
                latest = max(self.due[which], self.armed_at[which])
                assert now < latest + TICK_S + 1e-9 or now < self.last_tick, "late"
        self.last_tick = max(self.last_tick, now)

    @invariant()
    def nothing_is_in_two_buckets(self) -> None:
        buckets = [members for _, members in self.timers._buckets.values()]
        for timed in self.entries:
            assert sum(timed in members for members in buckets) == (timed.bucket != NEVER)


TestClockwork = Clockwork.TestCase
