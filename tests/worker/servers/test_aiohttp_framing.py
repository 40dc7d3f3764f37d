"""The end of an aiohttp response is known to clients of HTTP/1.0, and of HEAD; and where it is
broken off, that is known.

Covers `servers/aiohttp_server`, too.
"""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from tests.support.worker.broken_off import BrokenOffError, until_end

from penstock_worker.servers.aiohttp_server import AiohttpServer

MUCH = bytes(16 << 20)
"""More than the buffers of a connection hold."""
WRITTEN = web.AppKey("written", asyncio.Event)
FIELD = b"Connection: keep-alive\r\n"


async def go_on(then: str, request: web.Request, response: Any) -> Any:
    """What comes after the first piece, if not the second."""
    if then == "raise":
        raise RuntimeError("on purpose")
    if then == "raise an answer":
        raise web.HTTPNotFound
    if then == "cancel":
        raise asyncio.CancelledError
    if then == "much":
        await response.write_eof(MUCH)
        return response
    if then == "wait unsent":
        assert request.transport is not None
        while not request.transport.get_write_buffer_size():
            await response.write(bytes(4096))
        await response.write_eof()
        request.app[WRITTEN].set()
    if then.startswith("wait"):
        await asyncio.Event().wait()
    return None


async def stream(request: web.Request) -> Any:
    response = web.StreamResponse(status=int(request.query.get("status", 200)))
    await response.prepare(request)
    await response.write(b"one")
    if "then" in request.query:
        return await go_on(request.query["then"], request, response)
    await response.write(b"two")
    await response.write_eof()
    return response


async def whole(_request: web.Request) -> web.Response:
    return web.Response(text="onetwo")


async def refuse_once(request: web.Request, response: web.StreamResponse) -> None:
    """Fails a response when its head is made, but not the one that says so."""
    if "refuse" in request.query and response.status != 500:
        raise RuntimeError("on purpose")


async def ask(request: bytes, *, end_after: bytes = b"", cut: bool = False) -> bytes:
    """All that the client gets until the end. It ends its side `end_after` these bytes. `cut`: the
    server cuts when the response is written, and before the client reads. BrokenOffError: the end
    is a reset."""
    app = web.Application()
    app[WRITTEN] = asyncio.Event()
    app.router.add_get("/stream", stream)
    app.router.add_get("/whole", whole)
    server = AiohttpServer(app, None)
    app.on_response_prepare.append(refuse_once)
    await server.start()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: server.protocol(probe=False), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.write(request)
    try:
        async with asyncio.timeout(60):
            before = b""
            if cut:
                await app[WRITTEN].wait()
                assert server.cut() == 1
            if end_after:
                before = await reader.readuntil(end_after)
                writer.write_eof()
            return before + await until_end(reader)
    finally:
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()
        listener.close()
        await listener.wait_closed()
        await server.clean_up()


LAST_10 = b"GET /whole HTTP/1.0\r\n\r\n"
LAST_11 = b"GET /whole HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("field", [b"", FIELD])
async def test_a_stream_for_http_1_0_ends_with_its_connection(field: bytes) -> None:
    head, _, body = (await ask(b"GET /stream HTTP/1.0\r\n%b\r\n" % field)).partition(b"\r\n\r\n")
    assert body == b"onetwo"
    assert b"chunked" not in head
    assert b"keep-alive" not in head


async def test_a_whole_response_keeps_the_connection_of_an_http_1_0_client_that_asks() -> None:
    answer = await ask(b"GET /whole HTTP/1.0\r\n%b\r\n" % FIELD + LAST_10)
    assert answer.count(b"HTTP/1.0 200 OK") == 2
    assert answer.count(b"Connection: keep-alive") == 1


@pytest.mark.parametrize("last", [LAST_10, LAST_11])
@pytest.mark.parametrize("request_line", [b"HEAD /stream", b"GET /stream?status=304"])
async def test_what_is_streamed_where_no_body_may_be_is_dropped(
    request_line: bytes, last: bytes
) -> None:
    version = last.split()[2]
    answer = await ask(request_line + b" " + version + b"\r\nHost: a\r\n" + FIELD + b"\r\n" + last)
    first, _, second = answer.rpartition(version)
    assert first.endswith(b"\r\n\r\n")
    assert b"onetwo" not in first
    assert second.endswith(b"\r\n\r\nonetwo")


@pytest.mark.parametrize("then", ["raise", "raise%20an%20answer", "nothing", "cancel"])
@pytest.mark.parametrize("field", [b"", FIELD])
async def test_a_stream_for_http_1_0_that_is_broken_off_ends_with_a_reset(
    then: str, field: bytes
) -> None:
    with pytest.raises(BrokenOffError) as broken_off:
        await ask(b"GET /stream?then=%b HTTP/1.0\r\n%b\r\n" % (then.encode(), field))
    assert broken_off.value.got.endswith(b"\r\n\r\none")


async def test_it_ends_so_for_a_client_that_has_ended_its_side() -> None:
    with pytest.raises(BrokenOffError):
        await ask(b"GET /stream?then=wait HTTP/1.0\r\n\r\n", end_after=b"\r\n\r\none")


async def test_a_whole_stream_that_takes_long_to_write_ends_with_an_end() -> None:
    answer = await ask(b"GET /stream?then=much HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\none" + MUCH)


async def test_a_whole_stream_that_is_cut_while_it_is_written_ends_with_a_reset() -> None:
    with pytest.raises(BrokenOffError):
        await ask(b"GET /stream?then=wait%20unsent HTTP/1.0\r\n\r\n", cut=True)


@pytest.mark.parametrize("request_line", [b"HEAD /stream?then=raise", b"GET /stream?status=304"])
async def test_where_no_body_may_be_there_is_no_reset(request_line: bytes) -> None:
    assert (await ask(request_line + b" HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\n")


async def test_the_answer_to_a_stream_that_fails_before_it_begins_is_whole() -> None:
    answer = await ask(b"GET /stream?refuse=1 HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 500 ")
    assert b"Content-Length: " in answer


@pytest.mark.parametrize("then", ["raise%20an%20answer", "nothing"])
async def test_no_second_response_follows_in_the_body_of_the_first(then: str) -> None:
    answer = await ask(b"GET /stream?then=%b HTTP/1.1\r\nHost: a\r\n\r\n" % then.encode())
    assert answer.endswith(b"\r\n\r\n3\r\none\r\n")
