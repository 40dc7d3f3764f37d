"""Workers without a proxy are asked over their channels, and judged as a proxy would judge them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.descriptors import descriptors

from penstock_supervisor.config.model import Service
from penstock_supervisor.rotation.worker_checks import WorkerChecks
from penstock_worker import contract

WAIT_S = 30.0
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BAD = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 — a pool is plain values, it has no events
            await asyncio.sleep(0.005)


def service(path: str | None = None, **keys: Any) -> Service:
    health = {"path": path, "interval": "10ms", "timeout": "10s", "rise": 2, "fall": 2}
    return Service.model_validate(
        {
            "name": "web", "listen": "127.0.0.1:0", "scheme": "shared", "app": "demo:app",
            "health": {**health, **keys},
        }
    )  # fmt: skip


class Stage:
    """A watch, and workers at the other ends of channels that do as a test says."""

    def __init__(self, service_: Service) -> None:
        self.turns: list[tuple[int, str, str]] = []
        self.asked: list[tuple[int, Any]] = []
        self.heads: list[bytes] = []
        self.away = self.silent = False
        self.answer = GOOD
        self.watch = WorkerChecks([service_], self._ask, self._worker_changed)
        self._open: list[asyncio.StreamWriter] = []
        self._tasks: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Stage"]:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            watching = tasks.create_task(self.watch.run())
            yield self
            watching.cancel()
            await asyncio.wait((watching,))
            for writer in self._open:
                writer.close()

    @property
    def health(self) -> list[str]:
        return [row["health"] for row in self.watch.stats()["pools"]["web"]]

    def count(self, result: str, slot: int = 0) -> int:
        series = self.watch.stats()["metrics"]["services"]["web"]
        count: int = series["penstock_health_checks_total"].get(f"{slot} {result}", 0)
        return count

    def _worker_changed(self, service_: str, slot: int, state: str, reason: str) -> None:
        assert service_ == "web"
        self.turns.append((slot, state, reason))

    def _ask(self, _: str, slot: int, message: Any, handle: socket.socket | None) -> bool:
        self.asked.append((slot, message))
        if self.away:
            return False
        assert self._tasks is not None
        if handle is not None:
            # As the channel does: who asked closes his own.
            self._tasks.create_task(self._serve(handle.dup()))
        elif not self.silent:
            pong = {"cmd": contract.PONG, "seq": message["seq"]}
            asyncio.get_running_loop().call_soon(self.watch.answered, "web", slot, pong)
        return True

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        self._open.append(writer)
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError:
            return
        if not self.silent:
            writer.write(self.answer)


async def test_a_worker_that_answers_the_path_is_up() -> None:
    async with Stage(service("/healthz")).running() as stage:
        assert stage.health == ["absent", "absent"]
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.health == ["up", "absent"])
        assert stage.turns == [(0, "up", "passed its first check")]
        assert stage.asked[0] == (0, {"cmd": contract.PROBE})
        assert stage.heads[0].startswith(b"GET /healthz HTTP/1.1\r\n")


async def test_a_worker_that_answers_badly_goes_and_comes_back_when_it_is_well() -> None:
    async with Stage(service("/healthz")).running() as stage:
        stage.watch.join("web", 1, asks=True)
        await until(lambda: stage.health[1] == "up")
        stage.answer = BAD
        await until(lambda: stage.health[1] == "down")
        assert stage.turns[-1] == (1, "down", "failed 2 checks in a row: HTTP 503")
        stage.answer = GOOD
        await until(lambda: stage.health[1] == "up")
        assert stage.turns[-1] == (1, "up", "passed 2 checks in a row")


async def test_without_a_path_an_answer_on_the_channel_is_enough() -> None:
    async with Stage(service()).running() as stage:
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.count("ok") >= 3)
        numbers = [message["seq"] for _, message in stage.asked]
        assert len(set(numbers)) == len(numbers)
        assert {message["cmd"] for _, message in stage.asked} == {contract.PING}


async def test_a_blocked_worker_is_down_when_it_has_not_answered_in_time() -> None:
    async with Stage(service(timeout="50ms")).running() as stage:
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.health[0] == "up")
        stage.silent = True
        await until(lambda: stage.health[0] == "down")
        assert stage.turns[-1][2] == "failed 2 checks in a row: no answer within 0.05 s"
        assert stage.count("timeout") >= 2


@pytest.mark.parametrize("number", [None, 0, 10**9, "1", [1], {"a": 1}])
async def test_an_answer_to_no_question_is_ignored(number: object) -> None:
    async with Stage(service(timeout="50ms")).running() as stage:
        stage.silent = True
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.asked)
        stage.watch.answered("web", 0, {"cmd": contract.PONG, "seq": number})
        stage.watch.answered("api", 0, {"cmd": contract.PONG, "seq": 1})
        await until(lambda: stage.count("timeout"))
        assert stage.health[0] == "checking"


async def test_nobody_answers_for_another_slot() -> None:
    async with Stage(service(timeout="50ms")).running() as stage:
        stage.silent = True
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.asked)
        stage.watch.answered("web", 1, {"seq": stage.asked[0][1]["seq"]})
        await until(lambda: stage.count("timeout"))
        assert stage.count("ok") == 0


async def test_a_worker_with_a_closed_channel_is_down() -> None:
    async with Stage(service("/healthz")).running() as stage:
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.health[0] == "up")
        stage.away = True
        await until(lambda: stage.health[0] == "down")
        assert stage.turns[-1][2] == "failed 2 checks in a row: its channel is closed"


async def test_a_program_that_cannot_be_asked_is_well_as_long_as_it_runs() -> None:
    async with Stage(service("/healthz")).running() as stage:
        stage.watch.join("web", 0, asks=False)
        await until(lambda: stage.count("ok") >= 3)
        assert stage.health[0] == "up"
        assert stage.asked == []


async def test_the_next_process_of_a_slot_is_asked_though_the_last_could_not_be() -> None:
    async with Stage(service()).running() as stage:
        stage.watch.join("web", 0, asks=False)
        await until(lambda: stage.health[0] == "up")
        stage.watch.leave("web", 0)
        assert stage.turns[-1] == (0, "absent", "process is gone")
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.asked)


async def test_one_that_is_about_to_leave_is_out_until_another_joins() -> None:
    async with Stage(service()).running() as stage:
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.health[0] == "up")
        stage.watch.drain("web", 0)
        assert stage.health[0] == "absent"
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.health[0] == "up")


async def test_an_answer_of_the_process_before_says_nothing_of_the_next() -> None:
    async with Stage(service(timeout="100ms")).running() as stage:
        stage.silent = True
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.asked)
        first = stage.asked[0][1]
        stage.watch.leave("web", 0)
        stage.watch.join("web", 0, asks=True)
        stage.watch.answered("web", 0, {"seq": first["seq"]})
        await until(lambda: stage.count("timeout"))
        assert stage.health[0] == "checking"
        assert stage.count("ok") == 0


@pytest.mark.parametrize("path", [None, "/healthz"])
async def test_a_watch_that_ends_leaves_no_descriptor_and_no_question(path: str | None) -> None:
    before = descriptors()
    async with Stage(service(path)).running() as stage:
        stage.silent = True
        for slot in (0, 1):
            stage.watch.join("web", slot, asks=True)
        await until(lambda: len(stage.asked) >= 2)
    await until(lambda: descriptors() <= before)
    assert descriptors() == before


async def test_what_it_tells_has_the_shape_of_a_proxy_s_answer() -> None:
    async with Stage(service()).running() as stage:
        stage.watch.join("web", 0, asks=True)
        await until(lambda: stage.count("ok"))
        stats = stage.watch.stats()
        assert stats["pools"]["web"][0]["slot"] == 0
        series = stats["metrics"]["services"]["web"]
        assert series["penstock_health_check_duration_seconds"][""][-1] >= 0


async def test_without_such_services_there_is_nothing_to_do() -> None:
    async with asyncio.timeout(WAIT_S):
        watch = WorkerChecks([], lambda *_: False, lambda *_: None)
        assert watch.stats()["pools"] == {}
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch.run())
            await asyncio.sleep(0)
            watching.cancel()
