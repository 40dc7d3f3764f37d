"""The demo application: one page for each kind of traffic.

Short and long responses, bodies both ways, events, WebSocket, a worker that is busy, stuck or
dead; `udp` is the same for datagrams, and `asgi` has the first page alone, for servers of ASGI.
It is also an example of a program that can be replaced without loss: bodies are streamed with
bounded memory, every number has a limit, and long responses end when the worker stops.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, cast
from weakref import WeakSet

from aiohttp import WSCloseCode, WSMsgType, web

from penstock_worker.contract import SERVICE, SLOT

_MAX_SLEEP_S: Final = 3600.0
_MAX_BYTES: Final = 16 << 30
_MAX_BURN_MS: Final = 60_000.0
_MAX_EVENTS: Final = 1_000_000.0
_FLUSH_S: Final = 0.05
"""For the response of /crash to be sent, which happens when the handler has returned."""
_PIECE: Final = memoryview(bytes(range(256)) * 256)
"""64 KiB: what a socket buffer takes at once, and all that /bytes ever holds."""

_NAME: Final = web.AppKey("name", str)
_STOPPING: Final = web.AppKey("leaving", asyncio.Event)
_SOCKETS: Final = web.AppKey("sockets", WeakSet[web.WebSocketResponse])


def application(environ: Mapping[str, str]) -> web.Application:
    """Build it; `environ` tells which worker it is."""
    app = web.Application()
    app[_NAME] = _worker_name(environ)
    app[_STOPPING] = asyncio.Event()
    sockets: WeakSet[web.WebSocketResponse] = WeakSet()
    app[_SOCKETS] = sockets
    app.on_shutdown.append(_stop)
    for path, handler in _PAGES.items():
        # Any method, so that it can be tried with any client.
        app.router.add_route("*", path, handler)
    return app


class Datagrams(asyncio.DatagramProtocol):
    """Echoes datagrams, and answers "hello" with the name of the worker, from `environ`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._greeting = f"hello from {_worker_name(environ)}\n".encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._transport.sendto(self._greeting if data == b"hello\n" else data, addr)


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello from {_worker(request)}\n")


async def healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def headers(request: web.Request) -> web.Response:
    """The request head as it arrived, which shows what a proxy made of it."""
    version = f"HTTP/{request.version.major}.{request.version.minor}"
    head = {
        "method": request.method,
        "target": request.raw_path,
        "version": version,
        "peer": request.remote,
        "headers": [[name, value] for name, value in request.headers.items()],
    }
    return web.json_response(head, dumps=lambda value: json.dumps(value) + "\n")


async def echo(request: web.Request) -> web.StreamResponse:
    """The body, as it comes."""
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    if "Content-Type" in request.headers:
        response.headers["Content-Type"] = request.headers["Content-Type"]
    # An encoded body was decoded when it was read, and is longer now.
    if request.content_length is not None and "Content-Encoding" not in request.headers:
        response.content_length = request.content_length
    # A client that closes in the middle is no error.
    with suppress(ConnectionError):
        await response.prepare(request)
        if request.method != "HEAD":
            async for piece in request.content.iter_any():
                await response.write(piece)
        await response.write_eof()
    return response


async def sleep(request: web.Request) -> web.Response:
    seconds = _number(request, "s", default=1.0, maximum=_MAX_SLEEP_S)
    await asyncio.sleep(seconds)
    return web.Response(text=f"slept {seconds:g} s in {_worker(request)}\n")


async def some_bytes(request: web.Request) -> web.StreamResponse:
    left = int(_number(request, "n", default=1 << 20, maximum=_MAX_BYTES))
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    response.content_length = left
    with suppress(ConnectionError):
        await response.prepare(request)
        while left and request.method != "HEAD":
            piece = _PIECE[:left]
            await response.write(piece)
            left -= len(piece)
        await response.write_eof()
    return response


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events, one a second, until the client closes or the worker stops."""
    count = int(_number(request, "n", default=_MAX_EVENTS, maximum=_MAX_EVENTS))
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    for number in range(count):
        await response.write(f"id: {number}\ndata: {_worker(request)}\n\n".encode())
        if number + 1 < count and await _stops_within(request.app[_STOPPING], seconds=1.0):
            break
    await response.write_eof()
    return response


async def websocket(request: web.Request) -> web.WebSocketResponse:
    """Echoes messages."""
    socket = web.WebSocketResponse(max_msg_size=16 << 20)
    await socket.prepare(request)
    request.app[_SOCKETS].add(socket)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def crash(request: web.Request) -> web.Response:
    """Exit without cleaning up.

    The response is sent first: a proxy may send an unanswered GET to the next worker, and one
    request would end them all.
    """
    asyncio.get_running_loop().call_later(_FLUSH_S, os._exit, 1)
    text = f"{_worker(request)} dies now\n"
    return web.Response(text=text, headers={"Connection": "close"})


async def burn(request: web.Request) -> web.Response:
    """Occupy the processor, and with it the event loop, for so much processor time."""
    milliseconds = _number(request, "ms", default=100.0, maximum=_MAX_BURN_MS)
    until = time.thread_time() + milliseconds / 1000
    while time.thread_time() < until:
        pass
    return web.Response(text=f"burnt {milliseconds:g} ms in {_worker(request)}\n")


_PAGES: Final[dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = {
    "/": hello,
    "/healthz": healthz,
    "/headers": headers,
    "/echo": echo,
    "/sleep": sleep,
    "/bytes": some_bytes,
    "/sse": events,
    "/ws": websocket,
    "/crash": crash,
    "/burn": burn,
}


async def _stop(app: web.Application) -> None:
    app[_STOPPING].set()
    sockets = app[_SOCKETS]
    for socket in list(sockets):
        await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the worker is leaving")


async def _stops_within(stopping: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await stopping.wait()
    except TimeoutError:
        return False


def _worker_name(environ: Mapping[str, str]) -> str:
    service = environ.get(SERVICE, "worker")
    return f"{service}/{environ[SLOT]}" if SLOT in environ else service


def _worker(request: web.Request) -> str:
    return f"{request.app[_NAME]} (pid {os.getpid()})"


def _number(request: web.Request, name: str, *, default: float, maximum: float) -> float:
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    # NaN compares false with everything, so it is refused here as well.
    if not 0 <= value <= maximum:
        raise web.HTTPBadRequest(
            text=f"{name}={text!r:.40}: a number from 0 to {maximum:g} is wanted\n"
        )
    return value


app: Final = application(os.environ)  # noqa: TID251 -- what `penstock_worker.demo:app` names


def udp() -> asyncio.DatagramProtocol:
    """What `penstock_worker.demo:udp` names."""
    return Datagrams(os.environ)  # noqa: TID251 -- who we are


async def asgi(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Mapping[str, Any]]],
    send: Callable[[Mapping[str, Any]], Awaitable[None]],
) -> None:
    """What `penstock_worker.demo:asgi` names: "/" alone, as an ASGI 3 application."""
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["type"] != "http":
        raise RuntimeError(f"expected HTTP, not {scope['type']}")
    body = f"hello from {_worker_name(os.environ)} (pid {os.getpid()})\n".encode()  # noqa: TID251 -- who we are
    head = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})
