"""A slot has one process at a time, and handles the exit of each in a fixed order.

The process is a fake that records calls, and the test fires the timers of the loop. The state
table is tested in `test_lifecycle`, and real processes in `test_supervisor`.

Covers `children/after_exit`, `children/deadline` and `children/observer`.
Covers `children/present_process`.
"""

import logging
import re
import signal
from collections.abc import Callable
from typing import Any, cast

import pytest

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.last_output import LastOutput
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
    last_output = LastOutput()
    speaks_protocol = has_channel = True
    has_remaining_group = retires = has_shown_stacks = False
    can_show_stacks = False
    ready_at: float | None = None
    spawned_at = 0.0

    def __init__(self, pid: int, callbacks: ProcessCallbacks, noted: list[str]) -> None:
        self.pid = pid
        self.callbacks = callbacks
        self.last_message: object = None
        self.last_output = LastOutput()
        self.killed_because = ""
        self._noted = noted

    def dump_stacks(self) -> bool:
        self.has_shown_stacks = self.can_show_stacks
        return self.can_show_stacks

    def send(self, message: Any, *_: object) -> bool:
        self._noted.append(f"sent {message['cmd']}")
        return True

    def signal(self, number: int) -> None:
        self._noted.append(f"signal {int(number)}")

    def kill(self, why: str) -> None:
        self.killed_because = self.killed_because or why
        self._noted.append("signal 9")

    def stop(self, within_s: float) -> None:
        self._noted.append(f"signal 15 within {within_s:g} s")

    def shorten_group(self, within_s: float) -> None:
        self._noted.append(f"group within {within_s:g} s")

    def read_pending(self) -> None:
        if self.last_message is not None:
            self.callbacks.on_message(self.last_message, None)

    def close(self) -> None:
        self._noted.append(f"closed {self.pid}")


