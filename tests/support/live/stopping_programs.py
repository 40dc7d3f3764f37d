"""The same program for aiohttp and for ASGI: what it serves ends at once, late, or never.

    /        ok
    /ws      a WebSocket that echoes; the program itself never closes it
    /stream  a response without an end
    /hang    no response
    /stubborn  no response, and its handler ignores that it is cancelled
    /blocked begins a response, and then blocks the event loop
    /answered  all of a response, and then its handler does not return
    /slow    a response when the file "go-on" is there

Each request leaves a file "begun-PATH"; the clean-up leaves "cleaned-SLOT". It waits for ever
where a file "hang-in-clean-up" is there, and fails where there is "fail-in-clean-up".
"""

from pathlib import Path

_SHARED = """
import asyncio, time
from pathlib import Path
from penstock_worker import process

async def clean_up():
    if Path("hang-in-clean-up").exists():
        await asyncio.sleep(3600)
    if Path("fail-in-clean-up").exists():
        raise RuntimeError("it cannot be cleaned up")
    Path(f"cleaned-{process.slot}").touch()

async def stubborn():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            Path("ignored").touch()

async def until_go_on():
    while not Path("go-on").exists():
        await asyncio.sleep(0.01)
"""

_AIOHTTP = """
from aiohttp import web

async def websocket(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket

async def serve(request):
    path = request.path
    if path != "/":
        Path(f"begun-{path[1:]}").touch()
    if path == "/ws":
        return await websocket(request)
    if path == "/hang":
        await asyncio.sleep(3600)
    if path == "/stubborn":
        await stubborn()
    if path == "/slow":
        await until_go_on()
    if path == "/answered":
        response = web.StreamResponse()
        response.content_length = 2
        await response.prepare(request)
        await response.write(b"ok")
        await asyncio.sleep(3600)
    if path in ("/stream", "/blocked"):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"piece")
            await asyncio.sleep(0.05)
            if path == "/blocked":
                time.sleep(3600)
    return web.Response(text="ok")

async def life(app):
    yield
    await clean_up()

app = web.Application()
app.router.add_get("/{path:.*}", serve)
app.cleanup_ctx.append(life)
"""

_ASGI = """
async def lifespan(receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await clean_up()
    await send({"type": "lifespan.shutdown.complete"})

async def websocket(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    path = scope["path"]
    if path != "/":
        Path(f"begun-{path[1:]}").touch()
    if scope["type"] == "websocket":
        return await websocket(receive, send)
    if path == "/hang":
        await asyncio.sleep(3600)
    if path == "/stubborn":
        await stubborn()
    if path == "/slow":
        await until_go_on()
    if path in ("/stream", "/blocked"):
        await send({"type": "http.response.start", "status": 200})
        while True:
            await send({"type": "http.response.body", "body": b"piece", "more_body": True})
            await asyncio.sleep(0.05)
            if path == "/blocked":
                time.sleep(3600)
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})
    if path == "/answered":
        await asyncio.sleep(3600)
"""

KINDS = ("aio", "asg")


def write(folder: Path) -> None:
    """Write both; they are `aio:app` and `asg:app`."""
    (folder / "aio.py").write_text(_SHARED + _AIOHTTP)
    (folder / "asg.py").write_text(_SHARED + _ASGI)
