"""Serves an aiohttp Application: makes a protocol for each connection that it is given.

Owns aiohttp's settings for a worker, and the order of its shutdown: close idle connections, call
the program's `on_shutdown`, let requests in flight finish. Must not know where connections
come from, nor why the worker stops.

aiohttp's own shutdown drops what clients send from the moment that it begins. An upload would
then wait for its rest in vain, and a WebSocket for the answer to its close.
"""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from penstock_worker.listener.limits import DirectLimits
from penstock_worker.servers import log_filter
from penstock_worker.telemetry.recorder import Recorder, RequestRecord

_DRAIN_S: Final = 24 * 3600.0
"""For requests to finish. In effect no limit: the supervisor has the deadline."""
_MAX_LINE: Final = 1 << 20
"""Bytes of a line in a request head behind a proxy, which has limits of its own. Without a
proxy aiohttp's defaults hold: 8190 bytes a line, 128 fields."""
_POLL_S: Final = 0.05
"""Between two looks whether requests are in flight, at shutdown."""
_STARTED_AT: Final = "penstock.begun"
_BEHIND_PROXY: Final = DirectLimits()
_LOG: Final = log_filter.filtered_logger("aiohttp.server.penstock")
"""A child of aiohttp's own logger, which the program may have configured."""


class AiohttpServer:
    """`recorder` is None where a proxy counts and logs."""

    def __init__(
        self, app: web.Application, recorder: Recorder | None, limits: DirectLimits = _BEHIND_PROXY
    ) -> None:
        # aiohttp's clock runs from the start of the connection until a head is complete.
        settings: dict[str, Any] = {"keepalive_timeout": limits.keepalive_s, "logger": _LOG}
        if not limits.direct:
            settings |= {"max_line_size": _MAX_LINE, "max_field_size": _MAX_LINE}
        # aiohttp calls the class only if `access_log` is true; nothing else is logged to it.
        logged: dict[str, Any] = {"access_log": None}
        if recorder is not None:
            logged = {"access_log": recorder, "access_log_class": _recording_logger(recorder)}
        self._probe_settings = {**settings, "access_log": None}
        self._has_recorder = recorder is not None
        self._runner = _Runner(
            app, handler_cancellation=True, shutdown_timeout=_DRAIN_S, **settings, **logged
        )

    async def start(self) -> None:
        """Run the program's own start. Its errors are passed on."""
        await self._runner.setup()
        assert self._runner.server is not None
        self._server = self._runner.server
        self._server.request_handler = _without_exit(self._server.request_handler)
        self._server.pre_shutdown = self._runner.close_idle  # type: ignore[method-assign]
        if self._has_recorder:
            self._server.request_factory = _with_start_time(self._server.request_factory)
        self._probe = partial(
            web.RequestHandler,
            self._server,
            loop=asyncio.get_running_loop(),
            **self._probe_settings,
        )

    def protocol(self, probe: bool) -> asyncio.Protocol:
        """A protocol for one connection. Requests of a probe are not counted."""
        return self._probe() if probe else self._server()

    def is_idle(self, protocol: Any) -> bool:
        """Does this connection wait for a request, or for the rest of its head?"""
        return isinstance(protocol, web.RequestHandler) and _awaits_head(protocol)

    def begin_drain(self) -> None:
        """From now on each response ends its connection."""
        for owner in (self._server, *self._server.connections):
            # Each connection has its own reference to the factory.
            name = "request_factory" if owner is self._server else "_request_factory"
            setattr(owner, name, _closing_requests(getattr(owner, name)))
        for connection in self._server.connections:
            if (request := connection._current_request) is not None:
                request._message = _with_close(request._message)

    async def shutdown(self) -> None:
        """Let requests finish, and the program clean up."""
        await self._runner.cleanup()


class _Runner(web.AppRunner):
    """Reads from connections until all requests in flight have finished."""

    def close_idle(self) -> None:
        """Close the connections without a request in flight."""
        self._close_idle()

    async def shutdown(self) -> None:
        """Call the program's `on_shutdown`, and wait for the requests in flight."""
        await super().shutdown()
        while self._close_idle():  # noqa: ASYNC110 -- aiohttp sets no event
            await asyncio.sleep(_POLL_S)

    def _close_idle(self) -> bool:
        """True if requests are still in flight."""
        assert self.server is not None
        busy = False
        for connection in self.server.connections:
            if _awaits_head(connection):
                connection.force_close()
            else:
                busy = True
        return busy


def _awaits_head(connection: web.RequestHandler) -> bool:
    return connection._waiter is not None and not connection._messages


def _without_exit(handle: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose `sys.exit` fails its request, as in uvicorn. aiohttp would end the loop."""
    pid = os.getpid()

    async def handle_request(request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer: web.StreamResponse = await handle(request)
        except SystemExit as error:
            if os.getpid() != pid:
                # A child that the handler has forked ends.
                raise
            raise RuntimeError(f"the handler called sys.exit({error.code!r})") from error
        return answer

    return handle_request


def _with_start_time(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Store the time at which a request begins. uvloop's clock, which aiohttp reads, stands still
    while callbacks run: by it most requests would take no time at all."""

    def make_request(*arguments: Any) -> web.BaseRequest:
        request = make(*arguments)
        request[_STARTED_AT] = monotonic()
        return request

    return make_request


def _closing_requests(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Make requests as if their clients had sent `Connection: close`."""

    def make_request(message: Any, *arguments: Any) -> web.BaseRequest:
        return make(_with_close(message), *arguments)

    return make_request


def _with_close(message: Any) -> Any:
    """A request's head, as if its client had sent `Connection: close`."""
    return message._replace(should_close=True)


def _recording_logger(recorder: Recorder) -> type[AbstractAccessLogger]:
    """A logger class as aiohttp wants it, which makes an instance for each connection."""

    class Recording(AbstractAccessLogger):
        def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
            total_s = monotonic() - request[_STARTED_AT]
            recorder.count(request.method, response.status, total_s)
            if recorder.has_log:
                recorder.log(_record(request, response, total_s))

    return Recording


def _record(
    request: web.BaseRequest, response: web.StreamResponse, total_s: float
) -> RequestRecord:
    headers = request.headers
    head = "".join(
        f"{name}: {headers[name]}\r\n" for name in ("Referer", "User-Agent") if name in headers
    )
    return RequestRecord(
        client=request.remote or "",
        method=request.method,
        target=_raw_bytes(request.raw_path),
        version=f"HTTP/{request.version.major}.{request.version.minor}",
        status=response.status,
        sent=response.body_length,
        received=getattr(request.content, "total_bytes", 0),
        total_s=total_s,
        request_id=headers.get("X-Request-ID", ""),
        head=_raw_bytes(head),
    )


def _raw_bytes(text: str) -> bytes:
    """The bytes as they came: aiohttp decodes them in this way."""
    return text.encode("utf-8", "surrogateescape")
