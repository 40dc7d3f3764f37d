"""Workers without a proxy are checked over their channels, by the rules that a proxy uses."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.descriptors import descriptors

from penstock_supervisor.children.plan import MemberKey
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


class Harness:
    """Worker checks, and workers at the other ends of channels whose answers a test decides."""

    def __init__(self, service_: Service) -> None:
        self.changes: list[tuple[int, str, str]] = []
        self.sent: list[tuple[int, Any]] = []
        self.heads: list[bytes] = []
        self.away = self.silent = False
        self.answer = GOOD
        self.checks = WorkerChecks([service_], self._send, self._worker_changed)
        for slot in range(service_.workers):
            self.checks.add(("web", slot), slot)
        self._open: list[asyncio.StreamWriter] = []
        self._tasks: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Harness"]:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            checking = tasks.create_task(self.checks.run())
            yield self
            checking.cancel()
            await asyncio.wait((checking,))
            for writer in self._open:
                writer.close()

    @property
    def states(self) -> list[str]:
        return [row["health"] for row in self.checks.stats()["pools"]["web"]]

    def count(self, result: str, slot: int = 0) -> int:
        series = self.checks.stats()["metrics"]["services"]["web"]
        count: int = series["penstock_health_checks_total"].get(f"{slot} {result}", 0)
        return count

    def _worker_changed(self, member: MemberKey, state: str, reason: str) -> None:
        assert member[0] == "web"
        self.changes.append((member[1], state, reason))

    def _send(self, member: MemberKey, message: Any, handle: socket.socket | None) -> bool:
        self.sent.append((member[1], message))
        if self.away:
            return False
        assert self._tasks is not None
        if handle is not None:
            # As the channel does: the sender closes its own descriptor.
            self._tasks.create_task(self._serve(handle.dup()))
        elif not self.silent:
            pong = {"cmd": contract.PONG, "seq": message["seq"]}
            asyncio.get_running_loop().call_soon(self.checks.answered, member, pong)
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
    async with Harness(service("/healthz")).running() as harness:
        assert harness.states == ["absent", "absent"]
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.states == ["up", "absent"])
        assert harness.changes == [(0, "up", "passed its first check")]
        assert harness.sent[0] == (0, {"cmd": contract.PROBE})
        assert harness.heads[0].startswith(b"GET /healthz HTTP/1.1\r\n")


async def test_a_worker_that_answers_badly_goes_and_comes_back_when_it_answers_well() -> None:
    async with Harness(service("/healthz")).running() as harness:
        harness.checks.join(("web", 1), can_answer=True)
        await until(lambda: harness.states[1] == "up")
        harness.answer = BAD
        await until(lambda: harness.states[1] == "down")
        assert harness.changes[-1] == (1, "down", "failed 2 checks in a row: HTTP 503")
        harness.answer = GOOD
        await until(lambda: harness.states[1] == "up")
        assert harness.changes[-1] == (1, "up", "passed 2 checks in a row")


async def test_without_a_path_an_answer_on_the_channel_is_enough() -> None:
    async with Harness(service()).running() as harness:
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.count("ok") >= 3)
        numbers = [message["seq"] for _, message in harness.sent]
        assert len(set(numbers)) == len(numbers)
        assert {message["cmd"] for _, message in harness.sent} == {contract.PING}


async def test_a_blocked_worker_is_down_when_it_has_not_answered_in_time() -> None:
    async with Harness(service(timeout="50ms")).running() as harness:
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.states[0] == "up")
        harness.silent = True
        await until(lambda: harness.states[0] == "down")
        assert harness.changes[-1][2] == "failed 2 checks in a row: no answer within 0.05 s"
        assert harness.count("timeout") >= 2


@pytest.mark.parametrize("number", [None, 0, 10**9, "1", [1], {"a": 1}])
async def test_an_answer_with_an_unknown_number_is_ignored(number: object) -> None:
    async with Harness(service(timeout="50ms")).running() as harness:
        harness.silent = True
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.sent)
        harness.checks.answered(("web", 0), {"cmd": contract.PONG, "seq": number})
        harness.checks.answered(("api", 0), {"cmd": contract.PONG, "seq": 1})
        await until(lambda: harness.count("timeout"))
        assert harness.states[0] == "checking"


async def test_a_worker_cannot_answer_for_another_one() -> None:
    async with Harness(service(timeout="50ms")).running() as harness:
        harness.silent = True
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.sent)
        harness.checks.answered(("web", 1), {"seq": harness.sent[0][1]["seq"]})
        await until(lambda: harness.count("timeout"))
        assert harness.count("ok") == 0


async def test_a_worker_with_a_closed_channel_is_down() -> None:
    async with Harness(service("/healthz")).running() as harness:
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.states[0] == "up")
        harness.away = True
        await until(lambda: harness.states[0] == "down")
        assert harness.changes[-1][2] == "failed 2 checks in a row: its channel is closed"


async def test_a_program_that_cannot_be_checked_is_up_as_long_as_it_runs() -> None:
    async with Harness(service("/healthz")).running() as harness:
        harness.checks.join(("web", 0), can_answer=False)
        await until(lambda: harness.count("ok") >= 3)
        assert harness.states[0] == "up"
        assert harness.sent == []


async def test_the_next_process_of_a_worker_is_checked_even_if_the_last_could_not_be() -> None:
    async with Harness(service()).running() as harness:
        harness.checks.join(("web", 0), can_answer=False)
        await until(lambda: harness.states[0] == "up")
        harness.checks.leave(("web", 0))
        assert harness.changes[-1] == (0, "absent", "process is gone")
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.sent)


async def test_a_successor_is_checked_beside_the_worker_that_it_replaces() -> None:
    async with Harness(service()).running() as harness:
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.states[0] == "up")
        harness.checks.add(("web", 7), 0)
        harness.checks.join(("web", 7), can_answer=True)
        await until(lambda: harness.states == ["up", "absent", "up"])
        assert harness.changes[-1] == (7, "up", "passed its first check")
        harness.checks.drain(("web", 0))
        assert harness.changes[-1] == (0, "draining", "is about to leave")
        harness.checks.leave(("web", 0))
        harness.checks.remove(("web", 0))
        assert harness.states == ["absent", "up"]
        rows = harness.checks.stats()["pools"]["web"]
        assert [(row["member"], row["slot"]) for row in rows] == [(1, 1), (7, 0)]


async def test_an_answer_of_the_previous_process_does_not_count_for_the_next() -> None:
    async with Harness(service(timeout="100ms")).running() as harness:
        harness.silent = True
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.sent)
        first = harness.sent[0][1]
        harness.checks.leave(("web", 0))
        harness.checks.join(("web", 0), can_answer=True)
        harness.checks.answered(("web", 0), {"seq": first["seq"]})
        await until(lambda: harness.count("timeout"))
        assert harness.states[0] == "checking"
        assert harness.count("ok") == 0


@pytest.mark.parametrize("path", [None, "/healthz"])
async def test_cancelled_checks_leave_no_descriptor_and_no_pending_check(
    path: str | None,
) -> None:
    before = descriptors()
    async with Harness(service(path)).running() as harness:
        harness.silent = True
        for slot in (0, 1):
            harness.checks.join(("web", slot), can_answer=True)
        await until(lambda: len(harness.sent) >= 2)
    await until(lambda: descriptors() <= before)
    assert descriptors() == before


async def test_a_worker_that_is_added_later_is_checked_as_well() -> None:
    async with Harness(service("/healthz")).running() as harness:
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.states[0] == "up")
        harness.checks.add(("web", 2), 2)
        assert harness.states == ["up", "absent", "absent"]
        harness.checks.join(("web", 2), can_answer=True)
        await until(lambda: harness.states == ["up", "absent", "up"])
        assert harness.changes[-1] == (2, "up", "passed its first check")


@pytest.mark.parametrize("path", [None, "/healthz"])
async def test_a_removed_worker_is_no_longer_checked(path: str | None) -> None:
    async with Harness(service(path)).running() as harness:
        for slot in (0, 1):
            harness.checks.join(("web", slot), can_answer=True)
        await until(lambda: harness.states == ["up", "up"])
        harness.checks.remove(("web", 0))
        assert harness.changes[-1] == (0, "absent", "was removed")
        assert harness.states == ["up"]
        harness.sent.clear()
        await until(lambda: len(harness.sent) >= 3)
        assert {slot for slot, _ in harness.sent} == {1}
        with pytest.raises(KeyError):
            harness.checks.remove(("web", 0))


async def test_a_worker_that_is_removed_during_a_check_leaves_no_pending_check() -> None:
    before = descriptors()
    async with Harness(service()).running() as harness:
        harness.silent = True
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.sent)
        harness.checks.remove(("web", 0))
        harness.checks.answered(("web", 0), {"seq": harness.sent[0][1]["seq"]})
        await asyncio.sleep(0)
        assert harness.count("ok") == 0
        assert harness.changes == []
    assert descriptors() == before


async def test_a_removed_worker_can_be_added_again_and_starts_from_the_beginning() -> None:
    async with Harness(service()).running() as harness:
        harness.checks.join(("web", 0), can_answer=False)
        await until(lambda: harness.states[0] == "up")
        harness.checks.remove(("web", 0))
        harness.checks.add(("web", 0), 0)
        with pytest.raises(ValueError, match="member 0 is there already"):
            harness.checks.add(("web", 0), 0)
        assert harness.states == ["absent", "absent"]
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.states[1] == "up")
        assert harness.sent, "the new program can be asked"


async def test_the_statistics_have_the_shape_of_a_proxys_answer() -> None:
    async with Harness(service()).running() as harness:
        harness.checks.join(("web", 0), can_answer=True)
        await until(lambda: harness.count("ok"))
        stats = harness.checks.stats()
        assert stats["pools"]["web"][0]["slot"] == 0
        series = stats["metrics"]["services"]["web"]
        assert series["penstock_health_check_duration_seconds"][""][-1] >= 0


async def test_without_services_to_check_nothing_is_done() -> None:
    async with asyncio.timeout(WAIT_S):
        checks = WorkerChecks([], lambda *_: False, lambda *_: None)
        assert checks.stats()["pools"] == {}
        async with asyncio.TaskGroup() as tasks:
            checking = tasks.create_task(checks.run())
            await asyncio.sleep(0)
            checking.cancel()


@pytest.mark.parametrize("path", [None, "/healthz"])
@pytest.mark.parametrize("can_answer", [True, False])
async def test_a_worker_is_confirmed_by_one_more_check(
    path: str | None, *, can_answer: bool
) -> None:
    confirmed: list[str] = []
    async with Harness(service(path, interval="1h")).running() as harness:
        harness.checks.join(("web", 0), can_answer=can_answer)
        await until(lambda: harness.states[0] == "up")
        harness.checks.confirm(("web", 0), lambda _: confirmed.append("yes"))
        await until(lambda: confirmed)
        assert harness.count("ok") == 2
