"""While a worker that a roll-out has replaced does not serve, no other begins; in the end all are
asked.

Workers, slots and the rotation are fakes; the time is the test's.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.rollout.condition import Condition
from penstock_supervisor.rollout.falls import Falls
from penstock_supervisor.rollout.replaced_workers import ReplacedWorkers

WEB, MORE = ("web", 0), ("web", 1)
START_S = 30.0


class Worker:
    def __init__(self, slot: tuple[str, int]) -> None:
        self.plan = SimpleNamespace(service=slot[0], slot=slot[1], start_s=START_S)
        self.name = f"{slot[0]}/{slot[1]}"
        self.number = slot[1]
        self.state = State.UP
        self.recent: list[tuple[int, int, int]] | None = None
        """It is ejected, and this is what everybody had."""
        self.is_up = self.is_known = True
        self.starts = SimpleNamespace(
            why_ended="exited with status 3",
            last_output=SimpleNamespace(text=lambda: "its last words"),
        )


class Harness:
    """The loop, the slots and the rotation in one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[float] = []
        self.looks = 0
        self.woken = 0
        self.current = {WEB: Worker(WEB), MORE: Worker(MORE)}
        self.silent: set[Any] = set()
        self.again: list[tuple[str, int]] = []
        anything = cast("Any", self)
        falls = Falls(anything, lambda service: self.workers.numbers(service))
        self.workers = ReplacedWorkers(
            anything, anything, anything, falls, Condition(), self.wake, self.lives_since
        )
        self.workers.begin(lambda: self.again)

    def replaced(self, *slots: tuple[str, int]) -> "Harness":
        for slot in slots or (WEB, MORE):
            self.workers.add(cast("Any", self.current[slot]), self.now)
        self.looks = 0
        return self

    def is_now(self, state: State = State.UP, *, up: bool = True, known: bool = True) -> None:
        """web/0 is."""
        worker = self.current[WEB]
        worker.state, worker.is_up, worker.is_known = state, up, known
        self.workers.changed(cast("Any", worker))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.workers.look_again()

    def wake(self) -> None:
        self.woken += 1

    def lives_since(self, child: Any, at: float) -> bool:
        assert at == self.asked_at
        return child not in self.silent

    asked_at = 0.0

    # The loop.

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        del callback
        self.timers.append(when)

    # The slots and the rotation.

    def is_current(self, child: Any) -> bool:
        return child in self.current.values()

    def is_up(self, child: Any) -> bool:
        self.looks += 1
        return bool(child.is_up and child.is_known)

    def ejection(self, child: Any) -> Any:
        return child.recent

    def has_fallen(self, child: Any) -> bool:
        return bool(child.is_known and not child.is_up)

    def why_not_up(self, _: Any) -> str:
        return "status 503"


@pytest.mark.parametrize(
    ("state", "up", "why"),
    [
        (State.BACKOFF, False, "exited with status 3"),
        (State.STARTING, False, "exited with status 3"),
        (State.UP, False, "status 503"),
    ],
)
def test_while_one_is_away_no_other_begins_and_in_the_end_it_fails(
    state: State, why: str, *, up: bool
) -> None:
    harness = Harness().replaced()
    assert harness.workers.all_serve()
    harness.pass_time(100)
    harness.is_now(state, up=up)
    assert (harness.workers.all_serve(), harness.workers.failure()) == (False, None)
    assert harness.woken == 1
    assert harness.timers == [130.0]
    harness.pass_time(29)
    assert harness.workers.failure() is None
    harness.pass_time(1)
    failure = harness.workers.failure()
    assert failure is not None
    assert failure.reason == (
        f"web/0, which was replaced already, does not serve: {why}; "
        "it was not back for good within 30 s"
    )
    assert failure.detail == "its last words"


def test_one_that_is_back_has_to_stay_before_others_begin() -> None:
    harness = Harness().replaced()
    harness.pass_time(3)
    harness.is_now(State.BACKOFF, up=False)
    harness.pass_time(1)
    harness.is_now()
    assert not harness.workers.all_serve()
    harness.pass_time(6)
    assert harness.workers.all_serve()
    assert harness.workers.failure() is None


@pytest.mark.parametrize("state", [State.CRASH_LOOP, State.GIVEN_UP])
def test_one_in_a_crash_loop_fails_at_once(state: State) -> None:
    harness = Harness().replaced()
    harness.is_now(state, up=False)
    failure = harness.workers.failure()
    assert failure is not None
    assert failure.reason.endswith("exited with status 3; it is in a crash loop")


