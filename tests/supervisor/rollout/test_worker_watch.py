"""Once a second: who hangs and who stays unhealthy has to be replaced, and who is well has not.

The rotation and the replacements are fakes that record; the loop's time is the test's.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.config.model import Service
from penstock_supervisor.rollout.worker_watch import WorkerWatch

WEB, MORE = ("web", 0), ("web", 1)


class Worker:
    def __init__(self, slot: tuple[str, int]) -> None:
        self.plan = SimpleNamespace(service=slot[0], slot=slot[1], runs_our_code=True)
        self.name = f"{slot[0]}/{slot[1]}"
        self.number = 20 + slot[1]
        self.state = State.UP
        self.pid: int | None = 10 + slot[1]
        self.answers = True
        self.starts = SimpleNamespace(last_was_ready=True)
        self.next_start_s: float | None = None
        self.started_early = 0

    def ended(self, next_start_s: float | None, *, was_ready: bool = True) -> None:
        self.state, self.pid, self.next_start_s = State.CRASH_LOOP, None, next_start_s
        self.starts.last_was_ready = was_ready

    def start_early(self) -> None:
        self.started_early += 1
        self.state, self.next_start_s = State.STARTING, None

    def send(self, _: object) -> bool:
        return True

    def dump_stacks(self) -> bool:
        return True


class Timer:
    def cancel(self) -> None:
        pass


class Harness:
    """The loop, the slots, the rotation and the replacements in one."""

    def __init__(self, **health: Any) -> None:
        service = Service.model_validate(
            {
                "name": "web", "listen": "127.0.0.1:1", "app": "a:b",
                "liveness": {"timeout": "5s"}, "health": {"restart_after": "10s", **health},
            }
        )  # fmt: skip
        self.now = 0.0
        self.over = False
        self.due: Callable[[], None] | None = None
        self.made = [Worker(WEB), Worker(MORE)]
        self.current = {WEB: self.made[0], MORE: self.made[1]}
        self.unready: set[Any] = set()
        self.compared: set[Any] = set()
        self.wanted: dict[Any, set[str]] = {WEB: set(), MORE: set()}
        anything = cast("Any", self)
        self.watch = WorkerWatch(
            anything, {service.name: service}, anything, anything, anything, lambda: self.over
        )
        self.watch.start()

    def life_confirmed(self) -> None:
        """For replacements that ask: none does here."""

    # The loop.

    def time(self) -> float:
        return self.now

    def call_later(self, _: float, callback: Callable[[], None]) -> Timer:
        self.due = callback
        return Timer()

    # The slots and the rotation.

    def workers(self) -> list[Worker]:
        return self.made

    def is_current(self, child: Any) -> bool:
        return child in self.made

    def child_of(self, key: Any) -> Worker:
        return next(one for one in self.made if one.number == key[1])

    def is_draining(self, _: Any) -> bool:
        return False

    def take_ready_anywhere(self, child: Any) -> bool:
        return (child.plan.service, child.plan.slot) not in self.unready

    is_up = take_ready_anywhere

    def is_compared(self, child: Any) -> bool:
        return (child.plan.service, child.plan.slot) in self.compared

    def deciding(self, _: Any) -> list[int]:
        return [0]

    def hold(self, child: Any, _: str) -> None:
        self.unready.add((child.plan.service, child.plan.slot))

    def release(self, child: Any) -> None:
        self.unready.discard((child.plan.service, child.plan.slot))

    # The replacements.

    def request(self, child: Any, reason: str, _: str) -> None:
        self.wanted[child.plan.service, child.plan.slot].add(reason)

    def withdraw(self, child: Any, reason: str) -> None:
        self.wanted[child.plan.service, child.plan.slot].discard(reason)

    def advance(self) -> None:
        pass

    # What happens.

    def seconds(self, count: int, late_s: float = 0.0) -> dict[Any, set[str]]:
        for _ in range(count):
            self.now += 1.0 + late_s
            due, self.due = self.due, None
            if due is not None:
                due()
            for worker in self.made:
                if worker.answers:
                    self.watch.answered(cast("Any", worker))
        return {slot: reasons for slot, reasons in self.wanted.items() if reasons}


def test_nobody_who_is_well_is_replaced() -> None:
    harness = Harness()
    assert harness.seconds(300) == {}
    assert harness.watch.silent() == {}


def test_one_that_hangs_is_replaced_unless_it_answers_again() -> None:
    harness = Harness()
    harness.made[1].answers = False
    assert harness.seconds(5) == {}
    assert set(harness.watch.silent()) == {MORE}
    assert harness.seconds(2) == {MORE: {"liveness"}}
    harness.made[1].answers = True
    assert harness.seconds(1) == {}


def test_one_that_hangs_is_not_also_unhealthy() -> None:
    harness = Harness()
    harness.made[1].answers = False
    assert harness.seconds(60) == {MORE: {"liveness"}}


def test_one_that_stays_unhealthy_is_replaced_unless_it_is_well_again() -> None:
    harness = Harness()
    harness.unready.add(MORE)
    assert harness.seconds(10) == {}
    assert harness.seconds(2) == {MORE: {"unhealthy"}}
    harness.unready.discard(MORE)
    assert harness.seconds(1) == {}


def test_one_that_is_compared_is_not_unhealthy_for_as_long_as_nobody_picked_it() -> None:
    harness = Harness()
    harness.unready.add(MORE)
    harness.compared.add(MORE)
    harness.seconds(60)
    # It is let go, and no proxy has reported that yet.
    harness.compared.clear()
    assert harness.seconds(1) == {}
    assert harness.seconds(12) == {MORE: {"unhealthy"}}


def test_when_all_are_unhealthy_nobody_is_replaced() -> None:
    harness = Harness()
    harness.unready |= {WEB, MORE}
    assert harness.seconds(300) == {}


def test_without_restart_after_nobody_is_replaced_for_its_checks() -> None:
    harness = Harness(restart_after="0s")
    harness.unready.add(MORE)
    assert harness.seconds(300) == {}


def test_a_supervisor_that_was_asleep_has_nobody_replaced() -> None:
    harness = Harness()
    harness.made[0].answers = False
    harness.unready.add(MORE)
    assert harness.seconds(20, late_s=3600.0) == {}


def test_it_ends_with_the_run() -> None:
    harness = Harness()
    harness.over = True
    harness.seconds(1)
    assert harness.due is None
    harness.watch.close()


def test_one_worker_starts_at_once_where_nobody_serves() -> None:
    harness = Harness()
    one, other = harness.made
    one.ended(30.0)
    harness.seconds(3)
    assert (one.started_early, other.started_early) == (0, 0), "the other one serves"
    other.ended(20.0)
    harness.seconds(3)
    assert (one.started_early, other.started_early) == (0, 1), (
        "who would be the first, and nobody else"
    )


def test_a_program_that_cannot_start_or_is_given_up_for_good_waits_on() -> None:
    harness = Harness()
    one, other = harness.made
    one.ended(30.0, was_ready=False)
    other.ended(None)
    harness.seconds(5)
    assert (one.started_early, other.started_early) == (0, 0)
