"""The admin port: /metrics, /healthz, /readyz, /status, and an index of them. Read only.

Owns an HTTP server on a socket that somebody else opened. It knows the run by one function,
`observe`, and cannot change anything, so it needs no password; it does tell what runs where,
which is why it listens on the loopback address unless told otherwise.

Nothing that is asked here may disturb what is served elsewhere: requests that come together
share one observation, rendering is done by few threads, and connections are bounded, since
they take descriptors from the process that has to start the next worker.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

from aiohttp import web

from penstock_supervisor import collector, sockdiag, status
from penstock_supervisor.observation import Observation

Observe = Callable[[float], Awaitable[Observation]]
"""Given the seconds that children have to answer."""

DEADLINE_S: Final = 1.0
"""Prometheus waits ten seconds for a page; a child that is stuck should not cost them all."""
_PROBE_S: Final = 0.1
"""For /readyz, which must answer within the second that a probe usually has."""
MAX_CONNECTIONS: Final = 64
_RENDERERS: Final = 2
_LINGER_S: Final = 1.0
"""What an answer under way gets when the run ends."""

_INDEX: Final = """\
<!doctype html><meta charset="utf-8"><title>penstock</title>
<h1>penstock</h1>
<ul>
<li><a href="/status">/status</a> &ndash; what runs, as JSON
<li><a href="/metrics">/metrics</a> &ndash; for Prometheus
<li><a href="/readyz">/readyz</a> &ndash; 200 while every service has a worker in rotation
<li><a href="/healthz">/healthz</a> &ndash; 200 while the supervisor lives
</ul>
"""


@asynccontextmanager
async def serve(sock: socket.socket, observe: Observe) -> AsyncIterator[None]:
    """Answer on the listening `sock`, which stays the caller's, until the end of the block."""
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(_Pages(observe).app(), access_log=None, shutdown_timeout=_LINGER_S)
    await runner.setup()
    http = runner.server
    assert http is not None

    def connection() -> asyncio.BaseProtocol:
        return http() if len(http.connections) < MAX_CONNECTIONS else _Refused()

    # asyncio closes what it is given; who opened a unix socket has a name to remove too.
    if sock.family == socket.AF_UNIX:
        listening = await loop.create_unix_server(connection, sock=sock.dup())
    else:
        listening = await loop.create_server(connection, sock=sock.dup())
    try:
        yield
    finally:
        listening.close()
        await runner.cleanup()


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _Shared:
    """Observations, made one after the other and shared by all that wait for the same one.

    Who comes while one is being made gets the next: it never sees what was true before it
    asked. So however many ask, no more than one is being made and one is waited for.
    """

    def __init__(self, observe: Observe, deadline_s: float) -> None:
        self._observe = observe
        self._deadline_s = deadline_s
        self._turn = asyncio.Lock()
        self._begun = 0
        self._last: Observation | None = None

    async def look(self) -> Observation:
        came = self._begun
        async with self._turn:
            if self._begun == came or self._last is None:
                self._begun += 1
                self._last = None
                self._last = await self._observe(self._deadline_s)
            return self._last


class _Pages:
    def __init__(self, observe: Observe) -> None:
        self._thorough = _Shared(observe, DEADLINE_S)
        self._quick = _Shared(observe, _PROBE_S)
        self._rendering = asyncio.Semaphore(_RENDERERS)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self._index)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        return app

    async def _index(self, _: web.Request) -> web.Response:
        return web.Response(text=_INDEX, content_type="text/html")

    async def _metrics(self, request: web.Request) -> web.Response:
        observation = await self._thorough.look()
        accept = ",".join(request.headers.getall("Accept", ()))
        async with self._rendering:
            page, kind = await asyncio.to_thread(collector.render, observation, accept)
        response = web.Response(body=page, headers={"Content-Type": kind})
        # Only for a client that says it can read it, as Prometheus does.
        response.enable_compression()
        return response

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        observation = await self._quick.look()
        if observation.stopping:
            return web.Response(status=503, text="stopping\n")
        if observation.ready:
            return web.Response(text="ready\n")
        names = status.lacking(observation)
        why = f": no worker in rotation for {', '.join(names)}" if names else ""
        return web.Response(status=503, text=f"not ready{why}\n")

    async def _status(self, _: web.Request) -> web.Response:
        observation = await self._thorough.look()
        async with self._rendering:
            kinds = {view.kind for view in observation.sockets}
            queues = await asyncio.to_thread(sockdiag.queues, kinds)
        described = status.describe(observation, version("penstock"), os.getpid(), queues)
        return web.json_response(described)
