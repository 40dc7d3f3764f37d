"""A slot has one process at a time, and handles the exit of each in a fixed order.

The process is a fake that records calls, and the test fires the timers of the loop. The state
table is tested in `test_lifecycle`, and real processes in `test_supervisor`.

Covers `children/after_exit`, `children/deadline` and `children/observer`.
"""

from collections.abc import Callable
from typing import Any, cast

import pytest

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.running import ProcessCallbacks
from penstock_supervisor.config.model import Restart
from penstock_supervisor.process.spawn import Exit, SpawnError
from penstock_supervisor.snapshot import Part
from penstock_worker import contract


class Timer:
    def __init__(self, todo: Callable[[], None]) -> None:
        self.todo: Callable[[], None] | None = todo

    def cancel(self) -> None:
        self.todo = None


class Loop:
    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, _: float, todo: Callable[..., None], *arguments: Any) -> Timer:
        self._due.append(Timer(lambda: todo(*arguments)))
        return self._due[-1]

    def call_soon(self, todo: Callable[..., None], *arguments: Any) -> None:
        self.call_later(0, todo, *arguments)

    def pass_time(self) -> None:
        """Everything that waits is due."""
        due, self._due = self._due, []
        for timer in due:
            if timer.todo is not None:
                timer.todo()


class Running:
    """One process; it records calls in the same list as the observer of the slot."""

    links = inodes = ()
    speaks_protocol = has_channel = True
    has_remaining_group = retires = False
    ready_at: float | None = None
    spawned_at = 0.0

    def __init__(self, pid: int, callbacks: ProcessCallbacks, noted: list[str]) -> None:
        self.pid = pid
        self.callbacks = callbacks
        self.last_message: object = None
        self._noted = noted

    def send(self, message: Any, *_: object) -> bool:
        self._noted.append(f"sent {message['cmd']}")
        return True

    def signal(self, number: int) -> None:
        self._noted.append(f"signal {int(number)}")

    def stop(self, within_s: float) -> None:
        self._noted.append(f"signal 15 within {within_s:g} s")

    def shorten_group(self, within_s: float) -> None:
        self._noted.append(f"group within {within_s:g} s")

    def read_pending(self) -> None:
        if self.last_message is not None:
            self.callbacks.on_message(self.last_message, None)

    def close(self) -> None:
        self._noted.append(f"closed {self.pid}")


class Slot:
    """A child, its processes and its observer, which records the calls."""

    def __init__(self, *, retry_after: float = 30.0) -> None:
        self.part: Part = "current"
        self.noted: list[str] = []
        self.processes: list[Running] = []
        self.failure: Exception | None = None
        self.loop = Loop()
        plan = ChildPlan(
            role="worker", service="web", slot=0, argv=("x",), environment={}, runs_our_code=True,
            start_s=1, stop_s=1, restart=Restart(max_restarts=1, retry_after=retry_after),
        )  # fmt: skip
        self.child = Child(plan, *cast("Any", (self.loop, self._spawn, self)))

    def _spawn(self, _: object, sockets: tuple[int, ...], callbacks: ProcessCallbacks) -> Running:
        assert sockets == (7,)
        if self.failure is not None:
            raise self.failure
        self.processes.append(Running(100 + len(self.processes), callbacks, self.noted))
        return self.processes[-1]

    def ready(self) -> None:
        self.child.start()
        self.processes[-1].callbacks.on_message({"cmd": contract.READY}, None)
        self.noted.clear()

    def crash(self, *, times: int = 1, message: object = None) -> None:
        """Its process exits, and the next one is started."""
        for _ in range(times):
            self.processes[-1].last_message = message
            self.processes[-1].callbacks.on_exit(Exit(3, None))
            self.loop.pass_time()

    def events(self) -> list[str]:
        return [one.split()[0] for one in self.noted if " of " in one]

    # What it reports.

    def sockets_for(self, _: Child) -> tuple[int, ...]:
        return (7,)

    def event(self, child: Child, name: str, **_: object) -> None:
        self.noted.append(f"{name} of {child.pid}")

    def exited(self, child: Child) -> None:
        self.noted.append(f"gone {child.pid}")

    def message_received(self, _: Child, message: object, handle: object) -> None:
        self.noted.append(f"message {message}")

    def start_failed(self, _: Child, why: str) -> bool:
        self.noted.append(f"failed: {why}")
        return False

    def gave_up(self, _: Child, why: str) -> bool:
        self.noted.append(f"gave up: {why}")
        return False

    def part_of(self, _: Child) -> Part:
        return self.part

    def left(self, _: Child) -> None:
        self.noted.append("left")

    def replacement_needed(self, _: Child, reason: str, why: str) -> None:
        self.noted.append(f"replacement needed: {reason}")

    def spawned(self, _: Child) -> None: ...
    def joined(self, _: Child) -> None: ...
    def state_changed(self, _: Child) -> None: ...


