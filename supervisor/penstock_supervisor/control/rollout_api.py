"""The control API's requests about reloads and roll-outs.

    POST /reload                    a JSON table, or nothing: {"services": ["web"], "dry_run": true}
    GET  /rollouts                  the ones that run, and the last ones that ended
    GET  /rollouts/N?wait=S&seen=V  one of them; with `wait` answered when it is no longer as in
                                    version V, or after S seconds

A reload is answered as soon as it is known what it leads to: 202 and the number of the roll-out.
400 with all problems if the file is broken or a change is refused, 404 for a service that does not
exist, 409 while the run starts or stops. Owns the form of these requests and answers. The number
of clients that wait is bounded, because each has a connection.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from json import loads
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import web

from penstock_supervisor import blocking
from penstock_supervisor.children.reported_text import one_line
from penstock_supervisor.control import rollouts
from penstock_supervisor.errors import NotNowError, ReloadRefused, UnknownServiceError
from penstock_supervisor.snapshot import ReloadAnswer, RolloutView

MAX_WAITING: Final = 60
"""Clients that wait for a change. The connections that are left answer everything else."""
MAX_WAIT_S: Final = 60.0
_BODY_S: Final = 10.0
"""For a body to come. While a request is handled nothing else limits that."""
_LOOK_S: Final = 5.0
"""For the links in two paths."""
_MAX_BODY: Final = 64 << 10
_KEYS: Final = ("services", "dry_run", "file")

_log = logging.getLogger("penstock.supervisor")


class Rollouts(Protocol):
    """What a run does with these requests."""

    @property
    def config_file(self) -> str:
        """The file that it was started with, as an absolute path; empty: none."""

    async def reload(
        self, services: tuple[str, ...] = (), *, dry_run: bool = False
    ) -> ReloadAnswer:
        """Begin a roll-out, whose view is in `rollouts` from then on.

        ReloadRefused, NotNowError, UnknownServiceError.
        """

    def rollouts(self) -> tuple[RolloutView, ...]:
        """Those that run and the last ones that ended, oldest first."""

    async def rollout_changed(self) -> None:
        """Return at the next change of any of them."""


class _Order(NamedTuple):
    """The body of POST /reload."""

    services: tuple[str, ...]
    dry_run: bool
    file: str
    """The file that the client takes for the run's own; empty: it has not said."""


class RolloutEndpoints:
    def __init__(self, run: Rollouts) -> None:
        self._run = run
        self._waiting = 0

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/reload", self._reload)
        app.router.add_get("/rollouts", self._list)
        app.router.add_get("/rollouts/{number:[0-9]{1,9}}", self._one)

    async def _reload(self, request: web.Request) -> web.Response:
        order = await _read_order(request)
        if order.file and (problem := await self._other_file(order.file)):
            _log.warning("nothing is reloaded: %.1000s", one_line(problem))
            return _refusal((problem,))
        try:
            answer = await self._run.reload(order.services, dry_run=order.dry_run)
        except ReloadRefused as refusal:
            return _refusal(refusal.problems)
        except UnknownServiceError as error:
            return _refusal(error.problems, status=404)
        except NotNowError as error:
            _log.warning("nothing is reloaded: %s", error)
            return _refusal((str(error),), status=409)
        body = {"pid": os.getpid(), **answer._asdict(), "changes": list(answer.changes)}
        return web.json_response(body, status=202)

    async def _other_file(self, file: str) -> str:
        """Why this is not the file of the run, or empty."""
        ours = self._run.config_file
        if file == ours:
            return ""
        # Links may be changed by a deploy: either name is enough. Of a path of somebody else's
        # nobody knows whether its disk answers.
        try:
            same = await blocking.within(_LOOK_S, "control", _leads_to_same, file, ours)
        except blocking.BlockedError as error:
            return f"{file}: cannot be looked at: {error}"
        begun = f"with {ours}" if ours else "without a file"
        return "" if same else f"{file}: this run was started {begun}"

    async def _list(self, _: web.Request) -> web.Response:
        found = [rollouts.describe(view) for view in self._run.rollouts()]
        return web.json_response({"rollouts": found})

    async def _one(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        wait_s, seen = _wait_s(request.query), request.query.get("seen", "")
        if str(rollouts.version(self._find(number))) == seen and wait_s:
            await self._wait(number, seen, wait_s)
        view = self._find(number)
        body = {**rollouts.describe(view), "version": rollouts.version(view)}
        return web.json_response(body)

    async def _wait(self, number: int, seen: str, wait_s: float) -> None:
        """Wait until it has another version. With too many that wait: not at all."""
        if self._waiting >= MAX_WAITING:
            return
        self._waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while str(rollouts.version(self._find(number))) == seen:
                        await self._run.rollout_changed()
        finally:
            self._waiting -= 1

    def _find(self, number: int) -> RolloutView:
        for view in self._run.rollouts():
            if view.number == number:
                return view
        raise web.HTTPNotFound(text=f"there is no roll-out {number}, or it ended long ago")


async def _read_order(request: web.Request) -> _Order:
    try:
        async with asyncio.timeout(_BODY_S):
            body = await _read_body(request)
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the request's body did not come") from None
    try:
        table = loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise web.HTTPBadRequest(text="expected JSON") from None
    if not isinstance(table, dict) or table.keys() - set(_KEYS):
        raise web.HTTPBadRequest(text=f"expected a table with {', '.join(_KEYS)}")
    services, dry_run, file = (
        table.get("services", []),
        table.get("dry_run", False),
        table.get("file", ""),
    )
    if not isinstance(services, list) or not all(isinstance(one, str) for one in services):
        raise web.HTTPBadRequest(text="services: expected a list of names")
    if not isinstance(dry_run, bool):
        raise web.HTTPBadRequest(text="dry_run: expected true or false")
    if not isinstance(file, str):
        raise web.HTTPBadRequest(text="file: expected a path")
    return _Order(tuple(dict.fromkeys(services)), dry_run, file)


async def _read_body(request: web.Request) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > _MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(_MAX_BODY, len(body))
    return bytes(body)


def _wait_s(query: Mapping[str, str]) -> float:
    """The seconds of `wait`, 0 if there is none. What is no number is as good as none."""
    with suppress(ValueError):
        return min(MAX_WAIT_S, max(0.0, float(query.get("wait", "0")))) or 0.0
    return 0.0


def _leads_to_same(one: str, other: str) -> bool:
    try:
        return bool(other) and os.path.realpath(one) == os.path.realpath(other)
    except ValueError:
        # No path has a NUL in it.
        return False


def _refusal(problems: tuple[str, ...], status: int = 400) -> web.Response:
    body: dict[str, Any] = {"error": "; ".join(problems), "problems": list(problems)}
    return web.json_response(body, status=status)
