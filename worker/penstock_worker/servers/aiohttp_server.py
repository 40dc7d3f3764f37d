"""Serves an aiohttp Application: makes a protocol for each connection that it is given.

Owns aiohttp's settings for a worker, and the steps of its shutdown: call the program's
`on_shutdown` and close the WebSockets that it leaves open, let requests in flight finish, cut those
that do not, call `on_cleanup`. Must not know where connections come from, nor why the worker
stops.

aiohttp's own shutdown drops what clients send from the moment that it begins. An upload would
then wait for its rest in vain, and a WebSocket for the answer to its close.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final
from weakref import WeakSet, WeakValueDictionary

from aiohttp import WSCloseCode, web
from aiohttp.abc import AbstractAccessLogger

from penstock_worker.listener.limits import DirectLimits
from penstock_worker.net.abortive_close import reset_on_close
from penstock_worker.net.lingering_close import LingeringClients
from penstock_worker.servers import log_filter
from penstock_worker.servers.aiohttp_framing import end_as_framed, lingering
from penstock_worker.servers.unavailable import LEAVING
from penstock_worker.telemetry.counters import CLIENT_GONE, STOP_TIMEOUT, WORKER_CLOSED
from penstock_worker.telemetry.recorder import Recorder

_CANCEL_S: Final = 0.1
"""For a handler to end that was cancelled, before the program cleans up. All others have ended."""
_MAX_LINE: Final = 1 << 20
"""Bytes of a line in a request head behind a proxy, which has limits of its own. Without a
proxy aiohttp's defaults hold: 8190 bytes a line, 128 fields."""
_POLL_S: Final = 0.05
"""Between two looks whether requests are in flight, at shutdown."""
_STARTED_AT: Final = "penstock.begun"
_RESPONSE: Final = "penstock.response"
_CUT: Final = "penstock.cut"
_UNAVAILABLE: Final = 503
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
        self._recorder = recorder
        self._requests: WeakValueDictionary[int, web.BaseRequest] = WeakValueDictionary()
        """By id, because a request has no hash; only with a recorder."""
        self._app = app
        self._websockets: WeakSet[web.WebSocketResponse] = WeakSet()
        self._closings: set[asyncio.Task[None]] = set()
        self._said_farewell = False
        if not app.frozen:
            app.on_response_prepare.append(self._response_begins)
        self._runner = _Runner(
            app, handler_cancellation=True, shutdown_timeout=_CANCEL_S, **settings, **logged
        )

    async def start(self) -> None:
        """Run the program's own start. Its errors are passed on."""
        await self._runner.setup()
        assert self._runner.server is not None
        self._server = self._runner.server
        self._server.request_handler = _without_exit(self._server.request_handler, self._failed)
        self._server.pre_shutdown = self._close_idle  # type: ignore[method-assign]
        loop = asyncio.get_running_loop()
        self._handler = lingering(LingeringClients(loop))
        if self._recorder is not None:
            make = _with_start_time(self._server.request_factory, self._requests)
            self._server.request_factory = make
        self._probe = partial(
            self._handler,
            self._server,
            loop=loop,
            **self._probe_settings,
        )

    def _close_idle(self) -> None:
        self._runner.close_idle()

    def protocol(self, probe: bool) -> asyncio.Protocol:
        """A protocol for one connection. Requests of a probe are not counted."""
        if probe:
            return self._probe()
        # As `Server.__call__`, which has no place for another class.
        return self._handler(self._server, loop=self._server._loop, **self._server._kwargs)

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

    async def farewell(self) -> None:
        """Call the program's `on_shutdown`, and close the WebSockets that it has left open, and
        those that are opened later."""
        self._said_farewell = True
        try:
            await self._app.shutdown()
        finally:
            await asyncio.gather(*map(_close_websocket, tuple(self._websockets)))

    async def finish(self) -> None:
        """Wait until no request is in flight."""
        while self._runner.close_idle():  # noqa: ASYNC110 -- aiohttp sets no event
            await asyncio.sleep(_POLL_S)

    def cut(self) -> int:
        """End what is in flight, so that its clients see it. Returns how much that was."""
        in_flight = {one.protocol: one for one in self._requests.values() if one._task is not None}
        count = 0
        for connection in self._server.connections:
            transport = connection.transport
            if not _awaits_head(connection) and transport is not None:
                answered = _is_answered(connection, transport)
                count += not answered
                self._cut(connection, in_flight.get(connection), answered=answered)
        return count

    async def clean_up(self) -> None:
        """Let the program clean up."""
        try:
            if self._runner.server is not None and not self._said_farewell:
                await self.farewell()
        finally:
            await self._runner.cleanup()

    def _cut(self, connection: Any, request: web.BaseRequest | None, *, answered: bool) -> None:
        """End one connection. The loss of it cancels the handler, which is not counted then.
        `answered`: its client has all of the response, and only the handler goes on."""
        transport = connection.transport
        response = None if request is None else request.get(_RESPONSE)
        if answered:
            transport.close()
        elif request is not None and response is None:
            transport.write(LEAVING)
            transport.close()
        else:
            # Or a response that is complete, and not all sent, would end as if it were.
            connection.end_with(None)
            reset_on_close(transport.get_extra_info("socket").fileno())
            transport.abort()
        if request is not None and self._recorder is not None:
            request[_CUT] = True
            status = _UNAVAILABLE if response is None else response.status
            total_s = monotonic() - request[_STARTED_AT]
            self._recorder.count(request.method, status, total_s)
            if self._recorder.has_log:
                sent = 0 if response is None else response.body_length
                termination = "ok" if answered else STOP_TIMEOUT
                _log(self._recorder, request, status, sent, total_s, termination)

    def _failed(self, request: web.BaseRequest, error: BaseException) -> None:
        """Count and log a request that its handler has broken off. aiohttp does so only where it
        still answers."""
        recorder = self._recorder
        begun = request._payload_writer.output_size > 0
        # A health check is not logged.
        if recorder is None or _CUT in request or request.protocol.access_logger is None:
            return
        if begun or isinstance(error, asyncio.CancelledError):
            _record_broken_off(recorder, request)

    async def _response_begins(self, request: web.Request, response: web.StreamResponse) -> None:
        if not isinstance(response, web.WebSocketResponse):
            end_as_framed(request, response)
        if self._recorder is not None:
            request[_RESPONSE] = response
        if isinstance(response, web.WebSocketResponse):
            self._websockets.add(response)
            if self._said_farewell:
                task = asyncio.get_running_loop().create_task(_close_websocket(response))
                self._closings.add(task)
                task.add_done_callback(self._closings.discard)


