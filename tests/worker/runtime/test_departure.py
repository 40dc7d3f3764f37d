"""A worker leaves in order: it tells those that stay, finishes, cuts the rest, and never waits for
longer than it was given.

Covers `runtime/departure`.
"""

import asyncio
from typing import Any, cast

import pytest

from penstock_worker.listener.connections import Connections
from penstock_worker.runtime.departure import Departure
from penstock_worker.telemetry.counters import RequestCounters

HOUR_S = 3600.0


class Server:
    """A server that records its steps; what `blocked` names does not end."""

    def __init__(self, blocked: str = "", error: Exception | None = None) -> None:
        self.steps: list[str] = []
        self.cancelled: list[str] = []
        self._blocked = blocked
        self._error = error

    async def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self._blocked:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise

    async def farewell(self) -> None:
        await self._step("farewell")
        if self._error is not None:
            raise self._error

    def begin_drain(self) -> None:
        self.steps.append("drain")

    async def finish(self) -> None:
        await self._step("finish")

    def cut(self) -> int:
        self.steps.append("cut")
        return 3


class Scene:
    def __init__(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        self.server = server
        self.cut: list[int] = []
        self.leave = asyncio.Event()
        self.departure = Departure(loop, self.leave, self.cut.append)
        self.connections = Connections(loop, RequestCounters())

    def start(self) -> "asyncio.Task[None]":
        run = self.departure.run(self.server, self.connections)
        return asyncio.get_running_loop().create_task(run)

    async def until(self, step: str) -> None:
        async with asyncio.timeout(30):
            while step not in self.server.steps:  # noqa: ASYNC110 -- the server's own steps
                await asyncio.sleep(0)


async def test_a_notice_lets_the_program_say_goodbye_and_admits_requests_until_term() -> None:
    scene = Scene(Server())
    run = scene.start()
    scene.departure.notice(HOUR_S, HOUR_S)
    await scene.until("farewell")
    assert scene.server.steps == ["farewell"]
    scene.leave.set()
    await run
    assert scene.server.steps == ["farewell", "drain", "finish"]
    assert scene.cut == []


async def test_term_without_a_notice_is_one() -> None:
    scene = Scene(Server())
    scene.leave.set()
    await scene.start()
    assert scene.server.steps == ["farewell", "drain", "finish"]


@pytest.mark.parametrize("blocked", ["farewell", "finish"])
async def test_what_has_not_ended_in_time_is_cut_and_cancelled(blocked: str) -> None:
    scene = Scene(Server(blocked))
    run = scene.start()
    scene.departure.notice(HOUR_S, HOUR_S)
    scene.leave.set()
    await scene.until(blocked)
    scene.departure.notice(0.0, HOUR_S)
    await run
    assert scene.server.steps[-1] == "cut"
    assert scene.server.cancelled == [blocked]
    assert scene.cut == [3]


async def test_a_later_end_does_not_replace_an_earlier_one() -> None:
    scene = Scene(Server("finish"))
    scene.departure.notice(0.0, HOUR_S)
    scene.departure.notice(HOUR_S, HOUR_S)
    scene.leave.set()
    await scene.start()
    assert scene.cut == [3]


async def test_a_worker_that_is_never_told_to_leave_leaves_when_its_time_is_over() -> None:
    scene = Scene(Server("finish"))
    scene.departure.notice(0.01, HOUR_S)
    await scene.start()
    assert scene.cut == [3]


async def test_a_farewell_that_fails_is_reported_when_all_has_finished() -> None:
    scene = Scene(Server(error=RuntimeError("no goodbye")))
    scene.leave.set()
    with pytest.raises(RuntimeError, match="no goodbye"):
        await scene.start()
    assert scene.server.steps[-1] == "finish"


async def test_connections_are_reset_by_a_thread_when_the_loop_is_blocked() -> None:
    scene = Scene(Server())
    called: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Recorded:
        def reset_on_close(self) -> None:
            loop.call_soon_threadsafe(called.set_result, None)

        async def drain(self) -> None: ...

    loop = asyncio.get_running_loop()
    scene.connections = cast("Any", Recorded())
    run = scene.start()
    await asyncio.sleep(0)
    scene.departure.notice(HOUR_S, -HOUR_S + 0.01)
    async with asyncio.timeout(30):
        await called
    assert not scene.leave.is_set(), "nobody else had told them"
    scene.leave.set()
    await run
