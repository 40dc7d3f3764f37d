"""No turn of the loop takes longer than its share: not of events, not of work for many."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator

import pytest

from penstock_proxy.net import reactor as reactor_
from penstock_proxy.net.reactor import IN, EventHandler, Reactor, Slices
from penstock_worker.telemetry.loop_lag import BUCKETS_S, LagHistogram


class Clock:
    """The time, as the reactor's module sees it. It moves when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 50.0
        monkeypatch.setattr(reactor_, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Turns:
    """A loop that has only what was to be called soon, a turn at a time."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> bool:
        due, self.soon = self.soon, []
        for callback in due:
            callback()
        return bool(due)


def slices_of(turns: Turns) -> tuple[Slices, LagHistogram]:
    lag = LagHistogram()
    return Slices(turns, lag), lag  # type: ignore[arg-type]


def test_a_short_work_is_done_at_once(clock: Clock) -> None:
    turns = Turns()
    done: list[int] = []
    slices_of(turns)[0].run(map(done.append, range(1000)))
    assert done == list(range(1000))
    assert not turns.soon


def test_a_long_work_is_done_a_slice_in_each_turn(clock: Clock) -> None:
    turns = Turns()
    slices, lag = slices_of(turns)
    done: list[int] = []

    def work() -> Iterator[None]:
        for number in range(100):
            clock.now += 0.0001
            done.append(number)
            yield

    slices.run(work())
    sizes = [len(done)]
    while turns.turn():
        sizes.append(len(done) - sum(sizes))
    assert sum(sizes) == 100
    assert max(sizes) <= 4
    assert sum(lag.counts) == lag.counts[0] == len(sizes) - 1


def test_works_take_turns_so_that_a_short_one_does_not_wait_for_a_long_one(clock: Clock) -> None:
    turns = Turns()
    slices, _ = slices_of(turns)
    order: list[str] = []

    def work(name: str, steps: int) -> Iterator[None]:
        for _ in range(steps):
            clock.now += 0.0002
            order.append(name)
            yield
        order.append(f"{name} ends")

    slices.run(work("long", 50))
    slices.run(work("short", 2))
    assert "short" not in order, "the slice of this turn is used up"
    while turns.turn():
        pass
    assert order.count("long") == 50
    assert order.index("short ends") < 10


def test_a_work_that_fails_is_logged_and_the_others_go_on(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    turns = Turns()
    done: list[object] = []
    slices, _ = slices_of(turns)

    def fails() -> Iterator[None]:
        yield
        raise ValueError("a bug")

    def starts_another() -> Iterator[None]:
        slices.run(fails())
        slices.run(map(done.append, range(3)))
        done.append("first")
        yield

    slices.run(starts_another())
    assert done == ["first", 0, 1, 2]
    assert "could not be finished" in caplog.text


class Reader(EventHandler):
    """Reads one byte each time, and takes its time for it."""

    def __init__(self, clock: Clock, order: list[int]) -> None:
        self.fd, self.writer = os.pipe()
        os.write(self.writer, b"x" * 3)
        self._clock, self._order = clock, order

    def ready(self, events: int) -> None:
        self._clock.now += 0.0001
        os.read(self.fd, 1)
        self._order.append(self.fd)

    def send_deferred(self) -> None:
        raise NotImplementedError

    def failed(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.writer)


async def test_events_that_do_not_fit_into_a_turn_are_handled_in_the_next_ones(
    clock: Clock,
) -> None:
    reactor = Reactor(asyncio.get_running_loop())
    order: list[int] = []
    readers = [Reader(clock, order) for _ in range(100)]
    for reader in readers:
        reactor.register(reader.fd, reader, IN)
    deadline = time.monotonic() + 30
    while len(order) < 300 and time.monotonic() < deadline:  # noqa: ASYNC110 — turn by turn
        await asyncio.sleep(0)
    assert sorted(order) == sorted(reader.fd for reader in readers for _ in range(3))
    turns = sum(reactor.lag.counts)
    assert turns >= 300 * 0.0001 / BUCKETS_S[2]
    assert sum(reactor.lag.counts[3:]) == 0, "a turn took several times its share"
    # Nobody had all of its turns before another one had any.
    assert len(set(order[:100])) > 50
    reactor.close()
    for reader in readers:
        reader.close()


class PipeReader(EventHandler):
    """Reads a byte in each poll, and writes down which."""

    def __init__(self, order: list[str]) -> None:
        self._order = order
        self.fd, self._end = os.pipe()

    def ready(self, events: int) -> None:
        self._order.append(os.read(self.fd, 1).decode())

    def send(self, text: str) -> None:
        os.write(self._end, text.encode())

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._end)


async def test_what_waits_for_quiet_is_called_when_nothing_comes_any_more() -> None:
    reactor = Reactor(asyncio.get_running_loop())
    order: list[str] = []
    reader = PipeReader(order)
    reactor.register(reader.fd, reader, IN)
    reader.send("12")
    reactor.call_when_quiet(lambda: order.append("first"))
    reactor.call_when_quiet(lambda: order.append("second"))
    assert not order
    await turns_until(lambda: "second" in order)
    reactor.call_when_quiet(lambda: order.append("third"))
    await turns_until(lambda: "third" in order)
    reactor.close()
    reader.close()
    assert order == ["1", "2", "first", "second", "third"]


async def test_what_waits_for_quiet_does_not_wait_for_ever() -> None:
    reactor = Reactor(asyncio.get_running_loop())
    order: list[str] = []
    reader = PipeReader(order)
    reactor.register(reader.fd, reader, IN)
    reader.send("x" * 100)
    reactor.call_when_quiet(lambda: order.append("called"))
    await turns_until(lambda: "called" in order)
    reactor.close()
    reader.close()
    assert order.index("called") == reactor_._MAX_POLLS_WAITED + 1


async def test_without_a_connection_there_is_nothing_to_wait_for() -> None:
    reactor = Reactor(asyncio.get_running_loop())
    order: list[str] = []
    reactor.call_when_quiet(lambda: order.append("called"))
    assert not order
    await turns_until(lambda: bool(order))
    reactor.call_when_quiet(lambda: order.append("at the end"))
    reactor.close()
    assert order == ["called", "at the end"]


async def turns_until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so, for a thousand turns at the most."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it never came to that")