class _Runner(web.AppRunner):
    """Closes and cleans up; what comes before that is the server's."""

    async def shutdown(self) -> None:
        """`on_shutdown` was called before."""

    def close_idle(self) -> bool:
        """Close the connections without a request in flight; True if there are others."""
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


def _is_answered(connection: web.RequestHandler, transport: asyncio.Transport) -> bool:
    """Has the client all of its response, although the handler has not returned?"""
    writer = getattr(connection._current_request, "_payload_writer", None)
    if writer is None or transport.get_write_buffer_size():
        return False
    # By its end, or by its Content-Length. The head may still wait for the first of the body.
    is_complete = getattr(writer, "_eof", False) or getattr(writer, "length", None) == 0
    return is_complete and getattr(writer, "_headers_written", True)


def _without_exit(
    handle: Callable[..., Any], failed: Callable[[web.BaseRequest, BaseException], None]
) -> Callable[..., Any]:
    """A handler whose `sys.exit` fails its request, as in uvicorn. aiohttp would end the loop.
    `failed` is told of what a handler raises that is no response."""
    pid = os.getpid()

    async def handle_request(request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer: web.StreamResponse = await handle(request)
        except web.HTTPException:
            raise
        except SystemExit as error:
            if os.getpid() != pid:
                # A child that the handler has forked ends.
                raise
            failed(request, error)
            raise RuntimeError(f"the handler called sys.exit({error.code!r})") from error
        except BaseException as error:
            if os.getpid() == pid:
                failed(request, error)
            raise
        return answer

    return handle_request


async def _close_websocket(websocket: web.WebSocketResponse) -> None:
    """Tell its client that the server goes away, and wait for the answer."""
    # Its handler may be about to send the 101.
    while not websocket.prepared:  # noqa: ASYNC110 -- aiohttp sets no event
        await asyncio.sleep(_POLL_S)
    # The client is gone, or the handler has just closed it itself.
    with suppress(RuntimeError, ConnectionError):
        await websocket.close(code=WSCloseCode.GOING_AWAY, message=b"the worker leaves")


def _with_start_time(
    make: Callable[..., web.BaseRequest], requests: "WeakValueDictionary[int, web.BaseRequest]"
) -> Callable[..., web.BaseRequest]:
    """Store the time at which a request begins, and which are there. uvloop's clock, which
    aiohttp reads, stands still while callbacks run: by it most requests would take no time."""

    def make_request(*arguments: Any) -> web.BaseRequest:
        request = make(*arguments)
        request[_STARTED_AT] = monotonic()
        requests[id(request)] = request
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
            if _CUT in request:
                return
            begun = request.get(_RESPONSE, response)
            if begun is not response and not isinstance(begun, web.WebSocketResponse):
                # An HTTPException, or nothing, after the response had begun: see `end_as_framed`.
                _record_broken_off(recorder, request)
                return
            total_s = monotonic() - request[_STARTED_AT]
            recorder.count(request.method, response.status, total_s)
            if recorder.has_log:
                sent = response.body_length
                _log(recorder, request, response.status, sent, total_s, "ok")

    return Recording


def _record_broken_off(recorder: Recorder, request: web.BaseRequest) -> None:
    """Count and log a request whose response its client does not have, or only a part of it."""
    response: web.StreamResponse | None = request.get(_RESPONSE)
    status = 0 if response is None else response.status
    total_s = monotonic() - request[_STARTED_AT]
    recorder.count(request.method, status, total_s)
    if recorder.has_log:
        is_whole = response is not None and response._eof_sent
        is_gone = request.transport is None or request.transport.is_closing()
        termination = "ok" if is_whole else CLIENT_GONE if is_gone else WORKER_CLOSED
        sent = 0 if response is None else response.body_length
        _log(recorder, request, status, sent, total_s, termination)


def _log(
    recorder: Recorder,
    request: web.BaseRequest,
    status: int,
    sent: int,
    total_s: float,
    termination: str,
) -> None:
    headers = request.headers
    head = ""
    if recorder.wants_head:
        head = "".join(
            f"{name}: {headers[name]}\r\n" for name in ("Referer", "User-Agent") if name in headers
        )
    recorder.log(
        request.remote or "",
        request.method,
        _raw_bytes(request.raw_path),
        f"HTTP/{request.version.major}.{request.version.minor}",
        status,
        sent,
        getattr(request.content, "total_bytes", 0),
        total_s,
        headers.get("X-Request-ID", ""),
        _raw_bytes(head),
        termination,
    )


def _raw_bytes(text: str) -> bytes:
    """The bytes as they came: aiohttp decodes them in this way."""
    return text.encode("utf-8", "surrogateescape")
