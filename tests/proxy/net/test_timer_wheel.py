"""Never early, at most a tick late, each once: whatever is armed, moved, forgotten, and when."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock_proxy.net.timer_wheel import NEVER, TICK_S, TimerWheel

START = 1000.1
Then = Callable[[float], None]


class Waiter:
    """Something that waits; `then` is what it does when it has waited for too long."""

    def __init__(self) -> None:
        self.deadline = NEVER
        self.bucket = NEVER
        self.told: list[float] = []
        self.then: Then = lambda _now: None

    def expired(self, now: float) -> None:
        self.told.append(now)
        self.then(now)


def test_a_deadline_is_told_once_at_the_first_tick_behind_it() -> None:
    timers, waiter = TimerWheel(START), Waiter()
    timers.arm(waiter, START + 1.0)
    for step in range(1, 20):
        timers.tick(START + step * TICK_S)
    assert waiter.told == [START + 1.0 + TICK_S]


def test_a_deadline_that_is_only_written_later_moves() -> None:
    # What a request does: no call, as long as it is later.
    timers, waiter = TimerWheel(START), Waiter()
    timers.arm(waiter, START + 1.0)
    waiter.deadline = START + 5.0
    timers.tick(START + 3.0)
    assert waiter.told == []
    timers.tick(START + 5.5)
    assert waiter.told == [START + 5.5]


def test_a_deadline_written_to_never_is_dropped() -> None:
    timers, waiter = TimerWheel(START), Waiter()
    timers.arm(waiter, START + 1.0)
    waiter.deadline = NEVER
    timers.tick(START + 100.0)
    assert (waiter.told, waiter.bucket) == ([], NEVER)


def test_never_is_a_deadline_too() -> None:
    timers, waiter = TimerWheel(START), Waiter()
    timers.arm(waiter, NEVER)
    assert waiter.bucket == NEVER


def test_a_new_deadline_may_be_set_from_within() -> None:
    timers, waiter = TimerWheel(START), Waiter()
    waiter.then = lambda now: timers.arm(waiter, now + 1.0) if len(waiter.told) < 3 else None
    timers.arm(waiter, START)
    for step in range(100):
        timers.tick(START + step * 0.1)
    assert len(waiter.told) == 3
    gaps = [b - a for a, b in pairwise(waiter.told)]
    assert all(1.0 <= gap <= 1.0 + TICK_S + 0.11 for gap in gaps)


def test_whoever_is_told_may_forget_or_move_the_others() -> None:
    timers = TimerWheel(START)
    waiters = [Waiter() for _ in range(3)]

    def first(now: float) -> None:
        for waiter in waiters:
            waiter.then = lambda _now: None
        forgotten, moved = (waiter for waiter in waiters if not waiter.told)
        timers.disarm(forgotten)
        timers.arm(moved, now + 1.0)

    for waiter in waiters:
        waiter.then = first
        timers.arm(waiter, START + 0.1)
    timers.tick(START + 1.0)
    assert sum(len(waiter.told) for waiter in waiters) == 1
    timers.tick(START + 3.0)
    assert sorted(len(waiter.told) for waiter in waiters) == [0, 1, 1]


def test_a_mistake_of_one_costs_no_other_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    timers = TimerWheel(START)
    waiters = [Waiter() for _ in range(8)]

    def mistaken(_now: float) -> None:
        raise ZeroDivisionError

    for waiter in waiters:
        timers.arm(waiter, START + 0.1)
    for waiter in waiters[::2]:
        waiter.then = mistaken
    for step in range(1, 9):
        timers.tick(START + step)
    assert [waiter.told for waiter in waiters] == [[START + 1]] * 8
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 4
    # And it may wait again.
    timers.arm(waiters[0], START + 9.0)
    waiters[0].then = lambda _now: None
    timers.tick(START + 10.0)
    assert waiters[0].told == [START + 1, START + 10.0]


@pytest.mark.parametrize("late", [0.0, 0.01, 0.1, TICK_S - 0.001])
@pytest.mark.parametrize("jitter", [0.0, 0.01, 0.1])
def test_who_does_not_know_the_time_is_not_told_early_either(late: float, jitter: float) -> None:
    timers, waiter = TimerWheel(START), Waiter()
    armed_at = START + late
    timers.arm_in(waiter, 1.0)
    step = 0
    while not waiter.told:
        step += 1
        timers.tick(START + step * TICK_S + jitter)
    assert armed_at + 1.0 <= waiter.told[0] <= START + 1.0 + 3 * TICK_S + jitter


def test_forgetting_what_was_never_set_is_harmless() -> None:
    timers, waiter = TimerWheel(START), Waiter()
    timers.disarm(waiter)
    timers.arm(waiter, START + 1.0)
    timers.disarm(waiter)
    timers.disarm(waiter)
    timers.tick(START + 9.0)
    assert waiter.told == []


class Clockwork(RuleBasedStateMachine):
    """The wheel against a table of who is owed a call when."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.last_tick = START
        self.timers = TimerWheel(START)
        self.waiters = [Waiter() for _ in range(4)]
        self.owed = dict.fromkeys(range(4), NEVER)
        self.armed_at = dict.fromkeys(range(4), START)

    @rule(who=st.integers(0, 3), delay=st.floats(-2.0, 20.0))
    def arm(self, who: int, delay: float) -> None:
        self.timers.arm(self.waiters[who], self.now + delay)
        self.owed[who], self.armed_at[who] = self.now + delay, self.now

    @rule(who=st.integers(0, 3), delay=st.floats(0.0, 20.0))
    def only_write(self, who: int, delay: float) -> None:
        """Allowed when the wheel will look before that."""
        if self.now + delay >= self.waiters[who].bucket:
            self.waiters[who].deadline = self.owed[who] = self.now + delay
            self.armed_at[who] = self.now

    @rule(who=st.integers(0, 3))
    def disarm(self, who: int) -> None:
        self.timers.disarm(self.waiters[who])
        self.owed[who] = NEVER

    @rule(who=st.integers(0, 3), again=st.floats(0.5, 5.0) | st.none())
    def on_expiry(self, who: int, again: float | None) -> None:
        def then(now: float) -> None:
            if again is not None:
                self.timers.arm(self.waiters[who], now + again)

        self.waiters[who].then = then
        self.again = getattr(self, "again", {})
        self.again[who] = again

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, TICK_S, 0.3, 1.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(back=st.sampled_from([0.0, 0.0, 0.0, 5.0]))
    @precondition(lambda self: self.now >= self.last_tick)
    def tick(self, back: float) -> None:
        """Now and then a tick that believes it is earlier: nobody may be told of that."""
        now = self.now - back
        before = {who: len(waiter.told) for who, waiter in enumerate(self.waiters)}
        self.timers.tick(now)
        assert self.timers.now == now
        for who, waiter in enumerate(self.waiters):
            told = len(waiter.told) - before[who]
            assert told <= 1
            if told:
                assert self.owed[who] <= now, "early"
                again = getattr(self, "again", {}).get(who)
                self.owed[who] = NEVER if again is None else now + again
            else:
                # One tick for the wheel's coarseness; one armed late waits for the next.
                due = max(self.owed[who], self.armed_at[who])
                assert now < due + TICK_S + 1e-9 or now < self.last_tick, "late"
        self.last_tick = max(self.last_tick, now)

    @invariant()
    def nobody_is_in_two_places(self) -> None:
        buckets = [members for _, members in self.timers._buckets.values()]
        for waiter in self.waiters:
            assert sum(waiter in members for members in buckets) == (waiter.bucket != NEVER)


TestClockwork = Clockwork.TestCase
