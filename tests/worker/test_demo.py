"""Every page of the demo does what it documents, within its bounds, and ends at shutdown."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.test_utils import TestClient
from multidict import CIMultiDict

from penstock_worker.demo import application

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(aiohttp_client: Callable[..., Awaitable[Client]]) -> Client:
    environ = {"PENSTOCK_SERVICE": "web", "PENSTOCK_SLOT": "3"}
    return await aiohttp_client(application(environ))


async def test_the_root_page_names_the_worker(client: Client) -> None:
    async with client.get("/") as answer:
        text = await answer.text()
    assert text.startswith("hello from web/3 (pid ")
    assert text.endswith(")\n")


async def test_without_a_supervisor_the_root_page_names_no_slot(
    aiohttp_client: Callable[..., Awaitable[Client]],
) -> None:
    client = await aiohttp_client(application({}))
    async with client.get("/") as answer:
        assert (await answer.text()).startswith("hello from worker (pid ")


async def test_healthz_answers_ok(client: Client) -> None:
    async with client.get("/healthz") as answer:
        assert (answer.status, await answer.text()) == (200, "ok\n")


async def test_headers_shows_the_request_head_as_it_arrived(client: Client) -> None:
    sent = CIMultiDict([("X-Twice", "1"), ("X-Twice", "2")])
    async with client.get("/headers?a=%20b", headers=sent) as answer:
        head = await answer.json()
    assert (head["method"], head["target"]) == ("GET", "/headers?a=%20b")
    assert [pair for pair in head["headers"] if pair[0].lower() == "x-twice"] == [
        ["X-Twice", "1"],
        ["X-Twice", "2"],
    ]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "REPORT"])
async def test_echo_returns_body_and_type_of_any_method(client: Client, method: str) -> None:
    body = bytes(range(256)) * 1000
    headers = {"Content-Type": "text/x-odd; a=b"}
    async with client.request(method, "/echo", data=body, headers=headers) as answer:
        assert await answer.read() == body
        assert answer.headers["Content-Type"] == "text/x-odd; a=b"
        assert answer.content_length == len(body)


async def test_echo_answers_each_piece_before_the_next_one_is_sent(client: Client) -> None:
    received = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(5):
            yield b"piece %d" % number
            await received.wait()
            received.clear()

    async with client.post("/echo", data=pieces()) as answer:
        for number in range(5):
            assert await answer.content.readany() == b"piece %d" % number
            received.set()
        assert await answer.read() == b""


async def test_echo_has_no_limit_of_size(client: Client) -> None:
    size = 32 << 20

    async def zeros() -> AsyncIterator[bytes]:
        for _ in range(size >> 16):
            yield bytes(1 << 16)

    async with client.post("/echo", data=zeros()) as answer:
        got = 0
        async for piece in answer.content.iter_any():
            got += len(piece)
    assert got == size


async def test_echo_of_an_encoded_body_is_the_body(client: Client) -> None:
    async with client.post("/echo", data=b"x" * 9999, compress="gzip") as answer:
        assert await answer.read() == b"x" * 9999


@pytest.mark.parametrize("n", [0, 1, 65_536, 1_000_003])
async def test_bytes_returns_as_many_bytes_as_asked_for(client: Client, n: int) -> None:
    async with client.get("/bytes", params={"n": n}) as answer:
        assert answer.content_length == n
        body = await answer.read()
    assert len(body) == n
    assert body[:512] == (bytes(range(256)) * 2)[:n]


async def test_head_has_no_body_and_the_connection_goes_on(client: Client) -> None:
    for path in ("/", "/echo", "/bytes?n=16000000000"):
        async with client.head(path) as answer:
            assert answer.status == 200
            assert await answer.read() == b""
    async with client.get("/healthz") as answer:
        assert answer.status == 200


async def test_sleep_and_burn_report_their_duration(client: Client) -> None:
    async with client.get("/sleep?s=0.001") as answer:
        assert (await answer.text()).startswith("slept 0.001 s in web/3")
    async with client.get("/burn?ms=1") as answer:
        assert (await answer.text()).startswith("burnt 1 ms in web/3")


@pytest.mark.parametrize(
    "path",
    [
        "/sleep?s=x", "/sleep?s=-1", "/sleep?s=3601", "/sleep?s=nan", "/sleep?s=inf", "/sleep?s=",
        "/bytes?n=x", "/bytes?n=-1", "/bytes?n=17179869185", "/burn?ms=60001", "/sse?n=-1",
        "/sse?n=" + "9" * 2000,
    ],
)  # fmt: skip
async def test_a_bad_number_is_one_line_and_400(client: Client, path: str) -> None:
    async with client.get(path) as answer:
        text = await answer.text()
    assert answer.status == 400
    assert text.endswith("is wanted\n")
    assert text.count("\n") == 1
    assert len(text) < 120


async def test_sse_sends_events_and_ends_after_the_last(client: Client) -> None:
    async with client.get("/sse?n=1") as answer:
        assert answer.content_type == "text/event-stream"
        assert (await answer.text()).startswith("id: 0\ndata: web/3 (pid ")


async def test_websocket_echoes_each_message(client: Client) -> None:
    async with client.ws_connect("/ws") as socket:
        await socket.send_str("ä")
        assert await socket.receive_str() == "ä"
        await socket.send_bytes(b"\0" * 100_000)
        assert await socket.receive_bytes() == b"\0" * 100_000


async def test_event_streams_and_websockets_end_at_shutdown(client: Client) -> None:
    events = await client.get("/sse")
    socket: Any = await client.ws_connect("/ws")
    await events.content.readuntil(b"\n\n")
    assert client.app is not None
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(client.app.shutdown())
        last_message = await socket.receive()
        await events.read()
    assert (last_message.type, last_message.data) == (WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)
    await socket.close()
    events.close()
