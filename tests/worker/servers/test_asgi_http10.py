"""An HTTP/1.0 client of an ASGI application gets no chunks, and keeps its connection if it can."""

import asyncio
from typing import Any

import pytest
import uvicorn

from penstock_worker.servers.asgi_server import AsgiServer


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers in two pieces, with the status and the fields that the query names."""
    if scope["type"] != "http":
        return
    query = dict(pair.split("=") for pair in scope["query_string"].decode().split("&") if pair)
    while (await receive()).get("more_body"):
        pass
    status = int(query.get("status", 200))
    headers = [(b"x", b"y")]
    if "length" in query:
        headers.append((b"Content-Length", query["length"].encode()))
    if "chunked" in query:
        headers.append((b"Transfer-Encoding", b"chunked"))
    if "connection" in query:
        headers.append((b"Connection", query["connection"].encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if query.get("fail"):
        raise RuntimeError("on purpose")
    if status == 204:
        await send({"type": "http.response.body"})
        return
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    await send({"type": "http.response.body", "body": b"two", "more_body": True})
    await send({"type": "http.response.body"})


async def ask(request: bytes, http: str = "httptools", *, draining: bool = False) -> bytes:
    """All that the client gets until the end; it ends its side only when it has waited."""
    server = AsgiServer(app, None)
    server._config.http = http
    await server.start()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: server.protocol(probe=False), "127.0.0.1", 0)
    if draining:
        server.begin_drain()
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


def parts(answer: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    fields = [field.partition(b": ") for field in lines]
    names = [name.lower() for name, _, _ in fields]
    assert len(names) == len(set(names)), answer
    return int(line.split(b" ")[1]), {name.lower(): value for name, _, value in fields}, body


def test_httptools_is_what_uvicorn_uses_here() -> None:
    config = uvicorn.Config(app)
    config.load()
    assert "httptools" in config.http_protocol_class.__module__


@pytest.mark.parametrize(
    ("http", "query"),
    [
        ("httptools", ""),
        ("httptools", "chunked=1"),
        ("httptools", "connection=keep-alive"),
        ("httptools", "connection=close"),
        ("h11", ""),
        ("h11", "chunked=1"),
    ],
)
@pytest.mark.parametrize("field", [b"", b"Connection: keep-alive\r\n"])
async def test_without_a_length_the_end_of_the_connection_is_the_end_of_the_body(
    http: str, query: str, field: bytes
) -> None:
    request = b"GET /?%b HTTP/1.0\r\n%b\r\n" % (query.encode(), field)
    status, fields, body = parts(await ask(request, http))
    assert (status, body) == (200, b"onetwo")
    assert b"transfer-encoding" not in fields
    assert fields[b"connection"] == b"close"


LAST = b"GET /?length=6 HTTP/1.0\r\n\r\n"


@pytest.mark.parametrize(
    ("request_line", "body"),
    [
        (b"GET /?length=6", b"onetwo"),
        (b"HEAD /?length=6", b""),
        (b"HEAD /", b""),
        (b"GET /?status=204", b""),
    ],
)
async def test_a_client_that_asks_for_it_keeps_a_connection_on_which_the_end_of_the_body_is_known(
    request_line: bytes, body: bytes
) -> None:
    asked = request_line + b" HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    answer = await ask(asked + LAST)
    first, _, second = answer.rpartition(b"HTTP/1.1 ")
    _, fields, first_body = parts(first)
    assert (first_body, fields[b"connection"]) == (body, b"keep-alive")
    assert b"transfer-encoding" not in fields
    status, fields, last_body = parts(b"HTTP/1.1 " + second)
    assert (status, last_body, fields[b"connection"]) == (200, b"onetwo", b"close")


@pytest.mark.parametrize("query", ["length=6", "length=6&connection=close"])
async def test_a_client_that_does_not_ask_or_is_told_otherwise_is_closed(query: str) -> None:
    field = b"Connection: keep-alive\r\n" if "close" in query else b""
    request = b"GET /?%b HTTP/1.0\r\n%b\r\n" % (query.encode(), field)
    _, fields, body = parts(await ask(request))
    assert (fields[b"connection"], body) == (b"close", b"onetwo")


async def test_a_worker_that_leaves_keeps_no_connection() -> None:
    request = b"GET /?length=6 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    _, fields, body = parts(await ask(request, draining=True))
    assert (fields[b"connection"], body) == (b"close", b"onetwo")


async def test_no_100_is_sent() -> None:
    request = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab"
    status, _, body = parts(await ask(request))
    assert (status, body) == (200, b"onetwo")


async def test_a_body_that_breaks_off_before_its_length_is_no_whole_one() -> None:
    answer = await ask(b"GET /?length=6&fail=1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert parts(answer)[2] == b""


async def test_an_http_1_1_client_gets_chunks() -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    _, fields, body = parts(await ask(request))
    assert fields[b"transfer-encoding"] == b"chunked"
    assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
