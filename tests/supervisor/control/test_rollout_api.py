"""POST /reload says what it leads to, and GET /rollouts/N waits for what happens then."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.supervisor.fake_run import FakeRun, rollout, served, step

from penstock_supervisor.control import rollout_api
from penstock_supervisor.errors import NotNowError, ReloadRefused, UnknownServiceError
from penstock_supervisor.snapshot import ReloadAnswer

WAIT_S = 20.0


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


@pytest.fixture
async def session(tmp_path: Path, run: FakeRun, made: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(tmp_path, run, made.snapshot()) as sock:
        connector = aiohttp.UnixConnector(str(sock.path))
        async with aiohttp.ClientSession("http://localhost", connector=connector) as found:
            yield found


async def post(session: aiohttp.ClientSession, **body: Any) -> tuple[int, Any]:
    async with session.post("/reload", data=json.dumps(body)) as answer:
        return answer.status, await answer.json()


async def get(session: aiohttp.ClientSession, path: str) -> Any:
    async with session.get(path) as answer:
        assert answer.status == 200
        return await answer.json()


async def test_a_reload_is_answered_with_its_roll_out(
    session: aiohttp.ClientSession, run: FakeRun
) -> None:
    run.answer = ReloadAnswer(7, True, ("web.workers: 2 -> 3", "web: 1 worker is added"))
    status, body = await post(session, services=["web", "api", "web"])
    assert run.calls == [("reload", ("web", "api"), False)]
    assert (status, body["rollout"], body["joined"]) == (202, 7, True)
    assert body["changes"] == ["web.workers: 2 -> 3", "web: 1 worker is added"]


async def test_a_dry_run_begins_nothing(session: aiohttp.ClientSession, run: FakeRun) -> None:
    status, body = await post(session, dry_run=True)
    assert run.calls == [("reload", (), True)]
    assert (status, body["rollout"]) == (202, None)


async def test_a_refused_reload_names_every_problem(
    session: aiohttp.ClientSession, run: FakeRun
) -> None:
    run.refusal = ReloadRefused(("user: only a restart", "group: only a restart"))
    status, body = await post(session)
    assert (status, body["problems"]) == (400, ["user: only a restart", "group: only a restart"])
    assert body["error"] == "user: only a restart; group: only a restart"


@pytest.mark.parametrize(
    ("refusal", "status", "error"),
    [
        (
            UnknownServiceError("nothing", ["web", "api"]),
            404,
            'there is no service "nothing", only api, web',
        ),
        (NotNowError("not while it stops"), 409, "not while it stops"),
    ],
)
async def test_a_reload_that_is_not_possible_is_told(
    session: aiohttp.ClientSession, run: FakeRun, refusal: Exception, status: int, error: str
) -> None:
    run.refusal = refusal
    assert await post(session) == (status, {"error": error, "problems": [error]})


@pytest.mark.parametrize(
    "body",
    [
        "{", "[]", "null", "1", '{"services": "web"}', '{"services": [1]}', '{"dry_run": 1}',
        '{"file": 3}', '{"unknown": 1}', "[" * 5000, "\xff",
    ],
)  # fmt: skip
async def test_a_body_that_says_something_else_is_refused(
    session: aiohttp.ClientSession, run: FakeRun, body: str
) -> None:
    async with session.post("/reload", data=body.encode("latin-1")) as answer:
        assert (answer.status, bool((await answer.json())["error"])) == (400, True)
    assert run.calls == []


async def test_a_body_is_bounded_in_size(session: aiohttp.ClientSession, run: FakeRun) -> None:
    async with session.post("/reload", data=b" " * (1 << 20)) as answer:
        assert answer.status == 413
    assert run.calls == []


async def test_a_body_that_does_not_come_is_not_waited_for(
    tmp_path: Path, run: FakeRun, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_api, "_BODY_S", 0.01)
    async with served(tmp_path, run, made.snapshot()) as sock:
        reader, writer = await asyncio.open_unix_connection(sock.path)
        writer.write(b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{")
        async with asyncio.timeout(WAIT_S):
            assert b" 408 " in await reader.readline()
        writer.close()
    assert run.calls == []


async def test_a_file_that_is_not_the_runs_own_is_refused(
    session: aiohttp.ClientSession, run: FakeRun, tmp_path: Path
) -> None:
    own, other, link = tmp_path / "web.toml", tmp_path / "other.toml", tmp_path / "link.toml"
    link.symlink_to(own)
    status, body = await post(session, file=str(own))
    assert (status, body["problems"]) == (400, [f"{own}: this run was started without a file"])
    run.config_file = str(own)
    status, body = await post(session, file=str(other))
    assert (status, body["problems"]) == (400, [f"{other}: this run was started with {own}"])
    assert run.calls == []
    for name in (own, link):
        assert (await post(session, file=str(name)))[0] == 202


async def test_the_roll_outs_are_listed(session: aiohttp.ClientSession, run: FakeRun) -> None:
    assert await get(session, "/rollouts") == {"rollouts": []}
    run.records.put(rollout(1, step(0, "starting", new_pid=200)))
    run.records.put(rollout(2))
    found = (await get(session, "/rollouts"))["rollouts"]
    assert [one["number"] for one in found] == [1, 2]
    assert found[0]["steps"] == [
        {
            "service": "web", "slot": 0, "action": "replace", "state": "starting", "old_pid": 100,
            "new_pid": 200, "reason": "",
        }
    ]  # fmt: skip
    async with session.get("/rollouts/3") as answer:
        assert answer.status == 404


async def test_a_client_waits_until_something_has_changed(
    session: aiohttp.ClientSession, run: FakeRun
) -> None:
    run.records.put(rollout(1, step(0)))
    before = await get(session, "/rollouts/1")
    # Without `wait`, and with an older version, it does not wait.
    assert (await get(session, f"/rollouts/1?seen={before['version']}"))["steps"]
    assert (await get(session, "/rollouts/1?seen=1&wait=60"))["version"] == before["version"]
    assert await get(session, f"/rollouts/1?seen={before['version']}&wait=0.01")
    waiting = asyncio.create_task(get(session, f"/rollouts/1?seen={before['version']}&wait=60"))
    run.records.put(rollout(2))
    run.records.put(rollout(1, step(0, "done")))
    async with asyncio.timeout(WAIT_S):
        after = await waiting
    assert after["steps"][0]["state"] == "done"
    assert after["version"] != before["version"]


async def test_too_many_that_wait_are_answered_at_once(
    session: aiohttp.ClientSession, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_api, "MAX_WAITING", 0)
    run.records.put(rollout(1))
    seen = (await get(session, "/rollouts/1"))["version"]
    async with asyncio.timeout(WAIT_S):
        assert await get(session, f"/rollouts/1?seen={seen}&wait=60")


@pytest.mark.parametrize(
    ("wait", "expected"), [("5", 5.0), ("1e9", 60.0), ("-1", 0.0), ("nan", 0.0), ("x", 0.0)]
)
def test_the_time_to_wait_is_bounded(wait: str, expected: float) -> None:
    assert rollout_api._wait_s({"wait": wait}) == expected
    assert rollout_api._wait_s({}) == 0.0


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "/" + "d/" * 3000])
async def test_a_path_that_cannot_be_one_is_not_the_runs_own_file(
    session: aiohttp.ClientSession, run: FakeRun, path: str
) -> None:
    run.config_file = "/etc/penstock.toml"
    status, body = await post(session, file=path)
    assert (status, body["problems"][0].startswith(path)) == (400, True)
    assert run.calls == []


async def test_the_loop_goes_on_while_the_disk_of_a_path_does_not_answer(
    session: aiohttp.ClientSession, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(rollout_api, "_leads_to_same", lambda *_: answers.wait(60))
    monkeypatch.setattr(rollout_api, "_LOOK_S", 0.01)
    run.config_file = "/etc/penstock.toml"
    status, body = await post(session, file="/net/penstock.toml")
    assert status == 400
    assert body["error"] == "/net/penstock.toml: cannot be looked at: no answer within 0.01 s"
    # The run's own name needs no look.
    assert (await post(session, file="/etc/penstock.toml"))[0] == 202
    answers.set()