class Look:
    """A look at the directory of a slot, which the test ends."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.is_cancelled = False
        self._todo: list[Callable[[Any], None]] = []

    def add_done_callback(self, todo: Callable[[Any], None]) -> None:
        self._todo.append(todo)

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def exception(self) -> Exception | None:
        return self.error

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        for todo in self._todo:
            todo(self)


class Slot:
    """A child, its processes and its observer, which records the calls."""

    def __init__(self, *, retry_after: float = 30.0) -> None:
        self.part: Part = "current"
        self.noted: list[str] = []
        self.processes: list[Running] = []
        self.failure: Exception | None = None
        self.look: Look | None = None
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

    def look_for_directory(self, _: Child) -> Look | None:
        return self.look

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


def test_a_process_is_started_when_its_directory_was_looked_at() -> None:
    slot = Slot()
    slot.look = Look()
    slot.child.start()
    assert (slot.child.state, slot.processes) == (State.STARTING, [])
    slot.look.end()
    assert slot.child.pid == 100
    slot.processes[0].callbacks.on_message({"cmd": contract.READY}, None)
    assert slot.child.state is State.UP


def test_a_directory_that_does_not_answer_is_a_start_that_is_tried_again_and_is_no_exit() -> None:
    slot = Slot()
    slot.look = Look()
    slot.child.start()
    for _ in range(5):
        slot.look.end(SpawnError("directory", '"/mnt": no answer', temporary=True))
        assert slot.child.state is State.BACKOFF
        assert slot.child.history.last_exit_reason == 'service.web.directory: "/mnt": no answer'
        slot.look = Look()
        slot.loop.pass_time()
    slot.look.end()
    assert (slot.child.pid, slot.child.state) == (100, State.STARTING)
    assert slot.child.history.restarts == {}


@pytest.mark.parametrize("at_once", [False, True])
def test_a_child_that_is_stopped_while_its_directory_is_looked_at_is_never_started(
    at_once: bool,
) -> None:
    slot = Slot()
    slot.look = Look()
    slot.child.start()
    slot.child.stop_now() if at_once else slot.child.stop()
    assert slot.look.is_cancelled, "nobody waits for a disk"
    slot.look.end()
    assert slot.child.at_rest
    assert not slot.processes


def test_a_look_that_ends_after_the_time_to_start_is_a_failed_start() -> None:
    slot = Slot()
    slot.look = Look()
    slot.child.start()
    slot.loop.pass_time()
    assert (slot.child.state, slot.look.is_cancelled) == (State.LATE, True)
    slot.look.end()
    assert slot.child.state is State.BACKOFF
    assert slot.child.history.last_exit_reason == "not ready within 1 s"


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
    policy = slot.child.starts.restart_policy
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
    assert slot.child.starts.restart_policy.recent_exits == 0
    assert slot.child.history.restarts == {"retire": 9}
    slot.crash()
    assert slot.child.state is State.STARTING


@pytest.mark.parametrize("was_ready", [False, True])
def test_a_successor_that_ends_is_not_started_again_and_nothing_is_charged(
    was_ready: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slot = Slot()
    slot.part = "successor"
    slot.child.start()
    slot.loop.now = 1.0
    if was_ready:
        slot.processes[-1].callbacks.on_message({"cmd": contract.READY}, None)
        slot.loop.now = 3.0
    slot.crash()
    assert (slot.child.state, len(slot.processes)) == (State.GIVEN_UP, 1)
    # Its own end is known, and the slot is not shown with it.
    assert (slot.child.starts.last_exit, slot.child.history.last_exit) == ("status 3", "")
    assert "giveup" not in slot.events()
    what = "ended" if was_ready else "does not start"
    assert caplog.messages[-1].startswith(f"the successor of web/0 {what}: web/0 exited")
    # Who wants it says how bad that is.
    assert caplog.records[-1].levelno == logging.INFO
    assert slot.child.starts.restart_policy.recent_exits == 0


def test_the_children_of_a_slot_share_its_counts_and_each_is_judged_by_its_own_exits() -> None:
    slot = Slot()
    slot.ready()
    loop, no_spawn = cast("Any", slot.loop), cast("Any", None)
    newcomer = Child(slot.child.plan, loop, no_spawn, cast("Any", slot), slot.child, 2)
    newcomer.starts.restart_policy.exited(0.0, 0.0)
    newcomer.starts.restart_policy.exited(0.0, 0.0)
    assert newcomer.starts.restart_policy.in_crash_loop
    assert newcomer.history is slot.child.history
    assert (newcomer.starts.was_ready, slot.child.starts.was_ready) == (False, True)
    slot.crash()
    assert slot.child.state is State.STARTING, "its first exit, and not the third of its slot"
    assert newcomer.history.exits == {"3": 1}


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
    assert slot.child.starts.restart_policy.recent_exits == 0
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


def end_by_kill(slot: Slot) -> str:
    slot.processes[-1].callbacks.on_exit(Exit(None, 9))
    return slot.child.history.last_exit_reason


def test_one_that_is_killed_at_its_deadline_is_not_taken_for_one_that_ran_out_of_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    slot = Slot()
    slot.ready()
    slot.child.stop()
    slot.loop.pass_time()
    reason = "was killed by SIGKILL, as it did not leave within 1 s"
    assert end_by_kill(slot) == f"{reason} after it was told to stop"
    assert f"web/0 {reason}" in caplog.text
    assert "memory" not in caplog.text


def test_one_that_is_not_ready_in_time_is_killed_for_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slot = Slot()
    slot.child.start()
    slot.loop.pass_time()
    assert end_by_kill(slot) == "not ready within 1 s"
    assert re.search(
        r"web/0 was killed by SIGKILL after .* s, as it was not ready within 1 s; restart 1 of 1",
        caplog.text,
    )


def test_one_that_is_not_ready_in_time_shows_where_it_stands_before_it_is_killed() -> None:
    slot = Slot()
    slot.child.start()
    process = slot.processes[-1]
    process.can_show_stacks = True
    slot.loop.pass_time()
    assert (slot.child.state, process.killed_because) == (State.STARTING, "")
    process.last_output.add([b"Current thread 0x1 (most recent call first):"])
    process.last_output.add([b'  File "/srv/app.py", line 3 in connect'])
    slot.loop.pass_time()
    assert process.killed_because == "it was not ready within 1 s"
    assert end_by_kill(slot) == "not ready within 1 s; it was at /srv/app.py, line 3, in connect"


def test_one_that_gets_ready_while_it_shows_where_it_stands_is_ready() -> None:
    slot = Slot()
    slot.child.start()
    slot.processes[-1].can_show_stacks = True
    slot.loop.pass_time()
    slot.processes[-1].callbacks.on_ready()
    slot.loop.pass_time()
    assert (slot.child.state, slot.processes[-1].killed_because) == (State.UP, "")


@pytest.mark.parametrize(
    ("do", "because"),
    [
        (lambda slot: slot.child.signal(signal.SIGKILL), "as somebody asked for it"),
        (lambda slot: slot.child.kill("it is a test"), "as it is a test"),
        (lambda slot: None, "and not from here (out of memory?)"),
    ],
)
def test_who_has_killed_it_is_told(
    do: Callable[[Slot], object], because: str, caplog: pytest.LogCaptureFixture
) -> None:
    slot = Slot()
    slot.ready()
    do(slot)
    assert end_by_kill(slot).endswith(f", {because}")
    assert f", {because}; restart 1 of 1" in caplog.text


def test_one_that_asks_to_be_replaced_before_it_is_ready_is_killed_for_that() -> None:
    slot = Slot()
    slot.child.start()
    retires = {"cmd": contract.RETIRE, "reason": "had enough"}
    slot.processes[-1].callbacks.on_message(retires, None)
    assert end_by_kill(slot).endswith("s, as it retires: had enough")


def test_a_stop_that_waits_no_longer_is_the_reason_of_its_kill() -> None:
    slot = Slot()
    slot.ready()
    slot.child.stop()
    slot.child.stop_now()
    assert "as nobody waits for it any more" in end_by_kill(slot)


def test_an_exit_that_was_meant_as_a_kill_and_came_by_itself_is_no_kill() -> None:
    slot = Slot()
    slot.ready()
    slot.child.stop()
    slot.loop.pass_time()
    slot.processes[-1].callbacks.on_exit(Exit(0, None))
    assert slot.child.history.last_exit_reason == "exited with status 0 after it was told to stop"


def test_the_last_output_of_a_process_is_known_until_the_next_one_writes() -> None:
    slot = Slot()
    assert slot.child.starts.last_output.text() == ""
    slot.ready()
    slot.processes[-1].last_output.add([b"KeyError: 'DATABASE'"])
    slot.processes[-1].callbacks.on_exit(Exit(1, None))
    assert slot.child.starts.last_output.text() == "KeyError: 'DATABASE'"
    slot.loop.pass_time()
    assert slot.child.starts.last_output.text() == ""
