"""The control API: requests that change a run, and the pages of the admin port.

HTTP and JSON over a unix socket that only its owner can open (`control_socket`), so that curl can
do what `penstock stop` does. Owns who may send requests, and the form of the answers. The run
itself carries the requests out (`RunControl`). Apart from signals and the embedding API, nothing
else changes a run from outside.

    POST /reload                          as HUP: read the configuration anew, replace workers;
                                          see `rollout_api`, as for GET /rollouts
    POST /stop[?now=1]                    as TERM; now: as a second TERM
    POST /reopen                          as USR1: open the access logs anew
    POST /workers/SERVICE/SLOT/replace    one worker, when its successor is ready
    POST /workers/SERVICE/SLOT/terminate  TERM to one worker, which is started again
    POST /workers/SERVICE/SLOT/kill       KILL, likewise

See docs/decisions/0014-control-over-a-private-socket.md.
"""

import logging
import os
import signal
from typing import Any, Final, Protocol

from aiohttp import web

from penstock_supervisor.control import rollout_api
from penstock_supervisor.control.admin import Pages
from penstock_supervisor.control.http_server import Handler
from penstock_supervisor.errors import NotNowError
from penstock_supervisor.kernel.peer_credentials import peer_credentials

_SIGNALS: Final = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}

_log = logging.getLogger("penstock.supervisor")


class RunControl(rollout_api.Rollouts, Protocol):
    """What can be changed of a run."""

    def stop(self, *, now: bool = False) -> None: ...
    def reopen_logs(self) -> None: ...

    def replace(self, service: str, slot: int) -> None:
        """KeyError: there is no such slot. NotNowError: why not."""

    def signal(self, service: str, slot: int, number: signal.Signals) -> bool:
        """KeyError: there is no such slot. False: it has no process."""


def app(pages: Pages, run: RunControl) -> web.Application:
    result = web.Application(middlewares=[_errors_as_json, _require_owner])
    pages.add_to(result)
    endpoints = _Endpoints(run)
    rollout_api.RolloutEndpoints(run).add_to(result)
    result.router.add_post("/stop", endpoints.stop)
    result.router.add_post("/reopen", endpoints.reopen)
    result.router.add_post("/workers/{service}/{slot:[0-9]{1,4}}/{action}", endpoints.worker)
    return result


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as JSON, except those of pages, and one request a connection."""
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
async def _require_owner(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse other users. The socket's mode does so, too, but a descriptor can be passed on."""
    transport = request.transport
    if transport is None:
        raise web.HTTPForbidden
    peer = peer_credentials(transport.get_extra_info("socket"))
    if peer.uid not in (0, os.geteuid()):
        _log.warning("control socket: uid %d (pid %d) is not let in", peer.uid, peer.pid)
        raise web.HTTPForbidden(text="only for root and the user that the supervisor runs as\n")
    if request.method not in ("GET", "HEAD"):
        # The pid is the kernel's. The path may be any text of the client, so it is cut.
        _log.info("%s %.200s, asked for by pid %d", request.method, request.path_qs, peer.pid)
    return await handler(request)


class _Endpoints:
    """The requests that change something."""

    def __init__(self, run: RunControl) -> None:
        self._run = run

    async def stop(self, request: web.Request) -> web.Response:
        now = request.query.get("now") in ("1", "true")
        self._run.stop(now=now)
        return _done("stopping at once" if now else "stopping")

    async def reopen(self, _: web.Request) -> web.Response:
        self._run.reopen_logs()
        return _done("access logs are being opened anew")

    async def worker(self, request: web.Request) -> web.Response:
        service, action = request.match_info["service"], request.match_info["action"]
        slot = int(request.match_info["slot"])
        try:
            if action == "replace":
                self._run.replace(service, slot)
            elif action not in _SIGNALS:
                raise web.HTTPNotFound(text=f'a worker cannot be told to "{action}"')
            elif not self._run.signal(service, slot, _SIGNALS[action]):
                raise web.HTTPConflict(text=f"{service}/{slot}: not now: it has no process")
        except KeyError:
            raise web.HTTPNotFound(text=f"there is no worker {service}/{slot}") from None
        except NotNowError as error:
            raise web.HTTPConflict(text=f"{service}/{slot}: {error}") from None
        return _done(f"{service}/{slot}: {action}")


def _done(text: str) -> web.Response:
    answer: dict[str, Any] = {"pid": os.getpid(), "done": text}
    return web.json_response(answer, status=202)