def test_the_last_message_of_a_process_is_handled_before_its_exit() -> None:
    slot = Slot()
    slot.ready()
    slot.processes[0].last_message = "good bye"
    slot.processes[0].callbacks.on_exit(Exit(1, None))
    assert slot.noted == ["message good bye", "exit of 100", "gone 100", "closed 100", "left"]
    assert slot.child.pid is None
    assert not slot.child.speaks_protocol
    assert not slot.child.has_channel
    assert slot.child.state is State.BACKOFF


def test_the_next_process_is_another_in_the_same_slot() -> None:
    slot = Slot()
    slot.ready()
    slot.processes[0].callbacks.on_exit(Exit(None, 9))
    slot.loop.pass_time()
    assert (slot.child.pid, slot.child.state) == (101, State.STARTING)
    assert slot.child.history.exits == {"SIGKILL": 1}
    assert slot.child.history.restarts == {"signal": 1}


def test_a_closed_channel_of_an_ended_process_has_no_effect() -> None:
    slot = Slot()
    slot.ready()
    slot.processes[0].callbacks.on_disconnect("")
    slot.processes[0].callbacks.on_exit(Exit(0, None))
    slot.loop.pass_time()
    slot.processes[1].callbacks.on_message({"cmd": contract.READY}, None)
    slot.loop.pass_time()
    assert slot.child.state is State.UP
    assert "replacement needed: channel" not in slot.noted


def test_a_worker_that_closes_its_channel_and_stays_is_replaced() -> None:
    slot = Slot()
    slot.ready()
    slot.processes[0].callbacks.on_disconnect("")
    slot.loop.pass_time()
    assert slot.noted == ["disconnect of 100", "replacement needed: channel"]


def test_a_failed_start_is_handled_like_an_exit_after_the_start() -> None:
    slot = Slot()
    slot.failure = SpawnError("command", '"x": no such program')
    slot.child.start()
    assert slot.noted == []
    slot.loop.pass_time()
    assert slot.noted[1] == 'failed: service.web.command: "x": no such program'
    assert slot.child.state is State.BACKOFF


def test_a_start_that_failed_for_a_shortage_is_tried_again_and_is_no_exit() -> None:
    slot = Slot()
    slot.failure = SpawnError("workers", "Too many open files", temporary=True)
    slot.child.start()
    for _ in range(9):
        slot.loop.pass_time()
    slot.failure = None
    slot.loop.pass_time()
    assert (slot.child.pid, slot.child.state) == (100, State.STARTING)
    assert slot.child.history.restarts == {}


def test_too_many_exits_are_one_giveup_and_each_later_one_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slot = Slot()
    slot.ready()
    slot.crash(times=4)
    assert slot.events().count("giveup") == 1
    critical, *others = [one for one in caplog.records if one.levelname == "CRITICAL"]
    assert not others
    alarm = "web/0 is in a crash loop: exited with status 3"
    assert critical.getMessage().startswith(alarm)
    assert "it ended 2 times within 60 s; next start in " in critical.getMessage()
    assert "penstock reload" in critical.getMessage()
    again = [one for one in caplog.messages if "still in the crash loop, next start in" in one]
    assert len(again) == 2
    assert len(slot.processes) == 5
    assert slot.child.history.restarts == {"exit": 4}


def test_a_child_in_a_crash_loop_says_when_it_is_started_next() -> None:
    slot = Slot()
    slot.ready()
    slot.crash()
    assert slot.child.next_start_s is None
    slot.processes[-1].callbacks.on_exit(Exit(3, None))
    assert slot.child.state is State.CRASH_LOOP
    assert 15 <= (slot.child.next_start_s or 0) <= 30
    assert slot.child.shown_state == "crash_loop"
    assert slot.child.history.last_exit_reason == "exited with status 3 after 0.0 s"


