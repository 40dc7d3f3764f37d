"""Serves an aiohttp Application: a protocol for each connection that somebody else accepts.

Owns the settings that make aiohttp's server a worker, and the order of its end: close what
is idle, tell what is long to close (`on_shutdown`), let what is in flight finish. It does not
know where connections come from, nor why it has to leave.

aiohttp's own end would be another: from its beginning on it throws away what clients send, so
that an upload waits for its rest in vain, and a WebSocket for the answer to its close.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from penstock_worker import noise
from penstock_worker.bounds import Bounds
from penstock_worker.recorder import Recorder, RequestRecord

_DRAIN_S: Final = 24 * 3600.0
"""How long requests may take to finish: the supervisor has the deadline, not we."""
_HEAD_PART: Final = 1 << 20
"""One line of a head, where a front refuses what is too long by its own configuration.
Elsewhere aiohttp's own bounds hold: 8190 bytes a line, 128 fields."""
_LOOK_S: Final = 0.05
"""Between two looks at what is in flight when we leave."""
_BEGUN: Final = "penstock.begun"
_FRONTED: Final = Bounds()
_LOG: Final = noise.without("aiohttp.server.penstock")
"""Below aiohttp's own, which the program may have set up."""


class AiohttpServer:
    """`recorder` is None where a front counts and logs."""

    def __init__(
        self, app: web.Application, recorder: Recorder | None, bounds: Bounds = _FRONTED
    ) -> None:
        # aiohttp counts from the beginning of the connection, and until a head is complete.
        settings: dict[str, Any] = {"keepalive_timeout": bounds.keepalive_s, "logger": _LOG}
        if not bounds.direct:
            settings |= {"max_line_size": _HEAD_PART, "max_field_size": _HEAD_PART}
        # Its own log stays silent in any case; `access_log` only has to be true to be asked.
        logged: dict[str, Any] = {"access_log": None}
        if recorder is not None:
            logged = {"access_log": recorder, "access_log_class": _recording(recorder)}
        self._unlogged = {**settings, "access_log": None}
        self._timed = recorder is not None
        self._runner = _Runner(
            app, handler_cancellation=True, shutdown_timeout=_DRAIN_S, **settings, **logged
        )

    async def start(self) -> None:
        """The program's own start; its errors come out."""
        await self._runner.setup()
        assert self._runner.server is not None
        self._serve = self._runner.server
        self._serve.pre_shutdown = self._runner.close_idle  # type: ignore[method-assign]
        if self._timed:
            self._serve.request_factory = _timed(self._serve.request_factory)
        self._probe = partial(
            web.RequestHandler,
            self._serve,
            loop=asyncio.get_running_loop(),
            **self._unlogged,
        )

    def protocol(self, probe: bool) -> asyncio.Protocol:
        """For one connection; what comes over a probe's is not counted."""
        return self._probe() if probe else self._serve()

    def begin_drain(self) -> None:
        """Whoever asks once more is told that it is the last time."""
        for made in (self._serve, *self._serve.connections):
            # Each connection has a copy of its own.
            name = "request_factory" if made is self._serve else "_request_factory"
            setattr(made, name, _last(getattr(made, name)))
        for connection in self._serve.connections:
            if (request := connection._current_request) is not None:
                request._message = _closing(request._message)

    async def shutdown(self) -> None:
        """Let requests finish, and the program clean up."""
        await self._runner.cleanup()


class _Runner(web.AppRunner):
    """Reads on until all that is in flight has finished."""

    def close_idle(self) -> None:
        """Those that wait for a request which will not come."""
        self._busy()

    async def shutdown(self) -> None:
        """The program's `on_shutdown`; afterwards nothing is in flight any more."""
        await super().shutdown()
        while self._busy():  # noqa: ASYNC110 -- aiohttp sets no event
            await asyncio.sleep(_LOOK_S)

    def _busy(self) -> bool:
        assert self.server is not None
        busy = False
        for connection in self.server.connections:
            if connection._waiter is not None and not connection._messages:
                connection.force_close()
            else:
                busy = True
        return busy


def _timed(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Requests that know when they began: uvloop's clock, which aiohttp reads, stands still
    while callbacks run, so that most of them would have taken no time at all."""

    def made(*arguments: Any) -> web.BaseRequest:
        request = make(*arguments)
        request[_BEGUN] = monotonic()
        return request

    return made


def _last(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Requests as if their clients wanted no other on the same connection."""

    def made(message: Any, *arguments: Any) -> web.BaseRequest:
        return make(_closing(message), *arguments)

    return made


def _closing(message: Any) -> Any:
    """A request's head, as if its client wanted no other on the same connection."""
    return message._replace(should_close=True)


def _recording(recorder: Recorder) -> type[AbstractAccessLogger]:
    """aiohttp makes a logger for each connection, by a class."""

    class Recording(AbstractAccessLogger):
        def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
            total_s = monotonic() - request[_BEGUN]
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
        target=_octets(request.raw_path),
        version=f"HTTP/{request.version.major}.{request.version.minor}",
        status=response.status,
        sent=response.body_length,
        received=getattr(request.content, "total_bytes", 0),
        total_s=total_s,
        request_id=headers.get("X-Request-ID", ""),
        head=_octets(head),
    )


def _octets(text: str) -> bytes:
    """As it came: aiohttp reads bytes so."""
    return text.encode("utf-8", "surrogateescape")
