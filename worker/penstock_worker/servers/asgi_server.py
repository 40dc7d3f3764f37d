"""Serves an ASGI 3 application with uvicorn: makes a protocol for each connection.

Owns uvicorn's settings for a worker. uvicorn can own a whole process (signals, logging, the
loop, the listening socket). None of that is used here, so an ASGI worker starts and stops exactly
as an aiohttp worker does.

Importing this needs the extra `penstock[asgi]`, so it is imported only for an ASGI application.
"""

import asyncio
import copy
import logging
import signal
from asyncio import TimerHandle
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from time import monotonic
from typing import Any, Final

import uvicorn

from penstock_worker.listener.limits import DirectLimits
from penstock_worker.net.abortive_close import reset_on_close
from penstock_worker.net.lingering_close import LingeringClients
from penstock_worker.net.somaxconn import max_backlog
from penstock_worker.servers.app_loader import AppLoadError
from penstock_worker.servers.asgi_forwarded import without_middleware
from penstock_worker.servers.asgi_http10 import frame_for_http10
from penstock_worker.servers.asgi_limits import (
    IdleConnections,
    LoopWithoutTimers,
    awaits_head,
    is_http,
    limit_heads,
    linger,
)
from penstock_worker.servers.asgi_websockets import App, Message, Receive, Send, WebSockets
from penstock_worker.servers.unavailable import LEAVING
from penstock_worker.telemetry.counters import CLIENT_GONE, STOP_TIMEOUT, WORKER_CLOSED
from penstock_worker.telemetry.recorder import Recorder

_SECOND_S: Final = 1.0
_POLL_S: Final = 0.05
"""Between two looks whether requests are in flight, at the end."""
_UNAVAILABLE: Final = 503
_LOGGED_HEADERS: Final = frozenset((b"content-length", b"referer", b"user-agent", b"x-request-id"))
_SWITCHING_PROTOCOLS: Final = 101
_FORBIDDEN: Final = 403
_SERVER_ERROR: Final = 500
_BEHIND_PROXY: Final = DirectLimits()
_LOGGER: Final = "uvicorn.error"
"""Of all that is wrong in uvicorn."""


