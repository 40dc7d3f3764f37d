"""An HTTP/1.0 client of an ASGI application gets no chunks, keeps its connection if it can, and
sees a reset if its response is broken off.

Covers `net/abortive_close`, too.
"""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from tests.support.worker.broken_off import BrokenOffError, until_end

from penstock_worker.servers.asgi_server import AsgiServer

MUCH = bytes(16 << 20)
"""More than the buffers of a connection hold: it is written long after it was sent."""


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
    await answer(status, headers, query, receive, send)


async def answer(
    status: int, headers: list[tuple[bytes, bytes]], query: dict[str, str], receive: Any, send: Any
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if "fail" in query:
        await go_on("raise", receive, send)
    if status == 204:
        await send({"type": "http.response.body"})
        return
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    if "then" in query:
        await go_on(query["then"], receive, send)
        return
    await send({"type": "http.response.body", "body": b"two", "more_body": True})
    await send({"type": "http.response.body"})


async def go_on(then: str, receive: Any, send: Any) -> None:
    """What comes after the first piece, if not the second."""
    if then == "raise":
        raise RuntimeError("on purpose")
    if then == "cancel":
        raise asyncio.CancelledError
    if then == "wait":
        await receive()
    if then == "much":
        await send({"type": "http.response.body", "body": MUCH})


async def ask(
    request: bytes, http: str = "httptools", *, draining: bool = False, end_after: bytes = b""
) -> bytes:
    """All that the client gets until the end. It ends its side only when it has waited, or
    `end_after` these bytes. BrokenOffError: the end is a reset."""
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
        async with asyncio.timeout(60):
            before = b""
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


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("then", ["raise", "return", "cancel"])
@pytest.mark.parametrize("field", [b"", b"Connection: keep-alive\r\n"])
async def test_a_body_that_is_broken_off_ends_with_a_reset_if_only_the_end_would_end_it(
    http: str, then: str, field: bytes
) -> None:
    with pytest.raises(BrokenOffError) as broken_off:
        await ask(b"GET /?then=%b HTTP/1.0\r\n%b\r\n" % (then.encode(), field), http)
    assert parts(broken_off.value.got)[2] == b"one"


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_it_ends_so_for_a_client_that_has_ended_its_side(http: str) -> None:
    with pytest.raises(BrokenOffError):
        await ask(b"GET /?then=wait HTTP/1.0\r\n\r\n", http, end_after=b"\r\n\r\none")


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_whole_body_that_takes_long_to_write_ends_with_an_end(http: str) -> None:
    answer = await ask(b"GET /?then=much HTTP/1.0\r\n\r\n", http)
    assert parts(answer)[2] == b"one" + MUCH


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize(
    "request_line",
    [b"HEAD /?then=raise", b"GET /?status=304&then=raise", b"GET /?length=6&then=raise"],
)
async def test_where_the_end_of_the_body_is_known_otherwise_there_is_no_reset(
    http: str, request_line: bytes
) -> None:
    answer = await ask(request_line + b" HTTP/1.0\r\n\r\n", http)
    assert answer.startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_request_that_fails_before_its_response_gets_a_whole_500(http: str) -> None:
    status, _, body = parts(await ask(b"GET /?status=x HTTP/1.0\r\n\r\n", http))
    assert (status, body) == (500, b"Internal Server Error")
