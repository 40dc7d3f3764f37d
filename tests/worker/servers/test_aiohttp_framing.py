"""The end of an aiohttp response is known to clients of HTTP/1.0, and of HEAD.

Covers `servers/aiohttp_server`, too.
"""

import asyncio

import pytest
from aiohttp import web

from penstock_worker.servers.aiohttp_server import AiohttpServer

FIELD = b"Connection: keep-alive\r\n"


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=int(request.query.get("status", 200)))
    await response.prepare(request)
    await response.write(b"one")
    await response.write(b"two")
    await response.write_eof()
    return response


async def whole(_request: web.Request) -> web.Response:
    return web.Response(text="onetwo")


async def ask(request: bytes) -> bytes:
    """All that the client gets until the end."""
    app = web.Application()
    app.router.add_get("/stream", stream)
    app.router.add_get("/whole", whole)
    server = AiohttpServer(app, None)
    await server.start()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: server.protocol(probe=False), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
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
