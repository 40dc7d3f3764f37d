"""An HTTP server of our own on a socket that somebody opened, bounded in every way.

Owns its connections: how many there are, and how long one may take to ask something. What is
asked and who may ask belongs to the application that it is given. The admin port and the
control socket have one each.

Nothing that is asked here may disturb what is served elsewhere: connections take descriptors
from the process that has to start the next worker. aiohttp bounds the size of a head and the
time between two requests, but not the time that one takes to come: who connects and says
nothing, or a byte a minute, would stay for ever.
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
FIRST_S: Final = 10.0
"""From a connection to its first whole request."""
BETWEEN_S: Final = 75.0
"""To the next one, the sending of the answer before it included."""
_CHECK_S: Final = 1.0
_LINGER_S: Final = 1.0
"""What an answer under way gets when the run ends."""
_LINE: Final = 4 << 10
_FIELD: Final = 4 << 10

_log: Final = log_filter.filtered_logger("penstock.reception")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serve(sock: socket.socket, app: web.Application) -> AsyncIterator[None]:
    """Answer on the listening `sock`, which stays the caller's, until the end of the block."""
    loop = asyncio.get_running_loop()
    idle_timeout = _IdleTimeout(loop)
    app.middlewares.insert(0, idle_timeout.while_handled)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_log,
        shutdown_timeout=_LINGER_S,
        keepalive_timeout=BETWEEN_S,
        lingering_time=_LINGER_S,
        max_line_size=_LINE,
        max_field_size=_FIELD,
    )
    await runner.setup()
    http = runner.server
    assert http is not None

    def connection() -> asyncio.BaseProtocol:
        return (
            idle_timeout.watched(http()) if len(http.connections) < MAX_CONNECTIONS else _Refused()
        )

    # asyncio closes what it is given; who opened a unix socket has a name to remove too.
    if sock.family == socket.AF_UNIX:
        listening = await loop.create_unix_server(connection, sock=sock.dup())
    else:
        listening = await loop.create_server(connection, sock=sock.dup())
    idle_timeout.check(http)
    try:
        yield
    finally:
        idle_timeout.end()
        listening.close()
        await runner.cleanup()


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _IdleTimeout:
    """When each connection is given up, unless it has asked something by then."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._until: dict[RequestHandler, float] = {}
        self._next: asyncio.TimerHandle | None = None

    def watched(self, connection: RequestHandler) -> RequestHandler:
        self._until[connection] = self._loop.time() + FIRST_S
        return connection

    @web.middleware
    async def while_handled(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.protocol
        self._until[connection] = math.inf
        try:
            return await handler(request)
        finally:
            self._until[connection] = self._loop.time() + BETWEEN_S

    def check(self, http: web.Server) -> None:
        """Give up who is late, forget who has gone. One timer for all, and no task."""
        now = self._loop.time()
        self._until = {one: self._until.get(one, now + FIRST_S) for one in http.connections}
        for connection, until in self._until.items():
            if now >= until and connection.transport is not None:
                connection.transport.abort()
        self._next = self._loop.call_later(_CHECK_S, self.check, http)

    def end(self) -> None:
        if self._next is not None:
            self._next.cancel()
