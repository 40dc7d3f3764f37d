"""The same answers from an `app`, for schemes that pass it connections: no command takes those.

It serves its clients itself, so it cannot break single bytes. It is blocked, dies and retires,
and has exceptions that nobody catches, in tasks and in threads.
"""

import asyncio
import os
import signal
import threading
import time

from aiohttp import web
from tests.support.chaos import deal
from tests.support.chaos.worker import SPIN_S

from penstock_worker import process

SEED = int(os.environ.get("CHAOS_SEED", "0"))
RATE = float(os.environ.get("CHAOS_RATE", "0"))
FAULTS = ("blocked", "death", "retirement", "drop", "drop", "uncaught", "uncaught")

if deal.is_broken(process.slot or 0):
    raise ImportError("half of the new version is not there yet")


class ForgottenError(Exception):
    """Nobody catches it."""


async def _forgotten() -> None:
    raise ForgottenError


def _forgotten_in_a_thread() -> None:
    raise ForgottenError


def _do_wrong(fault: str) -> None:
    """The faults that come before the answer."""
    if fault == "blocked":
        until = time.monotonic() + SPIN_S
        while time.monotonic() < until:
            pass
    elif fault == "death":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "uncaught":
        asyncio.get_running_loop().create_task(_forgotten())
        threading.Thread(target=_forgotten_in_a_thread).start()
    elif fault == "retirement":
        process.retire("the storm wants it")


async def answer(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"].encode()
    size = int(request.match_info["size"])
    data = await request.read()
    fault = deal.fault(SEED, process.slot or 0, name, RATE, FAULTS)
    deal.note(fault)
    _do_wrong(fault)
    if fault == "drop" and request.transport is not None:
        request.transport.abort()
        return web.Response()
    fields = {"X-Chaos": name.decode(), "X-Digest": deal.digest(data).decode()}
    body = deal.body(name, size)
    sized = request.match_info["form"] == "sized" or request.version < (1, 1)
    if sized or request.method == "HEAD":
        return web.Response(body=body, headers=fields)
    response = web.StreamResponse(headers=fields)
    response.enable_chunked_encoding()
    await response.prepare(request)
    for at in range(0, size, 20_000):
        await response.write(body[at : at + 20_000])
    await response.write_eof()
    return response


app = web.Application(client_max_size=64 << 20)
app.router.add_route("*", "/{name}/{size}/{form}", answer)
