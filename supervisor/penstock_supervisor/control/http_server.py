"""An HTTP server with limits, for the admin port and the control socket.

Owns its connections: how many there may be, and how long a client may take to send a request.
The application decides what a request does and who may send it. The listening socket is the
caller's.

A client must not disturb the rest of the run: connections take descriptors from the process that
has to start the next worker. aiohttp limits the size of a request head and the time between two
requests, but not the time that a head takes to arrive. Without the limit here, a client that
sends nothing, or a byte a minute, would stay connected for ever.
"""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from penstock_worker.servers import log_filter

MAX_CONNECTIONS: Final = 64
FIRST_REQUEST_S: Final = 10.0
"""From a connection to the end of its first request head."""
NEXT_REQUEST_S: Final = 75.0
"""From the return of the handler to the next request head; sending the answer is included."""
_CHECK_S: Final = 1.0
_SHUTDOWN_S: Final = 1.0
"""For answers that are being sent when the run ends."""
_MAX_LINE: Final = 4 << 10
_MAX_FIELD: Final = 4 << 10

_log: Final = log_filter.filtered_logger("penstock.control")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serve(sock: socket.socket, app: web.Application) -> AsyncIterator[None]:
    """Serve on the listening `sock`, which stays the caller's, until the end of the block."""
    loop = asyncio.get_running_loop()
    request_timeout = _RequestTimeout(loop)
    app.middlewares.insert(0, request_timeout.suspend_while_handled)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_log,
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=NEXT_REQUEST_S,
        lingering_time=_SHUTDOWN_S,
        max_line_size=_MAX_LINE,
        max_field_size=_MAX_FIELD,
    )
    await runner.setup()
    http = runner.server
    assert http is not None

    def make_protocol() -> asyncio.BaseProtocol:
        if len(http.connections) >= MAX_CONNECTIONS:
            return _Rejected()
        return request_timeout.watch(http())

    # A duplicate, because asyncio closes the socket that it is given.
    if sock.family == socket.AF_UNIX:
        server = await loop.create_unix_server(make_protocol, sock=sock.dup())
    else:
        server = await loop.create_server(make_protocol, sock=sock.dup())
    request_timeout.check(http)
    try:
        yield
    finally:
        request_timeout.close()
        server.close()
        await runner.cleanup()


class _Rejected(asyncio.Protocol):
    """A connection beyond the limit: it is reset at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _RequestTimeout:
    """Aborts each connection that has not sent a whole request head by its deadline."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._deadlines: dict[RequestHandler, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connection: RequestHandler) -> RequestHandler:
        self._deadlines[connection] = self._loop.time() + FIRST_REQUEST_S
        return connection

    @web.middleware
    async def suspend_while_handled(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        """Suspend the deadline while a request is handled; then set that of the next request."""
        connection = request.protocol
        self._deadlines[connection] = math.inf
        try:
            return await handler(request)
        finally:
            self._deadlines[connection] = self._loop.time() + NEXT_REQUEST_S

    def check(self, http: web.Server) -> None:
        """Abort late connections and forget closed ones. One timer for all, and no task."""
        now = self._loop.time()
        self._deadlines = {
            connection: self._deadlines.get(connection, now + FIRST_REQUEST_S)
            for connection in http.connections
        }
        for connection, deadline in self._deadlines.items():
            if now >= deadline and connection.transport is not None:
                connection.transport.abort()
        self._timer = self._loop.call_later(_CHECK_S, self.check, http)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
