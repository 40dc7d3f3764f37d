"""Serves an ASGI 3 application through uvicorn: a protocol for each connection.

Owns the settings that make uvicorn's protocols a worker. uvicorn would like to own the
process as well (signals, logging, the loop, the listening socket); all of that is taken from
it, so that an ASGI worker starts and leaves in exactly the way an aiohttp worker does.

Importing this needs the extra `penstock[asgi]`; nobody imports it before an ASGI
application was found.
"""

import asyncio
import copy
from asyncio import TimerHandle
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from time import monotonic
from typing import Any, Final

import uvicorn

from penstock_worker.asgi_heads import Heads, bounded
from penstock_worker.bounds import Bounds
from penstock_worker.loading import StartError
from penstock_worker.recorder import Recorder, RequestRecord
from penstock_worker.somaxconn import backlog

_SECOND_S: Final = 1.0
_NOTED: Final = frozenset((b"content-length", b"referer", b"user-agent", b"x-request-id"))
_SWITCHED: Final = 101
_FORBIDDEN: Final = 403
_BROKEN: Final = 500
_FRONTED: Final = Bounds()

_Message = dict[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Receive = Callable[[], Awaitable[_Message]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class AsgiServer:
    """`recorder` is None where a front counts and logs."""

    def __init__(self, app: Any, recorder: Recorder | None, bounds: Bounds = _FRONTED) -> None:
        self._recorder = recorder
        self._heads = Heads(bounds.keepalive_s) if bounds.direct else None
        self._config = uvicorn.Config(
            app,
            interface="asgi3",
            lifespan="auto",
            # Logging belongs to the application, and requests are logged elsewhere.
            log_config=None,
            access_log=False,
            # It is only handed on to the loop, which takes any number of seconds.
            timeout_keep_alive=bounds.keepalive_s,  # type: ignore[arg-type]
            backlog=backlog(),
        )
        self._uncounted = self._config
        self._server = uvicorn.Server(self._config)
        self._second: TimerHandle | None = None

    async def start(self) -> None:
        """The program's own start. StartError if the application refuses."""
        self._config.load()
        if self._heads is not None:
            self._config.http_protocol_class = bounded(self._config.http_protocol_class)
        self._uncounted = copy.copy(self._config)
        if self._recorder is not None:
            self._config.loaded_app = _recorded(self._config.loaded_app, self._recorder)
        self._server.lifespan = self._config.lifespan_class(self._config)
        try:
            await self._server.startup(sockets=[])
        except SystemExit as error:
            raise StartError("its lifespan startup failed") from error
        self._tick()

    def protocol(self, probe: bool) -> asyncio.Protocol:
        """For one connection; what comes over a probe's is not counted."""
        config = self._uncounted if probe else self._config
        made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
            config=config,
            server_state=self._server.server_state,
            app_state=self._server.lifespan.state,
        )
        return made

    def begin_drain(self) -> None:
        """Whoever asks once more is told that it is the last time."""
        self._config.loaded_app = _last(self._config.loaded_app)
        for connection in self._server.server_state.connections:
            connection.app = _last(connection.app)  # type: ignore[union-attr]

    async def shutdown(self) -> None:
        """Let requests finish, and the program clean up."""
        if self._server.started:
            await self._server.shutdown(sockets=[])
        if self._second is not None:
            self._second.cancel()

    def _tick(self) -> None:
        """What uvicorn's own loop does once a second: the `Date` of all responses."""
        date = formatdate(usegmt=True).encode()
        self._server.server_state.default_headers = [
            (b"date", date), *self._config.encoded_headers
        ]  # fmt: skip
        loop = asyncio.get_running_loop()
        if self._heads is not None:
            self._heads.tick(self._server.server_state.connections, loop.time())
        self._second = loop.call_later(_SECOND_S, self._tick)


class _Answer:
    """What is seen of one answer as it goes by."""

    __slots__ = ("_send", "sent", "status")

    def __init__(self, send: _Send) -> None:
        self._send = send
        self.status = 0
        self.sent = 0

    def send(self, message: _Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == "http.response.body":
            self.sent += len(message.get("body", b""))
        elif kind == "http.response.start":
            self.status = message["status"]
        elif not self.status:
            # A WebSocket is one exchange, and its first word decides.
            self.status = _SWITCHED if kind == "websocket.accept" else _FORBIDDEN
        return self._send(message)


def _recorded(app: Any, recorder: Recorder) -> _App:
    """`app`, and each of its requests is counted when it has ended."""

    async def recorded(scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        started = monotonic()
        answer = _Answer(send)
        try:
            await app(scope, receive, answer.send)
        except Exception:
            answer.status = answer.status or _BROKEN
            raise
        finally:
            total_s = monotonic() - started
            recorder.count(scope.get("method", "GET"), answer.status, total_s)
            if recorder.has_log:
                recorder.log(_record(scope, answer, total_s))

    return recorded


def _last(app: Any) -> _App:
    """`app`, whose answers end their connections."""

    async def last(scope: _Message, receive: _Receive, send: _Send) -> None:
        def say(message: _Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            return send(message)

        await app(scope, receive, say)

    return last


def _record(scope: _Message, answer: _Answer, total_s: float) -> RequestRecord:
    found = {name: value for name, value in scope["headers"] if name in _NOTED}
    length = found.get(b"content-length", b"")
    target = scope.get("raw_path") or scope["path"].encode()
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    return RequestRecord(
        client=scope["client"][0] if scope.get("client") else "",
        method=scope.get("method", "GET"),
        target=target,
        version=f"HTTP/{scope['http_version']}",
        status=answer.status,
        sent=answer.sent,
        received=int(length) if length.isdigit() else 0,
        total_s=total_s,
        request_id=found.get(b"x-request-id", b"").decode("latin-1"),
        head=b"".join(
            b"%b: %b\r\n" % (name, found[name])
            for name in (b"referer", b"user-agent")
            if name in found
        ),
    )
