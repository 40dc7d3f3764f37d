"""The admin port serves its pages read-only, is limited, and leaves no descriptor open.

Covers `control/http_server`.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.descriptors import descriptors

from penstock_supervisor.control import admin, http_server
from penstock_supervisor.control.http_server import MAX_CONNECTIONS
from penstock_supervisor.snapshot import Snapshot

TakeSnapshot = Callable[[float], Awaitable[Snapshot]]


def always(snapshot: Snapshot) -> TakeSnapshot:
    async def take_snapshot(_: float) -> Snapshot:
        return snapshot

    return take_snapshot


def serve(sock: socket.socket, take_snapshot: TakeSnapshot) -> AbstractAsyncContextManager[None]:
    return http_server.serve(sock, admin.app(admin.Pages(take_snapshot), sock))


@asynccontextmanager
async def client(take_snapshot: TakeSnapshot) -> AsyncIterator[aiohttp.ClientSession]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        async with (
            serve(listener, take_snapshot),
            aiohttp.ClientSession(f"http://{host}:{port}") as session,
        ):
            yield session


async def get(session: aiohttp.ClientSession, path: str, **headers: str) -> tuple[int, str, str]:
    async with session.get(path, headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def test_metrics_are_text_by_default(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        status, kind, body = await get(session, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'penstock_connections_total{service="web"} 5.0\n' in body
    assert not body.endswith("# EOF\n")


async def test_metrics_are_openmetrics_when_asked_for(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        status, kind, body = await get(
            session, "/metrics", Accept="application/openmetrics-text; version=1.0.0"
        )
    assert (status, kind) == (200, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith("# EOF\n")


async def test_metrics_are_compressed_only_for_a_client_that_accepts_it(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        async with session.get("/metrics", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert "penstock_build_info" in await answer.text()
        async with session.get("/metrics", headers={"Accept-Encoding": "identity"}) as answer:
            assert "Content-Encoding" not in answer.headers


async def test_the_supervisor_is_healthy_as_long_as_it_answers(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        assert await get(session, "/healthz") == (200, "text/plain; charset=utf-8", "ok\n")


async def test_the_supervisor_is_healthy_whatever_its_workers_do_and_says_what(made: Any) -> None:
    pools = {"web": [made.row(0, "absent")], "api": [made.row(0)]}
    worker = made.worker(state="crash_loop", pid=None, crash_loop=True, next_start_s=9.0)
    snapshot = made.snapshot(made.proxy(stats=made.proxy_stats(**pools)), worker, ready=False)
    async with client(always(snapshot)) as session:
        status, _, text = await get(session, "/healthz")
    assert status == 200
    assert text.splitlines() == [
        "ok",
        "not ready: no worker in rotation for web: crash loop, next start in 9 s",
        "web/0: crash loop, next start in 9 s",
    ]
    async with client(always(made.snapshot(ready=False, stopping=True))) as session:
        assert (await get(session, "/healthz"))[2] == "ok\nstopping\n"


async def test_readiness_names_the_services_without_a_worker(made: Any) -> None:
    pools = {"web": [made.row(0, "down")], "api": [made.row(0)]}
    snapshot = made.snapshot(made.proxy(stats=made.proxy_stats(**pools)), ready=False)
    async with client(always(snapshot)) as session:
        status, _, text = await get(session, "/readyz")
    expected = "not ready: no worker in rotation for web: 127.0.0.1:8100 down\n"
    assert (status, text) == (503, expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ready": True}, (200, "ready\n")),
        ({"ready": False}, (503, "not ready\n")),
        ({"ready": True, "stopping": True}, (503, "stopping\n")),
    ],
)
async def test_readiness_is_the_state_of_the_run(
    made: Any, changes: dict[str, bool], expected: tuple[int, str]
) -> None:
    async with client(always(made.snapshot(**changes))) as session:
        status, _, text = await get(session, "/readyz")
    assert (status, text) == expected


async def test_the_status_is_json(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        status, kind, body = await get(session, "/status")
    assert (status, kind) == (200, "application/json; charset=utf-8")
    assert json.loads(body)["services"]["web"]["workers"][1]["health"] == "down"


async def test_the_index_links_every_page(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        status, kind, body = await get(session, "/")
        assert (status, kind) == (200, "text/html; charset=utf-8")
        links = [part.split('"')[0] for part in body.split('href="')[1:]]
        assert {(await get(session, link))[0] for link in links} == {200}
    assert sorted(links) == ["/healthz", "/metrics", "/readyz", "/status"]


async def test_other_paths_are_not_found_and_other_methods_not_allowed(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        assert (await get(session, "/nothing"))[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            async with session.request(method, "/metrics") as answer:
                assert answer.status == 405
        async with session.head("/metrics") as answer:
            assert (answer.status, await answer.read()) == (200, b"")


async def test_requests_that_come_together_share_one_snapshot(made: Any) -> None:
    begun: list[asyncio.Event] = []
    entered = asyncio.Event()

    async def take_snapshot(_: float) -> Snapshot:
        gate = asyncio.Event()
        begun.append(gate)
        entered.set()
        await gate.wait()
        snapshot: Snapshot = made.snapshot()
        return snapshot

    shared = admin._SharedSnapshot(take_snapshot, 1.0)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(shared.get())
        await entered.wait()
        entered.clear()
        later = [tasks.create_task(shared.get()) for _ in range(20)]
        begun[0].set()
        await first
        await entered.wait()
        assert not any(one.done() for one in later), (
            "they could see a state from before their request"
        )
        begun[1].set()
    assert len(begun) == 2
    assert len({id(one.result()) for one in later}) == 1
    assert first.result() is not later[0].result()


async def test_after_a_snapshot_that_failed_the_next_request_gets_a_new_one(
    made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    async def take_snapshot(_: float) -> Snapshot:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("once")
        snapshot: Snapshot = made.snapshot()
        return snapshot

    async with client(take_snapshot) as session:
        assert (await get(session, "/status"))[0] == 500
        assert (await get(session, "/status"))[0] == 200
    assert "once" in caplog.text


async def test_children_get_a_deadline_and_a_probe_a_shorter_one(made: Any) -> None:
    deadlines: list[float] = []

    async def take_snapshot(deadline_s: float) -> Snapshot:
        deadlines.append(deadline_s)
        snapshot: Snapshot = made.snapshot()
        return snapshot

    async with client(take_snapshot) as session:
        await get(session, "/metrics")
        await get(session, "/readyz")
    assert deadlines == [1.0, 0.1]


async def test_connections_are_limited_and_a_closed_one_frees_its_place(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        address = str(session._base_url.host), session._base_url.port  # type: ignore[union-attr]
        held = []
        for _ in range(MAX_CONNECTIONS):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            held.append(writer)
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(session, "/healthz")
        for writer in held:
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert (await get(session, "/healthz"))[0] == 200
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nX Y: z\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 9000,
    ],
    ids=["TLS", "a bad field", "a target without end", "fields without end"],
)
async def test_garbage_is_rejected_without_a_log_line_and_the_next_client_is_served(
    made: Any, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    async with client(always(made.snapshot())) as session:
        address = str(session._base_url.host), session._base_url.port  # type: ignore[union-attr]
        reader, writer = await asyncio.open_connection(*address)
        writer.write(garbage)
        assert b" 400 " in await reader.readline()
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()
        assert (await get(session, "/healthz"))[0] == 200
    assert not caplog.messages


async def test_an_unexpected_error_is_logged(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: float) -> Snapshot:
        raise ValueError("not foreseen")

    async with client(broken) as session, session.get("/metrics") as answer:
        assert answer.status == 500
    assert "not foreseen" in caplog.text


async def test_a_unix_socket_can_be_the_listener(made: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "admin")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with (
            serve(listener, always(made.snapshot())),
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
        ):
            assert (await get(session, "http://localhost/healthz"))[0] == 200


async def test_closing_the_server_closes_its_descriptors_and_leaves_the_listener(made: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = descriptors()
        async with serve(listener, always(made.snapshot())):
            assert descriptors() == before + 1
        assert descriptors() == before
        assert listener.fileno() >= 0


async def test_closing_the_server_does_not_wait_for_idle_connections(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        address = str(session._base_url.host), session._base_url.port  # type: ignore[union-attr]
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()


PATHS = ("/", "/metrics", "/healthz", "/readyz", "/status", "/reload", "/stop", "/nothing")
METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")


@pytest.mark.parametrize("method", METHODS)
async def test_every_path_refuses_methods_other_than_get_and_head(made: Any, method: str) -> None:
    async with client(always(made.snapshot())) as session:
        for path in PATHS:
            headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
            async with session.request(method, path, headers=headers) as answer:
                assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")


async def status_line(address: tuple[str, int], request: bytes) -> bytes:
    """The status line of the answer to these bytes."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    async with asyncio.timeout(10):
        line = await reader.readline()
    writer.close()
    return line


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9464", 200),
        ("127.0.0.1", 200),
        ("localhost:1", 200),
        ("LocalHost", 200),
        ("localhost.", 200),
        ("penstock.localhost:9464", 200),
        ("[::1]:9464", 200),
        ("my-admin:9464", 200),
        ("evil.example", 421),
        ("evil.example:9464", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("notlocalhost", 421),
        ("[evil.example]", 421),
        ("", 421),
    ],
)
async def test_on_loopback_requests_with_a_foreign_host_are_refused(
    made: Any, host: str, status: int
) -> None:
    pages = admin.Pages(always(made.snapshot()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with http_server.serve(listener, admin.app(pages, listener, "my-admin")):
            request = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            line = await status_line(listener.getsockname(), request.encode())
    assert line.split()[1] == str(status).encode()


async def test_a_request_with_a_second_foreign_host_is_refused(made: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serve(listener, always(made.snapshot())):
            request = b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
            line = await status_line(listener.getsockname(), request)
    assert line.split()[1] in (b"400", b"421")


async def test_on_other_addresses_every_host_is_accepted(made: Any) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        async with serve(listener, always(made.snapshot())):
            request = b"GET /healthz HTTP/1.1\r\nHost: metrics.example\r\n\r\n"
            line = await status_line(("127.0.0.1", listener.getsockname()[1]), request)
    assert b" 200 " in line


async def test_no_other_origin_may_read_a_response(made: Any) -> None:
    async with client(always(made.snapshot())) as session:
        for path in ("/", "/metrics", "/status"):
            async with session.get(path, headers={"Origin": "http://evil.example"}) as answer:
                found = {name.lower() for name in answer.headers}
            assert answer.status == 200
            assert not any(name.startswith("access-control-") for name in found)