def test_what_is_only_not_known_yet_is_no_fall() -> None:
    harness = Harness().replaced()
    harness.is_now(known=False)
    assert harness.workers.all_serve()


def test_only_who_has_changed_is_looked_at() -> None:
    harness = Harness().replaced()
    harness.is_now()
    assert harness.looks == 1
    harness.workers.look_again()
    assert harness.looks == 1


def test_one_that_is_to_be_replaced_again_holds_nobody_back() -> None:
    harness = Harness().replaced()
    harness.again = [WEB]
    harness.is_now(State.CRASH_LOOP, up=False)
    assert harness.workers.all_serve()
    assert harness.workers.failure() is None
    harness.replaced(WEB)
    harness.again = []
    assert not harness.workers.all_serve(), "so it is the new one that is looked at"


def test_one_that_is_asked_for_again_is_not_looked_at_until_another_one_has_its_slot() -> None:
    harness = Harness().replaced()
    harness.is_now(up=False)
    harness.workers.forget(WEB)
    assert harness.workers.all_serve()
    harness.is_now(State.CRASH_LOOP, up=False)
    harness.pass_time(100)
    assert harness.workers.failure() is None
    harness.asked_at = harness.now
    harness.workers.ask()
    assert harness.workers.is_confirmed()
    harness.replaced(WEB)
    assert not harness.workers.all_serve()


def test_a_question_that_nobody_waits_for_fails_nobody() -> None:
    harness = Harness().replaced()
    harness.silent.add(harness.current[WEB])
    harness.workers.ask()
    assert not harness.workers.is_confirmed()
    harness.workers.end_question()
    harness.pass_time(100)
    assert harness.workers.failure() is None


def test_in_the_end_each_is_asked_once_more() -> None:
    harness = Harness().replaced()
    silent = harness.current[WEB]
    harness.silent.add(silent)
    harness.workers.ask()
    assert not harness.workers.is_confirmed()
    harness.silent.clear()
    assert harness.workers.is_confirmed()


def test_one_of_which_nobody_hears_in_the_end_fails() -> None:
    harness = Harness().replaced()
    harness.current[WEB].is_known = False
    harness.workers.ask()
    harness.pass_time(29)
    assert not harness.workers.is_confirmed()
    assert harness.workers.failure() is None
    assert harness.timers == [START_S]
    harness.pass_time(1)
    assert not harness.workers.is_confirmed()
    failure = harness.workers.failure()
    assert failure is not None
    assert "nobody has heard of it for 30 s" in failure.reason


def test_one_that_falls_in_the_end_has_its_own_time() -> None:
    harness = Harness().replaced()
    harness.silent.add(harness.current[WEB])
    harness.workers.ask()
    assert not harness.workers.is_confirmed(), "web/1 has answered"
    harness.pass_time(3)
    harness.is_now(up=False)
    harness.pass_time(28)
    assert harness.workers.failure() is None
    harness.is_now()
    harness.pass_time(6)
    assert harness.workers.all_serve()
    assert not harness.workers.is_confirmed()
    assert harness.workers.failure() is None
    harness.silent.clear()
    assert harness.workers.is_confirmed()


def test_after_the_end_nobody_is_looked_at() -> None:
    harness = Harness().replaced()
    harness.is_now(State.BACKOFF, up=False)
    harness.workers.end()
    assert harness.workers.all_serve()
    assert harness.workers.is_confirmed()
    harness.replaced()
    harness.is_now(State.CRASH_LOOP, up=False)
    assert harness.workers.failure() is None


def test_one_that_was_removed_holds_nobody_back() -> None:
    harness = Harness().replaced()
    harness.is_now(State.BACKOFF, up=False)
    del harness.current[WEB]
    harness.pass_time(1)
    assert harness.workers.all_serve()


@pytest.mark.parametrize(("failed_of_old", "serves"), [(5, True), (0, False)])
def test_one_that_is_ejected_for_what_fails_under_both_versions_serves(
    failed_of_old: int, *, serves: bool
) -> None:
    harness = Harness().replaced(WEB)
    harness.current[WEB].recent = [(0, 5, 5), (1, failed_of_old, 10)]
    harness.is_now(up=False)
    assert harness.workers.all_serve() is serves
    harness.workers.ask()
    assert harness.workers.is_confirmed() is serves
