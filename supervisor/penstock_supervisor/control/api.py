"""The control socket: everything that changes a run from outside, and what the admin port tells.

HTTP and JSON over a unix socket that only its owner can open (`control_socket`), so that curl can
do what `penstock stop` does. Owns who may ask and what the answers look like; what a change does
is the run's, which is known by `Controls`. Nothing that changes anything is anywhere else.

    POST /reload                          as HUP: replace all workers, losing nothing
    POST /stop[?now=1]                    as TERM; now: as a second TERM
    POST /reopen                          as USR1: open the access logs anew
    POST /workers/SERVICE/SLOT/replace    one worker, when its successor is ready
    POST /workers/SERVICE/SLOT/terminate  TERM to one worker, which is started again
    POST /workers/SERVICE/SLOT/kill       KILL, likewise
"""

import logging
import os
import signal
import socket
import struct
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import web

from penstock_supervisor.control.admin import Pages
from penstock_supervisor.control.http_server import Handler

_PEER: Final = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""
_SIGNALS: Final = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}

_log = logging.getLogger("penstock.supervisor")


class Controls(Protocol):
    """A run, as far as it can be changed. False: not now."""

    def stop(self, *, now: bool = False) -> None: ...
    def roll(self) -> bool: ...
    def reopen_logs(self) -> None: ...

    def replace(self, service: str, slot: int) -> bool:
        """KeyError: there is no such slot."""

    def signal(self, service: str, slot: int, number: signal.Signals) -> bool:
        """KeyError: there is no such slot."""


class PeerCredentials(NamedTuple):
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int
    gid: int


def peer_credentials(sock: socket.socket) -> PeerCredentials:
    size = _PEER.size
    return PeerCredentials(
        *_PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    )


def app(pages: Pages, run: Controls) -> web.Application:
    made = web.Application(middlewares=[_as_json, _only_the_owner])
    pages.add_to(made)
    endpoints = _Endpoints(run)
    made.router.add_post("/reload", endpoints.reload)
    made.router.add_post("/stop", endpoints.stop)
    made.router.add_post("/reopen", endpoints.reopen)
    made.router.add_post("/workers/{service}/{slot:[0-9]{1,4}}/{what}", endpoints.worker)
    return made


@web.middleware
async def _as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One request a connection, and every answer to a change as JSON."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        if request.method in ("GET", "HEAD"):
            raise
        response = web.json_response({"error": error.text or error.reason}, status=error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    response.force_close()
    return response


@web.middleware
async def _only_the_owner(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The file's mode says so already; but a descriptor can be passed on."""
    transport = request.transport
    if transport is None:
        raise web.HTTPForbidden
    who = peer_credentials(transport.get_extra_info("socket"))
    if who.uid not in (0, os.geteuid()):
        _log.warning("control socket: uid %d (pid %d) is not let in", who.uid, who.pid)
        raise web.HTTPForbidden(text="only for root and the user that the supervisor runs as\n")
    if request.method not in ("GET", "HEAD"):
        # The kernel's word on who it was; the path is ours, or there is no such order.
        _log.info("%s %.200s, asked for by pid %d", request.method, request.path_qs, who.pid)
    return await handler(request)


class _Endpoints:
    def __init__(self, run: Controls) -> None:
        self._run = run

    async def reload(self, _: web.Request) -> web.Response:
        if not self._run.roll():
            raise web.HTTPConflict(text="not while it starts or stops")
        return _done("workers are being replaced, one after the other")

    async def stop(self, request: web.Request) -> web.Response:
        now = request.query.get("now") in ("1", "true")
        self._run.stop(now=now)
        return _done("stopping at once" if now else "stopping")

    async def reopen(self, _: web.Request) -> web.Response:
        self._run.reopen_logs()
        return _done("access logs are being opened anew")

    async def worker(self, request: web.Request) -> web.Response:
        service, what = request.match_info["service"], request.match_info["what"]
        slot = int(request.match_info["slot"])
        try:
            if what == "replace":
                done = self._run.replace(service, slot)
            elif what in _SIGNALS:
                done = self._run.signal(service, slot, _SIGNALS[what])
            else:
                raise web.HTTPNotFound(text=f'a worker cannot be told to "{what}"')
        except KeyError:
            raise web.HTTPNotFound(text=f"there is no worker {service}/{slot}") from None
        if not done:
            raise web.HTTPConflict(text=f"{service}/{slot}: not now")
        return _done(f"{service}/{slot}: {what}")


def _done(what: str) -> web.Response:
    answer: dict[str, Any] = {"pid": os.getpid(), "done": what}
    return web.json_response(answer, status=202)
