"""A request on the control socket calls the run, and only its owner may send one."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.supervisor.fake_run import FakeRun, served

from penstock_supervisor.control import api, http_server
from penstock_supervisor.kernel.peer_credentials import PeerCredentials
from penstock_supervisor.listeners.control_socket import ControlSocket

WAIT_S = 20.0


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


@pytest.fixture
async def opened(tmp_path: Path, run: FakeRun, made: Any) -> AsyncIterator[ControlSocket]:
    async with served(tmp_path, run, made.snapshot()) as sock:
        yield sock


@pytest.fixture
async def session(opened: ControlSocket) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(opened.path))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/reload", ("reload", (), False)),
        ("/stop", ("stop", False)),
        ("/stop?now=1", ("stop", True)),
        ("/reopen", "reopen"),
        ("/workers/web/0/replace", ("replace", "web", 0)),
        ("/workers/web/0/terminate", (signal.SIGTERM, "web", 0)),
        ("/workers/web/0/kill", (signal.SIGKILL, "web", 0)),
    ],
)
async def test_a_request_calls_the_run_and_is_accepted(
    session: aiohttp.ClientSession, run: FakeRun, path: str, call: object
) -> None:
    async with session.post(path) as answer:
        body = await answer.json()
    assert (answer.status, body["pid"]) == (202, os.getpid())
    assert answer.headers["Connection"] == "close"
    assert run.calls == [call]


@pytest.mark.parametrize("path", ["/workers/web/0/replace", "/workers/web/0/kill"])
async def test_a_request_that_is_not_possible_now_is_a_conflict(
    session: aiohttp.ClientSession, run: FakeRun, path: str
) -> None:
    run.ready = False
    async with session.post(path) as answer:
        assert (answer.status, "not" in (await answer.json())["error"]) == (409, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/workers/web/7/kill", 404),
        ("POST", "/workers/none/0/replace", 404),
        ("POST", "/workers/web/0/dance", 404),
        ("POST", "/workers/web/-1/kill", 404),
        ("POST", "/workers/web/99999999/kill", 404),
        ("POST", "/nothing", 404),
        ("POST", "/status", 405),
        ("GET", "/reload", 405),
        ("POST", "/rollouts", 405),
        ("POST", "/rollouts/1", 405),
        ("HEAD", "/stop", 405),
        ("PUT", "/stop", 405),
        ("DELETE", "/workers/web/0/kill", 405),
    ],
)
async def test_an_unknown_request_is_refused_and_changes_nothing(
    session: aiohttp.ClientSession, run: FakeRun, method: str, path: str, status: int
) -> None:
    async with session.request(method, path) as answer:
        await answer.read()
    assert answer.status == status
    assert run.calls == []


@pytest.mark.parametrize("path", ["/status", "/metrics", "/healthz", "/readyz"])
async def test_the_control_socket_serves_the_pages_of_the_admin_port(
    session: aiohttp.ClientSession, path: str
) -> None:
    async with session.get(path) as answer:
        assert answer.status == 200
        assert await answer.read()


async def test_another_user_with_a_descriptor_is_rejected(
    session: aiohttp.ClientSession, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "peer_credentials", lambda _: PeerCredentials(1, os.geteuid() + 1, 1))
    for method, path in (("POST", "/stop"), ("GET", "/status")):
        async with session.request(method, path) as answer:
            assert answer.status == 403
    assert run.calls == []


@pytest.mark.parametrize(
    "received",
    [b"", b"POST /st", b"POST /stop HTTP/1.1\r\nHost: x\r\nX-Slow: "],
)
async def test_a_client_with_an_incomplete_request_is_disconnected(
    tmp_path: Path, run: FakeRun, made: Any, monkeypatch: pytest.MonkeyPatch, received: bytes
) -> None:
    monkeypatch.setattr(http_server, "FIRST_REQUEST_S", 0.0)
    monkeypatch.setattr(http_server, "_CHECK_S", 0.01)
    async with served(tmp_path, run, made.snapshot()) as sock:
        reader, writer = await asyncio.open_unix_connection(sock.path)
        writer.write(received)
        async with asyncio.timeout(WAIT_S):
            # Unread bytes of the client turn the close into a reset.
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()
    assert run.calls == []


async def test_an_oversized_head_is_refused(opened: ControlSocket, run: FakeRun) -> None:
    reader, writer = await asyncio.open_unix_connection(opened.path)
    writer.write(b"POST /stop HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (1 << 16) + b"\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        assert b" 400 " in await reader.readline()
    writer.close()
    assert run.calls == []


async def test_a_request_body_is_not_read(opened: ControlSocket, run: FakeRun) -> None:
    reader, writer = await asyncio.open_unix_connection(opened.path)
    writer.write(b"POST /stop HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        assert b" 202 " in await reader.readline()
        await reader.read()
    writer.close()
    assert run.calls == [("stop", False)]
