"""The guardian kills the processes of a dead supervisor, and is restarted when it dies."""

import asyncio
import errno
import os
import re
import signal
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from tests.support.descriptors import descriptors
from tests.support.supervisor.process_run import Run, is_gone, shell, until

from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.spawn import Exit


def pid_of(guardian_: Guardian) -> int:
    assert guardian_.pid is not None
    return guardian_.pid


async def test_the_guardian_kills_whole_groups_when_its_supervisor_is_gone() -> None:
    # Its own supervisor is this process, so its end is played by the pipe's end.
    loop = asyncio.get_running_loop()
    guardian_ = Guardian(loop)
    run = Run(guardian_, *shell("trap '' TERM; sleep 1000 & echo $!; wait"))
    grandchild = int(await run.line())
    guardian_.close()
    await until(lambda: is_gone(grandchild))
    assert (await run.ended()).signal == signal.SIGKILL


async def test_a_closed_guardian_without_groups_exits() -> None:
    guardian_ = Guardian(asyncio.get_running_loop())
    pid = pid_of(guardian_)
    run = Run(guardian_, *shell("exit 0"))
    await run.ended()
    guardian_.close()
    assert not psutil.pid_exists(pid)


async def test_the_guardian_ignores_signals_meant_for_a_terminal(guardian: Guardian) -> None:
    run = Run(guardian, *shell("echo up; sleep 1000"))
    await run.line()
    pid = pid_of(guardian)
    process = psutil.Process(pid)
    # It has read what the child announced, or will; its handlers were set before that.
    await until(lambda: process.status() == psutil.STATUS_SLEEPING and _ignores_term(pid))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    guardian.resend()
    assert process.is_running()
    run.process.signal(signal.SIGKILL)
    await run.ended()


def _ignores_term(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigIgn:"):
            return bool(int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1))
    return False


async def test_a_guardian_that_dies_is_replaced_and_gets_all_groups() -> None:
    guardian_ = Guardian(asyncio.get_running_loop())
    run = Run(guardian_, *shell("sleep 1000 & echo $!; wait"))
    grandchild = int(await run.line())
    first = pid_of(guardian_)
    os.kill(first, signal.SIGKILL)
    await until(lambda: guardian_.pid not in {None, first})
    guardian_.close()
    await until(lambda: is_gone(grandchild))
    assert await run.ended() == Exit(None, signal.SIGKILL)


async def test_a_guardian_that_keeps_dying_is_replaced_with_longer_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = descriptors()
    with closing(Guardian(asyncio.get_running_loop())) as guardian_:
        gone: set[int | None] = {None}
        for _ in range(4):
            await until(lambda: guardian_.pid not in gone)
            gone.add(pid_of(guardian_))
            os.kill(pid_of(guardian_), signal.SIGKILL)
            await until(lambda: guardian_.pid is None or guardian_.pid not in gone)
        await until(lambda: guardian_.pid not in gone)
    pauses = [float(text) for text in re.findall(r"ended \(-9\); .* in (\S+) s", caplog.text)]
    assert len(pauses) == 4
    # Drawn from the upper halves of 0.1, 0.2 and 0.4 s, after a first one at once.
    assert pauses[0] == 0
    assert pauses[1:] == sorted(pauses[1:])
    assert pauses[3] >= 0.2
    assert descriptors() == before


async def test_a_child_can_start_before_the_death_of_the_guardian_is_noticed() -> None:
    guardian_ = Guardian(asyncio.get_running_loop())
    first = pid_of(guardian_)
    os.kill(first, signal.SIGKILL)
    # Blocking on purpose: the loop must not come to see it.
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
    run = Run(guardian_, *shell("sleep 1000 & echo $!; wait"))
    grandchild = int(await run.line())
    await until(lambda: guardian_.pid not in {None, first})
    guardian_.close()
    await until(lambda: is_gone(grandchild))
    await run.ended()


async def test_a_guardian_that_cannot_start_is_tried_again_while_children_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        guardian_ = Guardian(asyncio.get_running_loop())
        run = Run(guardian_, *shell("sleep 1000 & echo $!; wait"))
        grandchild = int(await run.line())
        await until(lambda: caplog.text.count("cannot be started (No such file") >= 2)
        assert guardian_.pid is None
    await until(lambda: guardian_.pid is not None)
    guardian_.close()
    await until(lambda: is_gone(grandchild))
    await run.ended()
    assert descriptors() == before


async def test_a_guardian_that_cannot_be_watched_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", refuse)
        guardian_ = Guardian(asyncio.get_running_loop())
        assert guardian_.pid is None
        assert psutil.Process().children() == []
    assert "cannot be watched (Too many open files)" in caplog.text
    guardian_.close()
    assert descriptors() == before