class AsgiServer:
    """`recorder` is None where a proxy counts and logs."""

    def __init__(
        self, app: Any, recorder: Recorder | None, limits: DirectLimits = _BEHIND_PROXY
    ) -> None:
        self._recorder = recorder
        self._websockets = WebSockets()
        self._is_cut = False
        """What had not ended in time was cut."""
        self._lifespan_error: Exception | None = None
        self._idle = IdleConnections(limits.keepalive_s)
        self._limits_heads = limits.direct
        self._config = uvicorn.Config(
            app,
            interface="asgi3",
            lifespan="auto",
            # The application configures logging; requests are logged by the recorder.
            log_config=None,
            access_log=False,
            backlog=max_backlog(),
        )
        self._probe_config = self._config
        self._server = uvicorn.Server(self._config)
        self._timer: TimerHandle | None = None

    async def start(self) -> None:
        """Run the program's own start. StartError if the application refuses."""
        self._config.load()
        self._config.http_protocol_class = frame_for_http10(self._config.http_protocol_class)
        if self._limits_heads:
            self._config.http_protocol_class = limit_heads(self._config.http_protocol_class)
        loop = asyncio.get_running_loop()
        self._loop = LoopWithoutTimers(loop)
        self._config.http_protocol_class = linger(
            self._config.http_protocol_class, LingeringClients(loop)
        )
        requests, others = without_middleware(self._config.loaded_app)
        websockets = self._websockets.wrap(others)
        lifespan = self._with_lifespan(others)
        self._config.loaded_app = _by_kind(requests, websockets, lifespan)
        self._probe_config = copy.copy(self._config)
        if self._recorder is not None:
            has_log = self._recorder.has_log
            requests = (
                self._logged(requests, self._recorder)
                if has_log
                else self._counted(requests, self._recorder.count)
            )
            websockets = self._logged(websockets, self._recorder)
            self._config.loaded_app = _by_kind(requests, websockets, lifespan)
        self._server.lifespan = self._config.lifespan_class(self._config)
        try:
            await self._server.startup(sockets=[])
        except SystemExit as error:
            raise AppLoadError("its lifespan startup failed") from error
        self._tick()

    def protocol(self, probe: bool) -> asyncio.Protocol:
        """A protocol for one connection. Requests of a probe are not counted."""
        config = self._probe_config if probe else self._config
        made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
            config=config,
            server_state=self._server.server_state,
            app_state=self._server.lifespan.state,
            _loop=self._loop,
        )
        return made

    def is_idle(self, protocol: Any) -> bool:
        """Does this connection wait for a request, or for the rest of its head?"""
        http = self._config.http_protocol_class
        assert isinstance(http, type)
        return isinstance(protocol, http) and awaits_head(protocol)

    def begin_drain(self) -> None:
        """From now on each response ends its connection."""
        self._config.loaded_app = _with_connection_close(self._config.loaded_app)
        for connection in self._server.server_state.connections:
            connection.app = _with_connection_close(connection.app)  # type: ignore[union-attr]

    async def farewell(self) -> None:
        """Close the WebSockets. ASGI has no other notice: `lifespan.shutdown` is the clean-up."""
        # Some libraries (sse-starlette) end their streams when uvicorn is told to stop.
        self._server.handle_exit(signal.SIGTERM, None)
        await self._websockets.close_all()

    async def finish(self) -> None:
        """Wait until requests have finished, and what the application does after them."""
        state = self._server.server_state
        for connection in tuple(state.connections):
            if is_http(connection):
                connection.shutdown()
        while state.connections or state.tasks:  # noqa: ASYNC110 -- uvicorn sets no event
            await asyncio.sleep(_POLL_S)

    def cut(self) -> int:
        """End what is in flight, so that its clients see it. Returns how much that was."""
        self._is_cut = True
        logging.getLogger(_LOGGER).addFilter(_is_error)
        state = self._server.server_state
        answers = self._recorder is not None
        count = sum(_cut(connection, answers=answers) for connection in tuple(state.connections))
        for task in tuple(state.tasks):
            task.cancel()
        return count

    async def clean_up(self) -> None:
        """Run the program's shutdown. AppLoadError if it fails."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._server.started:
            return
        lifespan: Any = self._server.lifespan
        self._lifespan_error = None
        await lifespan.shutdown()
        if self._lifespan_error is not None:
            raise self._lifespan_error
        if getattr(lifespan, "shutdown_failed", False):
            raise AppLoadError("its lifespan shutdown failed")

    def _with_lifespan(self, app: App) -> App:
        """`app`, the exception of whose lifespan is remembered."""

        async def run(scope: Message, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                self._lifespan_error = error
                raise

        return run

    def _counted(self, app: App, count: Callable[[str, int, float], None]) -> App:
        """`app`, with each of its requests counted when it ends.

        On the way of every request: one coroutine around the program's, and one call for each of
        its messages.
        """

        async def counted(scope: Message, receive: Receive, send: Send) -> None:
            started = monotonic()
            status = 0

            def observe(message: Message) -> Awaitable[None]:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                return send(message)

            try:
                await app(scope, receive, observe)
            except BaseException as error:
                if not (self._is_cut and isinstance(error, asyncio.CancelledError)):
                    # uvicorn answers with that.
                    status = status or _SERVER_ERROR
                raise
            finally:
                missing = _UNAVAILABLE if self._is_cut else 0
                count(scope["method"], status or missing, monotonic() - started)

        return counted

    def _logged(self, app: App, recorder: Recorder) -> App:
        """`app`, with each of its requests or WebSockets counted and logged when it ends."""

        async def recorded(scope: Message, receive: Receive, send: Send) -> None:
            started = monotonic()
            response = _ObservedResponse(send)
            try:
                await app(scope, receive, response.send)
            except Exception:
                if not response.status:
                    # uvicorn answers with that.
                    response.status = _SERVER_ERROR
                    response.complete = not self._is_cut
                raise
            finally:
                total_s = monotonic() - started
                if self._is_cut:
                    response.status = response.status or _UNAVAILABLE
                recorder.count(scope.get("method", "GET"), response.status, total_s)
                if recorder.has_log:
                    # An application may go on when its client has had everything.
                    termination = "ok"
                    if not response.complete:
                        termination = self._unfinished(scope, receive, response)
                    _log(recorder, scope, response, total_s, termination)

        return recorded

    def _unfinished(self, scope: Message, receive: Receive, response: "_ObservedResponse") -> str:
        """The termination of a response that the application has not completed."""
        if self._is_cut:
            return STOP_TIMEOUT
        if scope["type"] != "http":
            return "ok"
        if getattr(getattr(receive, "__self__", None), "disconnected", False):
            return CLIENT_GONE
        return WORKER_CLOSED if response.status else "ok"

    def _tick(self) -> None:
        """Once a second, as uvicorn's own loop does: set the `Date` of all responses."""
        date = formatdate(usegmt=True).encode()
        self._server.server_state.default_headers = [
            (b"date", date), *self._config.encoded_headers
        ]  # fmt: skip
        loop = asyncio.get_running_loop()
        self._idle.tick(self._server.server_state.connections, loop.time())
        self._timer = loop.call_later(_SECOND_S, self._tick)


