"""What a child left has a signal and the rest of the time, and its end is reported once.

Covers `process/child_signals`.
"""

import asyncio
import logging
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from tests.support.supervisor.process_run import Run, is_gone, shell, until

from penstock_supervisor.process import child_signals
from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.remaining_group import RemainingGroup
from penstock_supervisor.process.spawn import Exit

STUBBORN = "trap '' TERM; sleep 1000 >/dev/null 2>&1 & echo $!"


async def test_the_exit_is_reported_at_once_and_the_group_later(guardian: Guardian) -> None:
    run = Run(guardian, *shell(STUBBORN), stop_s=3600)
    grandchild = int(await run.line())
    assert await run.ended() == Exit(0, None)
    assert run.process.has_remaining_group
    assert not is_gone(grandchild)
    assert run.groups_ended == 0
    run.process.kill_group()
    await until(lambda: run.groups_ended == 1)
    assert is_gone(grandchild)
    assert not run.process.has_remaining_group


async def test_what_is_left_at_the_deadline_is_killed_and_named(
    guardian: Guardian, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(guardian, *shell(STUBBORN), stop_s=0.2)
    grandchild = int(await run.line())
    await run.ended()
    await until(lambda: run.groups_ended == 1)
    assert is_gone(grandchild)
    assert f"killed at the deadline: sleep (pid {grandchild})" in caplog.text


async def test_less_time_can_be_given(guardian: Guardian) -> None:
    run = Run(guardian, *shell(STUBBORN), stop_s=3600)
    await run.line()
    await run.ended()
    assert run.process.has_remaining_group
    run.process.shorten_group(0.0)
    await until(lambda: run.groups_ended == 1)
    assert not run.process.has_remaining_group


async def test_what_ends_by_the_signal_is_not_worth_a_line(
    guardian: Guardian, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = Run(guardian, *shell("sleep 1000 >/dev/null 2>&1 & echo $!"), stop_s=3600)
    await run.line()
    await run.ended()
    await until(lambda: run.groups_ended == 1)
    assert "goes on" not in caplog.text


@pytest.mark.parametrize(("to", "heard"), [("leader", ["leader"]), ("group", ["child", "leader"])])
async def test_a_stop_is_for_the_leader_or_for_all(
    guardian: Guardian, tmp_path: Path, to: str, heard: list[str]
) -> None:
    script = (
        f"cd {tmp_path}; (trap 'echo child >> heard; exit' USR1; touch child; "
        "while :; do sleep 0.02; done) & trap 'echo leader >> heard; wait; exit' USR1; "
        "while [ ! -e child ]; do sleep 0.02; done; echo up; while :; do sleep 0.02; done"
    )
    if to == "leader":
        script = script.replace("wait; exit", "exit")
    run = Run(guardian, *shell(script), stop_signal=signal.SIGUSR1, stop_to=to)
    await run.line()
    run.process.stop(3600)
    await run.ended()
    await until(lambda: not run.process.has_remaining_group)
    assert sorted((tmp_path / "heard").read_text().split()) == heard


async def test_nobody_is_left_means_that_its_end_is_reported(guardian: Guardian) -> None:
    leader = Run(guardian, *shell("exit"))
    await leader.ended()
    ended: list[bool] = []
    loop = asyncio.get_running_loop()
    RemainingGroup(
        loop,
        leader.process.pid,
        "web/0",
        loop.time() + 60,
        lambda: ended.append(True),
        signal.SIGTERM,
    )
    await until(lambda: bool(ended))
    assert ended == [True]


def test_inside_all_blocked_no_signal_arrives_and_after_it_all_do() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    try:
        with child_signals.all_blocked():
            # To this thread: that of a whole process goes to another thread, if there is one.
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            assert got == []
        assert got == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_child_has_default_actions_but_for_those_it_is_given() -> None:
    def before_exec() -> None:
        child_signals.reset(ignored={signal.SIGINT}, blocked={signal.SIGHUP})

    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        said = subprocess.run(
            ["grep", "^Sig", "/proc/self/status"],
            preexec_fn=before_exec,
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    finally:
        signal.signal(signal.SIGCHLD, before)
    masks = dict(line.split(":\t") for line in said.splitlines())
    assert int(masks["SigBlk"], 16) == 1 << (signal.SIGHUP - 1)
    # Signals 32 and 33 are the C library's own. Nobody can change what was inherited of them.
    assert int(masks["SigIgn"], 16) & ~(0b11 << 31) == 1 << (signal.SIGINT - 1)
