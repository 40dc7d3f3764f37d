"""A worker that does not answer is held, reported as hung later, and let go when it answers.

Workers, slots and the rotation are fakes that record; the time is the test's.
Covers `kernel/process_state`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.support.live.wire import until

from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.config.model import Service
from penstock_supervisor.kernel.process_state import catches, is_stopped
from penstock_supervisor.rotation.heartbeat import Heartbeat
from penstock_worker import contract

WEB = ("web", 4)


class Worker:
    def __init__(self, pid: int, *, is_app: bool) -> None:
        self.plan = SimpleNamespace(service="web", slot=0, runs_our_code=is_app)
        self.name, self.number = "web/0", WEB[1]
        self.state = State.UP
        self.pid: int | None = pid
        self.has_channel = True
        self.pings = 0
        self.last_ping: object = None
        self.dumps = 0

    def dump_stacks(self) -> bool:
        self.dumps += 1
        return True

    def send(self, message: dict[str, Any]) -> bool:
        assert message["cmd"] == contract.PING
        self.pings += self.has_channel
        self.last_ping = message["seq"]
        return self.has_channel


class Harness:
    def __init__(self, *, is_app: bool = True, pid: int = 0, timeout: str = "6s") -> None:
        program: dict[str, Any] = {"app": "a:b"} if is_app else {"command": ["a"]}
        service = Service.model_validate(
            {
                "name": "web", "listen": "127.0.0.1:1", "liveness": {"timeout": timeout},
                "health": {"fall": 3}, **program,
            }
        )  # fmt: skip
        self.services = {"web": service}
        self.now = 0.0
        self.worker = Worker(pid, is_app=is_app)
        self.draining: list[Any] = []
        self.said: list[str] = []
        self.deciding_proxies = [0]
        self.heartbeat = Heartbeat(
            cast("Any", SimpleNamespace(time=lambda: self.now)),
            self.services,
            cast("Any", self),
            cast("Any", self),
            lambda _, why: self.said.append(why),
            lambda _: self.said.append("alive"),
            lambda: self.said.append("lives"),
        )

    # The slots.

    def workers(self) -> list[Worker]:
        return [self.worker]

    def child_of(self, key: Any) -> Worker | None:
        return self.worker if key == WEB else None

    def is_draining(self, child: Any) -> bool:
        return child in self.draining

    # The rotation.

    def hold(self, _: Any, reason: str) -> None:
        self.said.append(f"hold: {reason}")

    def release(self, _: Any) -> None:
        self.said.append("release")

    def deciding(self, _: Any) -> list[int]:
        return self.deciding_proxies

    # What happens.

    def is_alive(self) -> bool:
        return self.heartbeat.is_alive(cast("Any", self.worker))

    def beats(self, count: int, *, answered: bool = False, was_asleep: bool = False) -> list[str]:
        """The seconds pass; what was said meanwhile, each once."""
        self.said = []
        for _ in range(count):
            self.now += 1.0
            self.heartbeat.beat(self.now, was_asleep=was_asleep)
            if answered:
                self.heartbeat.answered(cast("Any", self.worker))
        return list(dict.fromkeys(self.said))

    def check(self, *, answered: bool, by: int = 0) -> None:
        self.heartbeat.checked(cast("Any", self.worker), by, answered=answered)


def test_an_app_that_answers_is_left_alone() -> None:
    harness = Harness()
    assert harness.beats(100, answered=True) == []
    assert harness.worker.pings == 100
    assert harness.heartbeat.silent() == {}


def test_an_app_that_does_not_answer_is_held_and_then_hangs() -> None:
    harness = Harness()
    assert harness.beats(3) == []
    assert harness.is_alive()
    assert harness.beats(1) == ["hold: does not answer"]
    assert not harness.is_alive()
    assert harness.heartbeat.silent() == {WEB: 3.0}
    assert harness.beats(2) == []
    assert harness.beats(1) == ["web/0 has not answered for 6 s"]
    # Whoever replaces it is told as long as it is so.
    assert harness.beats(1) == ["web/0 has not answered for 7 s"]
    assert harness.worker.dumps == 1


@pytest.mark.parametrize("silent_beats", [4, 8])
def test_an_app_that_answers_again_is_let_go(silent_beats: int) -> None:
    harness = Harness()
    harness.beats(silent_beats)
    harness.said = []
    harness.heartbeat.answered(cast("Any", harness.worker))
    assert harness.said == ["release", "alive"], "at once"
    assert harness.is_alive()
    assert harness.beats(5, answered=True) == []


def test_a_new_process_is_not_held_for_the_one_before() -> None:
    harness = Harness()
    harness.beats(8)
    harness.worker.pid = 1
    assert harness.beats(3) == []
    assert harness.is_alive()


def test_one_that_stops_or_starts_is_not_asked() -> None:
    harness = Harness()
    harness.beats(2)
    harness.worker.state = State.STOPPING
    assert harness.beats(20) == []
    assert harness.worker.pings == 2


def test_one_that_drains_is_not_asked_and_its_late_answer_says_nothing() -> None:
    harness = Harness()
    harness.beats(4)
    harness.draining.append(harness.worker)
    assert harness.beats(20) == []
    assert harness.worker.pings == 4
    harness.heartbeat.answered(cast("Any", harness.worker))
    assert harness.said == []


def test_an_app_without_a_channel_is_not_called_silent() -> None:
    harness = Harness()
    harness.worker.has_channel = False
    assert harness.beats(20) == []


def test_a_supervisor_that_was_asleep_accuses_nobody() -> None:
    harness = Harness()
    assert harness.beats(50, was_asleep=True) == []


def test_with_a_timeout_of_zero_nobody_is_asked() -> None:
    harness = Harness(timeout="0s")
    assert harness.beats(50) == []
    assert harness.worker.pings == 0


def test_a_command_whose_check_nobody_answers_hangs() -> None:
    harness = Harness(is_app=False, pid=os.getpid())
    harness.beats(1)
    for _ in range(3):
        assert harness.beats(3) == []
        harness.check(answered=False)
    # Its check has taken it out of the rotation by now. Nobody else needs to.
    assert harness.beats(1) == ["web/0 has not answered for 7 s"]
    assert harness.worker.dumps == 1
    assert not harness.is_alive()
    harness.check(answered=True)
    assert harness.beats(1) == ["alive"]


def test_a_command_that_answers_anything_now_and_then_lives() -> None:
    harness = Harness(is_app=False, pid=os.getpid())
    harness.beats(1)
    for _ in range(20):
        harness.check(answered=False)
        assert harness.beats(2) == []
        harness.check(answered=False)
        assert harness.beats(2) == []
        harness.check(answered=True)


def test_one_unanswered_check_is_not_enough_however_long_ago() -> None:
    harness = Harness(is_app=False, pid=os.getpid())
    harness.beats(1)
    harness.check(answered=False)
    assert harness.beats(3600) == []


def test_a_command_that_one_of_two_proxies_reaches_lives() -> None:
    harness = Harness(is_app=False, pid=os.getpid())
    harness.deciding_proxies = [0, 1]
    harness.beats(1)
    for _ in range(20):
        harness.check(answered=False, by=0)
        assert harness.beats(2) == []
    for _ in range(4):
        harness.check(answered=False, by=0)
        harness.check(answered=False, by=1)
        harness.beats(2)
    assert not harness.is_alive()


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as started:
        yield started
        started.kill()


def test_a_command_that_is_stopped_is_held_whatever_its_check_says(
    process: "subprocess.Popen[bytes]",
) -> None:
    harness = Harness(is_app=False, pid=process.pid)
    assert harness.beats(5) == []
    process.send_signal(signal.SIGSTOP)
    until(lambda: is_stopped(process.pid))
    assert harness.beats(4) == ["hold: is stopped"]
    harness.check(answered=True)
    assert harness.beats(3) == ["web/0 has not answered for 6 s"]
    process.send_signal(signal.SIGCONT)
    until(lambda: not is_stopped(process.pid))
    assert harness.beats(1) == ["release", "alive"]


def test_a_stopped_process_is_not_asked_for_the_stacks_that_it_cannot_write(
    process: "subprocess.Popen[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    harness = Harness(pid=process.pid)
    process.send_signal(signal.SIGSTOP)
    until(lambda: is_stopped(process.pid))
    harness.beats(8)
    assert harness.worker.dumps == 0
    assert "web/0 has not answered for 6 s; it is stopped, as by SIGSTOP" in caplog.messages


def test_a_process_that_is_gone_is_not_stopped(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    assert not is_stopped(process.pid)


def other_timeout(scene: Harness, seconds: float) -> None:
    web = scene.services["web"]
    liveness = web.liveness.model_copy(update={"timeout": seconds})
    scene.services["web"] = web.model_copy(update={"liveness": liveness})


def test_a_reload_changes_when_a_silent_worker_counts_as_hung() -> None:
    scene = Harness(timeout="600s")
    assert not [said for said in scene.beats(20) if "has not answered for" in said]
    other_timeout(scene, 6.0)
    assert [said for said in scene.beats(1) if "has not answered for" in said]


def test_a_worker_that_is_held_is_let_go_when_a_reload_ends_the_questions() -> None:
    scene = Harness()
    assert scene.beats(4) == ["hold: does not answer"]
    other_timeout(scene, 0.0)
    assert scene.beats(2) == ["release"]


def lives(harness: Harness, at: float) -> bool:
    return harness.heartbeat.lives_since(cast("Any", harness.worker), at)


def test_who_has_to_know_now_has_an_app_asked_once_more() -> None:
    harness = Harness()
    harness.beats(5, answered=True)
    assert not lives(harness, 5.0)
    question = harness.worker.last_ping
    assert not lives(harness, 5.0)
    assert harness.worker.pings == 6, "it is asked once"
    harness.heartbeat.answered(cast("Any", harness.worker), -1)
    assert not lives(harness, 5.0), "that answers another question"
    harness.heartbeat.answered(cast("Any", harness.worker), question)
    assert lives(harness, 5.0)
    assert harness.said == ["lives"]
    assert not lives(harness, 6.0), "it was not asked since then"


def test_one_that_is_asked_nothing_counts_as_living() -> None:
    harness = Harness(timeout="0s")
    assert lives(harness, 0.0)
    assert harness.worker.pings == 0


def test_one_that_cannot_be_asked_does_not_live() -> None:
    harness = Harness()
    harness.worker.has_channel = False
    assert not lives(harness, 0.0)
    harness.worker.has_channel = True
    assert not lives(harness, 0.0)
    harness.heartbeat.answered(cast("Any", harness.worker), harness.worker.last_ping)
    assert lives(harness, 0.0)


def test_it_is_known_whether_a_process_has_a_handler_for_a_signal(
    process: "subprocess.Popen[bytes]",
) -> None:
    assert not catches(process.pid, contract.DUMP_STACKS_SIGNAL)
    before = signal.signal(contract.DUMP_STACKS_SIGNAL, lambda *_: None)
    try:
        assert catches(os.getpid(), contract.DUMP_STACKS_SIGNAL)
        assert not catches(os.getpid(), contract.DUMP_STACKS_SIGNAL + 1)
    finally:
        signal.signal(contract.DUMP_STACKS_SIGNAL, before)
    process.kill()
    process.wait()
    assert not catches(process.pid, contract.DUMP_STACKS_SIGNAL)


def test_a_stopped_command_does_not_live_until_it_goes_on(
    process: "subprocess.Popen[bytes]",
) -> None:
    harness = Harness(is_app=False, pid=process.pid)
    assert lives(harness, 0.0)
    harness.now = 1.0
    process.send_signal(signal.SIGSTOP)
    until(lambda: is_stopped(process.pid))
    assert not lives(harness, 1.0)
    process.send_signal(signal.SIGCONT)
    until(lambda: not is_stopped(process.pid))
    assert harness.beats(1) == ["lives"], "who waits for that is told"
    assert lives(harness, 1.0)
    assert harness.beats(1) == []