class _ObservedResponse:
    """Status and size of one response, seen as the application sends it."""

    __slots__ = ("_send", "complete", "sent", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.sent = 0
        self.complete = False

    def send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == "http.response.body":
            self.sent += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        elif kind == "http.response.start":
            self.status = message["status"]
        elif not self.status:
            # A WebSocket is one exchange, whose first message decides the status.
            self.status = _SWITCHING_PROTOCOLS if kind == "websocket.accept" else _FORBIDDEN
        return self._send(message)


def _is_error(record: logging.LogRecord) -> bool:
    """Not a request that was cancelled, which uvicorn takes for an error of the program."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _by_kind(requests: App, websockets: App, lifespan: App) -> App:
    """One application of three."""

    # Plain: one coroutine more would cost a request as much as all that it passes through here.
    def serve(scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        kind = scope["type"]
        if kind == "http":
            return requests(scope, receive, send)
        return (websockets if kind == "websocket" else lifespan)(scope, receive, send)

    return serve


def _cut(connection: Any, *, answers: bool) -> bool:
    """End a connection of uvicorn's. True: something was in flight. `answers`: a request without
    a response gets 503; behind a proxy it has had its answer."""
    transport = connection.transport
    cycle = connection.cycle if is_http(connection) else None
    if is_http(connection):
        if cycle is None or cycle.response_complete:
            transport.close()
            return False
        # Nothing more is sent, also not uvicorn's 500 for a request that was cancelled.
        cycle.disconnected = True
    if answers and cycle is not None and not cycle.response_started:
        transport.write(LEAVING)
        transport.close()
    else:
        reset_on_close(transport.get_extra_info("socket").fileno())
        transport.abort()
    return True


def _with_connection_close(app: Any) -> App:
    """`app`, with responses that end their connections."""

    async def closing(scope: Message, receive: Receive, send: Send) -> None:
        def send_close(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            return send(message)

        await app(scope, receive, send_close)

    return closing


def _log(
    recorder: Recorder,
    scope: Message,
    response: _ObservedResponse,
    total_s: float,
    termination: str,
) -> None:
    found = {name: value for name, value in scope["headers"] if name in _LOGGED_HEADERS}
    length = found.get(b"content-length", b"")
    target = scope.get("raw_path") or scope["path"].encode()
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    head = b""
    if recorder.wants_head:
        head = b"".join(
            b"%b: %b\r\n" % (name, found[name])
            for name in (b"referer", b"user-agent")
            if name in found
        )
    recorder.log(
        scope["client"][0] if scope.get("client") else "",
        scope.get("method", "GET"),
        target,
        "HTTP/" + scope["http_version"],
        response.status,
        response.sent,
        int(length) if length.isdigit() else 0,
        total_s,
        found.get(b"x-request-id", b"").decode("latin-1"),
        head,
        termination,
    )
