"""A response for HTTP/1.0 that is broken off ends with a reset under each scheme.

Only the end of the connection ends such a response: a client would take an end for a whole one.

Covers `net/abortive_close`, `servers/aiohttp_framing` and `servers/asgi_http10`.
"""

from typing import TYPE_CHECKING

import psutil
import pytest
from tests.support.live.heads import request
from tests.support.live.many_clients import SCHEMES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock

SHARED = """
import asyncio, os

async def go_on(path):
    if path == "/raise":
        raise RuntimeError("on purpose")
    if path == "/wait":
        await asyncio.sleep(3600)
"""
PROGRAMS = {
    "aiohttp": """
from aiohttp import web

async def serve(request):
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"piece")
    if request.path == "/leave":
        await asyncio.Event().wait()
    if request.path == "/early":
        raise web.HTTPNotFound
    await go_on(request.path)
    await response.write(bytes(4 << 20))
    return response

app = web.Application()
app.router.add_get("/{path}", serve)
""",
    "asgi": """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"piece", "more_body": True})
    while scope["path"] == "/leave":
        if (await receive())["type"] == "http.disconnect":
            return
    await go_on(scope["path"])
    if scope["path"] == "/early":
        return
    await send({"type": "http.response.body", "body": bytes(4 << 20)})
""",
}


@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_client_of_http_1_0_and_the_log_can_tell_a_whole_response_from_a_part(
    penstock: "Penstock", tmp_path: "Path", scheme: str, kind: str
) -> None:
    (tmp_path / "program.py").write_text(SHARED + PROGRAMS[kind])
    run = penstock(app="program:app", scheme=scheme, workers=1)
    whole = run.connect()
    whole.send(request("/whole", minor=0))
    assert whole.rest().endswith(b"\r\n\r\npiece" + bytes(4 << 20))
    for path in ("/raise", "/early"):
        wire = run.connect()
        wire.send(request(path, minor=0))
        assert wire.until(b"piece").endswith(b"\r\n\r\npiece")
        assert wire.is_reset()
    wire = run.connect()
    wire.send(request("/leave"))
    assert wire.until(b"piece")
    wire.reset()
    ended = {
        "/whole": "ok", "/raise": "worker_closed", "/early": "worker_closed",
        "/leave": "client_gone",
    }  # fmt: skip
    run.until(lambda: len(run.log) == len(ended))
    assert {line["target"]: line["termination"] for line in run.log} == ended
    assert {line["status"] for line in run.log} == {200}
    run.until(lambda: run.metric("penstock_requests_total") == len(ended))
    wire = run.connect()
    wire.send(request("/wait", minor=0))
    assert wire.until(b"piece")
    psutil.Process(run.workers()[0]["pid"]).kill()
    assert wire.is_reset()
