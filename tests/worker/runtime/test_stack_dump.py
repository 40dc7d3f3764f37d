"""A worker shows on request where its threads and tasks stand, although its loop is blocked."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from penstock_worker import contract
from penstock_worker.runtime.stack_dump import task_stack, tasks_text

if TYPE_CHECKING:
    from tests.worker.conftest import Served

    Serve = Callable[..., Served]

DEADLINE_S = 60.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("by", ["spin", "sleep", "c"])
def test_a_blocked_worker_shows_its_stacks(serve: "Serve", by: str) -> None:
    served = serve("blocks:app")
    port = served.port()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /?by=%b HTTP/1.1\r\nHost: x\r\n\r\n" % by.encode())
        until((served.directory / "blocked").exists)
        os.kill(served.process.pid, contract.DUMP_STACKS_SIGNAL)
        until(lambda: "in block" in served.stderr())
        if by == "c":
            # Nothing of Python can run now, not even for the tasks.
            return
        until(lambda: "in waits_for_the_database" in served.stderr())
        text = served.stderr()
        assert "Current thread" in text
        assert "and 499 more (most recent call first)" in text
        assert text.count("in waits_for_the_database") == 1


def test_a_worker_that_is_not_blocked_goes_on_and_can_be_asked_again(serve: "Serve") -> None:
    served = serve("blocks:app").ready()
    for times in (1, 2, 3):
        os.kill(served.process.pid, contract.DUMP_STACKS_SIGNAL)
        until(lambda: served.stderr().count("Tasks of the event loop") == times)  # noqa: B023
        assert served.stderr().count("Current thread") == times
    served.send({"cmd": contract.PING, "seq": 1})
    assert served.receive()["cmd"] == contract.PONG
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0


async def test_a_stack_goes_through_awaits_and_generators() -> None:
    async def inner() -> None:
        await asyncio.sleep(1000)

    async def outer() -> None:
        await inner()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(outer())
        await asyncio.sleep(0)
        names = [line.rpartition(" in ")[2] for line in task_stack(task)]
        task.cancel()
    assert names == ["sleep", "inner", "outer"]


async def test_the_text_is_bounded_however_many_tasks_there_are() -> None:
    async def nest(depth: int, wait: asyncio.Event) -> None:
        if depth:
            await nest(depth - 1, wait)
        else:
            await wait.wait()

    wait = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        # A hundred different stacks, and a thousand equal ones.
        sources = [f"async def f{n}(w):\n    await w.wait()" for n in range(100)]
        functions: dict[str, Callable[..., object]] = {}
        for source in sources:
            exec(source, functions)
        for n in range(100):
            tasks.create_task(functions[f"f{n}"](wait))  # type: ignore[arg-type]
        for _ in range(1000):
            tasks.create_task(nest(50, wait))
        await asyncio.sleep(0)
        text = tasks_text(asyncio.get_running_loop())
        wait.set()
    assert len(text) < 64 << 10
    assert "Tasks of the event loop: 1101" in text
    assert "and 999 more" in text
    assert "at 5" in text.splitlines()[-1], text.splitlines()[-1]
