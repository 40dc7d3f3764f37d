"""Real processes: every exit is reported once, groups are killed, failed starts have a reason.

Covers `process/reaper`.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from tests.support.descriptors import descriptors
from tests.support.supervisor.process_run import Run, is_gone, shell, until

from penstock_supervisor.process.reaper import Guardian, reap_orphans
from penstock_supervisor.process.socket_activation import ExecSpec
from penstock_supervisor.process.spawn import Exit, Process, SpawnError


@pytest.mark.parametrize("status", [0, 1, 78])
async def test_an_exit_is_reported_with_its_status(guardian: Guardian, status: int) -> None:
    run = Run(guardian, *shell(f"exit {status}"))
    end = await run.ended()
    assert end == Exit(status, None)
    assert end.described == f"exited with status {status}"


async def test_a_death_by_signal_is_reported_by_its_name(guardian: Guardian) -> None:
    run = Run(guardian, *shell("kill -SEGV $$"))
    assert (await run.ended()).described == "was killed by SIGSEGV"


async def test_a_child_that_ended_is_reaped(guardian: Guardian) -> None:
    run = Run(guardian, *shell("exit 0"))
    await run.ended()
    assert not psutil.pid_exists(run.process.pid)


async def test_a_signal_reaches_the_whole_group(guardian: Guardian) -> None:
    run = Run(guardian, *shell("sleep 1000 & echo $!; wait"))
    grandchild = int(await run.line())
    run.process.signal(signal.SIGTERM)
    assert await run.ended() == Exit(None, signal.SIGTERM)
    await until(lambda: is_gone(grandchild))


async def test_processes_that_a_child_leaves_behind_are_killed_at_last(guardian: Guardian) -> None:
    run = Run(guardian, *shell("trap '' TERM; sleep 1000 >/dev/null 2>&1 & echo $!"))
    grandchild = int(await run.line())
    assert await run.ended() == Exit(0, None)
    await until(lambda: is_gone(grandchild))


async def test_a_signal_after_the_exit_is_not_sent(guardian: Guardian) -> None:
    run = Run(guardian, *shell("exit 0"))
    pid = run.process.pid
    assert await run.ended() == Exit(0, None)
    run.process.signal(signal.SIGKILL)
    assert is_gone(pid)


async def test_a_child_inherits_the_given_descriptors_and_no_others(guardian: Guardian) -> None:
    given, other = os.pipe()
    try:
        run = Run(guardian, sys.executable, "-c",
                  "import os; print(*(n for n in os.listdir('/proc/self/fd')"
                  " if os.path.exists(f'/proc/self/fd/{n}')))",
                  inherited=(given,))  # fmt: skip
        assert await run.line() == f"0 1 2 {given}"
        await run.ended()
    finally:
        os.close(given)
        os.close(other)


async def test_a_child_leads_a_session_of_its_own(guardian: Guardian) -> None:
    run = Run(guardian, sys.executable, "-c", "import os; print(os.getsid(0), os.getpgid(0))")
    pid = run.process.pid
    assert await run.line() == f"{pid} {pid}"
    await run.ended()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("nodee", "no such program"),
        ("./missing", "no such program"),
        ("./plain", "not executable"),
        ("./orphan", "interpreter in its first line is missing"),
        ("./data", "not a program"),
    ],
)
async def test_the_reason_of_a_failed_start_is_reported(
    guardian: Guardian, folder: Path, program: str, reason: str
) -> None:
    with pytest.raises(SpawnError, match=reason) as failure:
        Process(
            ExecSpec((program,), dict(os.environ), str(folder)),
            asyncio.get_running_loop(),
            guardian,
            lambda _: None,
        )
    assert failure.value.key == "command"
    assert str(failure.value).startswith(f'"{program}": ')


async def test_a_missing_directory_is_reported_and_not_the_program(guardian: Guardian) -> None:
    with pytest.raises(SpawnError, match=r'"/no/such": no such directory') as failure:
        Process(
            ExecSpec(("sh",), dict(os.environ), "/no/such"),
            asyncio.get_running_loop(),
            guardian,
            lambda _: None,
        )
    assert failure.value.key == "directory"


async def test_failed_starts_leave_no_descriptor(guardian: Guardian) -> None:
    before = descriptors()
    for _ in range(5):
        with pytest.raises(SpawnError):
            Run(guardian, "nodee")
    assert descriptors() == before


async def test_finished_processes_leave_no_descriptor(guardian: Guardian) -> None:
    before = descriptors()
    for _ in range(5):
        await Run(guardian, *shell("exit 0")).ended()
    assert descriptors() == before


def orphan() -> int:
    return os.posix_spawn("/bin/true", ["true"], {})


async def test_process_1_reaps_orphans_but_not_its_own_children() -> None:
    pids = [orphan() for _ in range(2)]
    await until(lambda: all(map(is_gone, pids)))
    reap_orphans(set(pids))
    assert all(map(psutil.pid_exists, pids))
    reap_orphans(set())
    assert not any(map(psutil.pid_exists, pids))
