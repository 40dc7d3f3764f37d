"""Checks that are due begin a few in each turn of the loop, in their order, with one timer."""

from collections.abc import Callable

from penstock_proxy.balancing.check_schedule import AT_ONCE, CheckSchedule


class Handle:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop whose time moves when a test says so, a turn at a time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.handles: list[Handle] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[[], None]) -> Handle:
        return self.call_later(0.0, call)

    def call_later(self, seconds: float, call: Callable[[], None]) -> Handle:
        self.handles.append(Handle(self.now + seconds, call))
        return self.handles[-1]

    @property
    def waiting(self) -> list[Handle]:
        return [one for one in self.handles if not one.cancelled]

    def turn(self) -> None:
        due = [one for one in self.waiting if one.at <= self.now]
        self.handles = [one for one in self.waiting if one.at > self.now]
        for one in due:
            one.call()


class Checks:
    """Those of one member, by its number."""

    def __init__(self, begun: list[int], number: int) -> None:
        self._begun, self._number = begun, number

    def begin(self) -> None:
        self._begun.append(self._number)


def schedule_of(loop: Loop) -> tuple[CheckSchedule, list[Checks], list[int]]:
    begun: list[int] = []
    schedule = CheckSchedule(loop)  # type: ignore[arg-type]
    return schedule, [Checks(begun, number) for number in range(1000)], begun


def test_of_many_that_are_due_a_few_begin_in_each_turn() -> None:
    loop = Loop()
    schedule, checks, begun = schedule_of(loop)
    for number in range(1000):
        schedule.put(checks[number], 2.0)
    assert len(loop.waiting) == 1
    loop.now += 60.0
    turns = 0
    while loop.waiting:
        before = len(begun)
        loop.turn()
        turns += 1
        assert len(begun) - before <= AT_ONCE
    assert begun == list(range(1000))
    assert turns == 1000 / AT_ONCE


def test_who_is_due_at_once_does_not_wait_for_who_was_put_before() -> None:
    loop = Loop()
    schedule, checks, begun = schedule_of(loop)
    schedule.put(checks[1], 5.0)
    schedule.put(checks[2], 0.0)
    loop.turn()
    assert begun == [2]
    assert len(loop.waiting) == 1


def test_one_is_due_once_and_when_it_was_said_last() -> None:
    loop = Loop()
    schedule, checks, begun = schedule_of(loop)
    schedule.put(checks[1], 5.0)
    schedule.put(checks[1], 0.0)
    loop.turn()
    loop.now += 10.0
    loop.turn()
    assert begun == [1]
    assert not loop.waiting


def test_who_was_removed_is_not_due_and_without_anybody_no_timer_is_left() -> None:
    loop = Loop()
    schedule, checks, begun = schedule_of(loop)
    schedule.put(checks[1], 0.0)
    schedule.put(checks[2], 0.0)
    schedule.discard(checks[1])
    loop.turn()
    assert begun == [2]
    schedule.put(checks[3], 5.0)
    schedule.discard(checks[3])
    assert not loop.waiting


def test_those_that_are_due_at_about_the_same_time_wake_the_process_once() -> None:
    loop = Loop()
    schedule, checks, begun = schedule_of(loop)
    schedule.put(checks[1], 2.001)
    schedule.put(checks[2], 2.003)
    loop.now += 2.0
    loop.turn()
    assert sorted(begun) == [1, 2]
