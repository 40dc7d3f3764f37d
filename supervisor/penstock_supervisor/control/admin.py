"""The admin port: /metrics, /healthz, /readyz, /status, and a page for people. Read only.

Owns what is told, here and over the control socket. It knows the run by one function,
`take_snapshot`, and cannot change anything, so it needs no password; it does tell what runs where,
which is why it listens on the loopback address unless told otherwise, and there answers only
who asks for it by its address. There are no headers by which a page of another origin may read.

Nothing that is asked here may disturb what is served elsewhere: requests that come together
share one snapshot, rendering is done by few threads, and `http_server` bounds connections.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any, Final

from aiohttp import hdrs, web

from penstock_supervisor.control import status, status_page
from penstock_supervisor.control.http_server import Handler
from penstock_supervisor.kernel import sock_diag
from penstock_supervisor.observability import prometheus
from penstock_supervisor.snapshot import Snapshot

TakeSnapshot = Callable[[float], Awaitable[Snapshot]]
"""Given the seconds that children have to answer."""

DEADLINE_S: Final = 1.0
"""Prometheus waits ten seconds for a page; a child that is stuck should not cost them all."""
_PROBE_S: Final = 0.1
"""For /readyz, which must answer within the second that a probe usually has."""
_RENDERERS: Final = 2
_READS: Final = ("GET", "HEAD")


def app(pages: "Pages", bound: socket.socket, name: str = "") -> web.Application:
    """What is answered on the listening socket `bound`; `name` is the host that it was named by."""
    made = web.Application(middlewares=[_only_read])
    if bound.family != socket.AF_UNIX and ip_address(bound.getsockname()[0]).is_loopback:
        made.middlewares.append(_HostCheck({name.lower(), "localhost"} - {""}).judge)
    pages.add_to(made)
    return made


@web.middleware
async def _only_read(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever the path: nobody has to look for the one that changes something."""
    if request.method not in _READS:
        raise web.HTTPMethodNotAllowed(request.method, _READS)
    return await handler(request)


class _HostCheck:
    """On a loopback address: is it us that was meant?

    The page of a stranger can have its own name lead to 127.0.0.1 and then read what our port
    answers, since for the browser it is that stranger's (DNS rebinding). Our own names are
    addresses and `localhost`; no stranger owns those.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    @web.middleware
    async def judge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if all(map(self._is_ours, request.headers.getall(hdrs.HOST, ()))):
            return await handler(request)
        raise web.HTTPMisdirectedRequest(text="this port is asked for by its address\n")

    def _is_ours(self, host: str) -> bool:
        if host.startswith("["):
            name = host[1:].partition("]")[0]
        else:
            name = host.partition(":")[0].lower().removesuffix(".")
        return name in self._names or name.endswith(".localhost") or _is_address(name)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class _SharedSnapshot:
    """Snapshots, made one after the other and shared by all that wait for the same one.

    Who comes while one is being made gets the next: it never sees what was true before it
    asked. So however many ask, no more than one is being made and one is waited for.
    """

    def __init__(self, take_snapshot: TakeSnapshot, deadline_s: float) -> None:
        self._take_snapshot = take_snapshot
        self._deadline_s = deadline_s
        self._turn = asyncio.Lock()
        self._begun = 0
        self._last: Snapshot | None = None

    async def get(self) -> Snapshot:
        came = self._begun
        async with self._turn:
            if self._begun == came or self._last is None:
                self._begun += 1
                self._last = None
                self._last = await self._take_snapshot(self._deadline_s)
            return self._last


class Pages:
    """What is told of a run, on every socket that it is told on."""

    def __init__(self, take_snapshot: TakeSnapshot) -> None:
        self._thorough = _SharedSnapshot(take_snapshot, DEADLINE_S)
        self._quick = _SharedSnapshot(take_snapshot, _PROBE_S)
        self._rendering = asyncio.Semaphore(_RENDERERS)

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/", self._index)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)

    async def _index(self, _: web.Request) -> web.Response:
        text = status_page.render(await self._described())
        return web.Response(text=text, content_type="text/html", headers=status_page.HEADERS)

    async def _metrics(self, request: web.Request) -> web.Response:
        snapshot = await self._thorough.get()
        accept = ",".join(request.headers.getall("Accept", ()))
        async with self._rendering:
            body, kind = await asyncio.to_thread(prometheus.render, snapshot, accept)
        response = web.Response(body=body, headers={"Content-Type": kind})
        # Only for a client that says it can read it, as Prometheus does.
        response.enable_compression()
        return response

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        snapshot = await self._quick.get()
        if snapshot.stopping:
            return web.Response(status=503, text="stopping\n")
        if snapshot.ready:
            return web.Response(text="ready\n")
        names = status.without_worker(snapshot)
        why = f": no worker in rotation for {', '.join(names)}" if names else ""
        return web.Response(status=503, text=f"not ready{why}\n")

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(await self._described())

    async def _described(self) -> dict[str, Any]:
        snapshot = await self._thorough.get()
        async with self._rendering:
            kinds = {view.kind for view in snapshot.sockets}
            queues = await asyncio.to_thread(sock_diag.queues, kinds)
        return status.describe(snapshot, version("penstock"), os.getpid(), queues)
