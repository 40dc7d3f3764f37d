"""Channel and links of a process are opened before it, closed after it, and never leaked."""

import asyncio
import dataclasses
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from penstock_proxy.net.address import Address
from penstock_supervisor.children.output import Output
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.children.running import ProcessCallbacks, spawn
from penstock_supervisor.config.model import Restart
from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.spawn import SpawnError

LINKS = 64
WAIT_S = 20.0


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 — names, not paths


def plan(links: int, *argv: str) -> ChildPlan:
    return ChildPlan(
        role="worker", service="web", slot=0, scheme="handoff", argv=argv, environment={},
        runs_our_code=True, link_count=links, start_s=1, stop_s=1, restart=Restart(),
    )  # fmt: skip


@contextmanager
def output_to(file: Path) -> Iterator[Output]:
    """An output of processes that is written to `file`."""
    with file.open("wb") as log:
        loop = asyncio.get_running_loop()
        with closing(Output(loop, stdout=log.fileno(), stderr=log.fileno())) as output:
            yield output


@pytest.mark.parametrize("fd_limit", [0, 70, 120])
def test_without_descriptors_a_process_is_not_started_and_none_leaks(fd_limit: int) -> None:
    # It does not come to what is done with the run.
    nothing = cast("Any", None)
    before = descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd_limit, limits[1]))
    try:
        with pytest.raises(SpawnError, match="for it: Too many open files") as failure:
            spawn(
                plan(LINKS, "true"), (), nothing,
                loop=nothing, tasks=nothing, guardian=nothing, output=nothing,
            )  # fmt: skip
        assert failure.value.temporary
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert descriptors() == before


async def test_everything_that_was_opened_for_a_process_is_closed_with_it(tmp_path: Path) -> None:
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    callbacks = ProcessCallbacks(
        lambda _: gone.set(), lambda *_: None, lambda _: None, lambda: None
    )
    before = descriptors()
    with output_to(tmp_path / "output") as output, closing(Guardian(loop)) as guardian:
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(WAIT_S):
            running = spawn(
                plan(3, "echo", "good bye"), (), callbacks,
                loop=loop, tasks=tasks, guardian=guardian, output=output,
            )  # fmt: skip
            assert (running.has_channel, len(running.links)) == (True, 3)
            await gone.wait()
            running.read_pending()
            running.close()
            assert (running.has_channel, running.links) == (False, ())
    assert (tmp_path / "output").read_bytes() == b"web/0 | good bye\n"
    assert descriptors() == before


async def test_the_wait_for_readiness_ends_with_the_process(
    tmp_path: Path,
) -> None:
    loop, gone, ready = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    callbacks = ProcessCallbacks(
        lambda _: gone.set(), lambda *_: None, lambda _: None, on_ready=ready.set
    )
    with output_to(tmp_path / "output") as output, closing(Guardian(loop)) as guardian:
        # A task that is left would hold the group up.
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            silent = dataclasses.replace(
                plan(0, "true"), runs_our_code=False, address=Address("127.0.0.1", 1)
            )
            running = spawn(
                silent, (), callbacks, loop=loop, tasks=tasks, guardian=guardian, output=output
            )
            await gone.wait()
            running.close()
    assert not ready.is_set()


@pytest.mark.parametrize(
    "command",
    [
        "exit 3",
        "kill -9 $$",
        # It closes its channel long before it ends.
        "eval exec $PENSTOCK_CHANNEL_FD'>&-'; echo closed; sleep 0.2",
        # What it leaves behind keeps the other end open.
        "setsid sleep 60 & echo $! >&2",
    ],
)
async def test_the_end_of_the_channel_is_reported_once_and_before_the_exit(
    tmp_path: Path, command: str
) -> None:
    loop, gone, told = asyncio.get_running_loop(), asyncio.Event(), list[str]()

    def ended(_: object) -> None:
        running.read_pending()
        told.append("exit")
        running.close()
        gone.set()

    callbacks = ProcessCallbacks(
        ended, lambda *_: None, lambda _: told.append("disconnect"), lambda: None
    )
    with output_to(tmp_path / "output") as output, closing(Guardian(loop)) as guardian:
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(WAIT_S):
            running = spawn(
                plan(0, "bash", "-c", command), (), callbacks,
                loop=loop, tasks=tasks, guardian=guardian, output=output,
            )  # fmt: skip
            await gone.wait()
            # Whatever the loop still had to do is done.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    left = running.last_output.text()
    if left.isdecimal():
        os.kill(int(left), signal.SIGKILL)
    assert told == ["disconnect", "exit"]


async def test_the_last_lines_of_a_process_are_known_when_it_has_ended(tmp_path: Path) -> None:
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    callbacks = ProcessCallbacks(
        lambda _: gone.set(), lambda *_: None, lambda _: None, lambda: None
    )
    command = "for i in $(seq 500); do echo line $i; done; printf 'KeyError: PORT' >&2; exit 1"
    with output_to(tmp_path / "output") as output, closing(Guardian(loop)) as guardian:
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(WAIT_S):
            running = spawn(
                plan(0, "sh", "-c", command), (), callbacks,
                loop=loop, tasks=tasks, guardian=guardian, output=output,
            )  # fmt: skip
            await gone.wait()
            running.read_pending()
            running.close()
    assert {"line 500", "KeyError: PORT"} <= set(running.last_output.text().splitlines())


@pytest.mark.parametrize("waits", [False, True])
async def test_a_worker_that_has_to_wait_for_accept_is_told_so(
    tmp_path: Path, *, waits: bool
) -> None:
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    callbacks = ProcessCallbacks(
        lambda _: gone.set(), lambda *_: None, lambda _: None, lambda: None
    )
    told = dataclasses.replace(plan(0, "env"), awaits_accept=waits)
    with output_to(tmp_path / "output") as output, closing(Guardian(loop)) as guardian:
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(WAIT_S):
            running = spawn(
                told, (), callbacks, loop=loop, tasks=tasks, guardian=guardian, output=output
            )
            await gone.wait()
            running.read_pending()
            running.close()
    assert ("PENSTOCK_AWAIT_ACCEPT=1" in running.last_output.text()) is waits
