"""The admin port: /metrics, /healthz, /readyz, /status, and a page for people. Read only.

Owns these pages; the control socket serves them as well. It knows the run by one function,
`take_snapshot`, and cannot change anything, so it needs no password. But it shows what runs
where. So it listens on the loopback address by default, and there it answers only requests whose
Host is its own address. It sends no header that lets a page of another origin read an answer.

Requests must not disturb the rest of the run: concurrent requests share one snapshot, few
threads render pages, and `http_server` limits connections.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address
from typing import Any, Final

from aiohttp import hdrs, web

from penstock_supervisor import release
from penstock_supervisor.control import health, status, status_page
from penstock_supervisor.control.http_server import Handler
from penstock_supervisor.kernel import sock_diag
from penstock_supervisor.observability import process_usage, prometheus
from penstock_supervisor.snapshot import Snapshot

TakeSnapshot = Callable[[float], Awaitable[Snapshot]]
"""Takes the seconds that children have to answer."""

DEADLINE_S: Final = 1.0
"""Prometheus waits ten seconds for a page; a stuck child should not use all of them."""
_PROBE_S: Final = 0.1
"""For /readyz, which must answer within the second that a probe usually has."""
_MAX_RENDERING: Final = 2
"""Pages that are rendered at a time."""
_READ_METHODS: Final = ("GET", "HEAD")


def app(pages: "Pages", listener: socket.socket, name: str = "") -> web.Application:
    """The application of the admin port. `name`: the host that the configuration has for it."""
    result = web.Application(middlewares=[_reject_changes])
    if listener.family != socket.AF_UNIX and ip_address(listener.getsockname()[0]).is_loopback:
        result.middlewares.append(_HostCheck({name.lower(), "localhost"} - {""}).check)
    pages.add_to(result)
    return result


@web.middleware
async def _reject_changes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Reject every method but those that read, for all paths, also those that are not served."""
    if request.method not in _READ_METHODS:
        raise web.HTTPMethodNotAllowed(request.method, _READ_METHODS)
    return await handler(request)


class _HostCheck:
    """On a loopback address: was this server meant?

    The owner of a web page can have its own host name resolve to 127.0.0.1. Then the page can
    read the answers of our port, because for the browser they come from the page's own origin
    (DNS rebinding). So only addresses and `localhost` are accepted as Host: no stranger owns
    those names.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
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
    """Snapshots, taken one after the other, each shared by all requests that wait for it.

    A request that comes while a snapshot is being taken gets the next one, because the present
    one may show a state from before the request. So with any number of requests, one snapshot is
    being taken, and at most one more is waited for.
    """

    def __init__(self, take_snapshot: TakeSnapshot, deadline_s: float) -> None:
        self._take_snapshot = take_snapshot
        self._deadline_s = deadline_s
        self._lock = asyncio.Lock()
        self._begun = 0
        """How many were begun so far."""
        self._last: Snapshot | None = None

    async def get(self) -> Snapshot:
        begun_before = self._begun
        async with self._lock:
            if self._begun == begun_before or self._last is None:
                self._begun += 1
                self._last = None
                self._last = await self._take_snapshot(self._deadline_s)
            return self._last


class Pages:
    """The pages about a run, for the admin port and the control socket."""

    def __init__(self, take_snapshot: TakeSnapshot) -> None:
        self._full = _SharedSnapshot(take_snapshot, DEADLINE_S)
        self._quick = _SharedSnapshot(take_snapshot, _PROBE_S)
        self._rendering = asyncio.Semaphore(_MAX_RENDERING)

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/", self._index)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)

    async def _index(self, _: web.Request) -> web.Response:
        text = status_page.render(await self._describe())
        return web.Response(text=text, content_type="text/html", headers=status_page.HEADERS)

    async def _metrics(self, request: web.Request) -> web.Response:
        snapshot = await self._full.get()
        accept = ",".join(request.headers.getall("Accept", ()))
        async with self._rendering:
            body, kind = await asyncio.to_thread(prometheus.render, snapshot, accept)
        response = web.Response(body=body, headers={"Content-Type": kind})
        # Only for a client whose Accept-Encoding allows it, as Prometheus' does.
        response.enable_compression()
        return response

    async def _healthz(self, _: web.Request) -> web.Response:
        """200 as long as the supervisor's loop turns: whatever is wrong with workers, to kill the
        one that restarts them makes it worse. The lines after the first say what is wrong."""
        snapshot = await self._quick.get()
        lines = ["ok"]
        if not snapshot.ready:
            lines.append("stopping" if snapshot.stopping else health.not_ready(snapshot))
        return web.Response(text="\n".join((*lines, *health.crash_loops(snapshot), "")))

    async def _readyz(self, _: web.Request) -> web.Response:
        snapshot = await self._quick.get()
        if snapshot.stopping:
            return web.Response(status=503, text="stopping\n")
        if snapshot.ready:
            return web.Response(text="ready\n")
        return web.Response(status=503, text=f"{health.not_ready(snapshot)}\n")

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(await self._describe())

    async def _describe(self) -> dict[str, Any]:
        snapshot = await self._full.get()
        async with self._rendering:
            kinds = {view.kind for view in snapshot.sockets}
            queues = await asyncio.to_thread(sock_diag.queues, kinds)
            usage = await asyncio.to_thread(process_usage.measure, snapshot)
        return status.describe(snapshot, release.version(), os.getpid(), queues, usage)