def test_a_crash_loop_is_left_by_a_process_that_stays_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    slot = Slot()
    slot.ready()
    slot.crash(times=3)
    slot.processes[-1].callbacks.on_message({"cmd": contract.READY}, None)
    policy = slot.child.history.restart_policy
    before = policy.in_crash_loop
    slot.loop.pass_time()
    assert (before, policy.in_crash_loop) == (True, False)
    assert caplog.messages[-1] == "web/0 has left the crash loop: it is ready for 10 s"
    slot.crash()
    assert slot.child.state is State.STARTING


def test_without_a_retry_a_crash_loop_waits_for_somebody() -> None:
    slot = Slot(retry_after=0.0)
    slot.ready()
    slot.crash(times=2)
    assert (slot.child.state, slot.child.next_start_s) == (State.GIVEN_UP, None)
    assert slot.child.shown_state == "crash_loop"
    slot.child.start()
    slot.crash()
    assert slot.child.state is State.STARTING, "the exits before the request do not count"


def test_an_import_that_fails_at_a_restart_is_a_crash_like_any_other() -> None:
    slot = Slot()
    slot.ready()
    slot.crash()
    slot.crash(message={"cmd": contract.FAILED, "reason": "No module named 'shop'"})
    assert slot.child.state is State.STARTING
    assert len(slot.processes) == 3
    assert slot.child.history.last_exit_reason == "No module named 'shop'"


def test_one_that_says_after_its_start_that_it_failed_is_restarted_like_any_other() -> None:
    slot = Slot()
    slot.ready()
    slot.processes[-1].callbacks.on_message({"cmd": contract.FAILED, "reason": "late"}, None)
    slot.part = "successor"
    slot.crash()
    assert slot.child.state is State.STARTING


def test_who_wants_to_be_replaced_ten_thousand_times_says_it_once_and_in_its_own_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slot = Slot()
    slot.ready()
    forged = "00:00:00.000 INFO web/0 is ready"
    message = {"cmd": contract.RETIRE, "reason": f"a\n{forged}", "traceback": f"T:\n{forged}\n"}
    for _ in range(10_000):
        slot.processes[-1].callbacks.on_message(message, None)
    assert caplog.messages == [f"web/0 retires: a {forged}\n    T:\n    {forged}"]
    assert slot.events().count("retire") == 1


def test_a_replacement_is_a_restart_and_no_exit() -> None:
    slot = Slot()
    for _ in range(9):
        slot.child.start_as_replacement("retire")
    assert slot.child.history.restart_policy.recent_exits == 0
    assert slot.child.history.restarts == {"retire": 9}
    slot.crash()
    assert slot.child.state is State.STARTING


def test_a_successor_that_ends_too_often_ends_without_an_alarm_and_is_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slot = Slot()
    slot.part = "successor"
    slot.child.start()
    slot.crash(times=2)
    assert slot.child.state is State.GIVEN_UP
    assert "giveup" not in slot.events()
    assert caplog.messages[-1].startswith("the successor of web/0 does not start: web/0 exited")
    assert not slot.child.history.restart_policy.in_crash_loop


def test_a_successor_that_cannot_be_imported_is_not_tried_again() -> None:
    slot = Slot()
    slot.part = "successor"
    slot.child.start()
    slot.crash(message={"cmd": contract.FAILED, "reason": "No module named 'shop'"})
    assert (slot.child.state, len(slot.processes)) == (State.GIVEN_UP, 1)


def test_the_exit_of_a_draining_process_is_charged_to_nobody() -> None:
    slot = Slot()
    slot.ready()
    slot.part = "draining"
    assert slot.child.shown_state == "draining"
    slot.crash()
    assert slot.child.state is State.GIVEN_UP
    assert slot.child.history.restart_policy.recent_exits == 0
    assert "giveup" not in slot.events()


def test_a_child_that_is_stopped_in_a_crash_loop_starts_no_more() -> None:
    slot = Slot()
    slot.ready()
    slot.crash()
    slot.processes[-1].callbacks.on_exit(Exit(3, None))
    slot.child.stop()
    slot.loop.pass_time()
    assert (slot.child.state, slot.child.at_rest) == (State.DOWN, True)
    assert slot.child.shown_state == "exited"
