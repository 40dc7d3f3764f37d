"""Serves an aiohttp Application on a socket that is given.

Owns the settings that make aiohttp's server a worker behind a front, and the order of its
end: accept no more, close what is idle, tell what is long to close (`on_shutdown`), let
what is in flight finish. It does not know why it has to leave.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from aiohttp import web

from penstock_worker.listeners import backlog, refused

KEEPALIVE_S: Final = 120
"""Longer than a front keeps an idle connection: who closes first decides who gets the race
between the close and the next request, and only the front can retry."""
_DRAIN_S: Final = 24 * 3600.0
"""How long requests may take to finish: the supervisor has the deadline, not we."""
_HEAD_PART: Final = 1 << 20
"""One line of a head. The front refuses what is too long, by its own configuration."""


class AiohttpServer:
    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(
            app,
            # Requests are logged once, by the front.
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=_DRAIN_S,
            max_line_size=_HEAD_PART,
            max_field_size=_HEAD_PART,
        )

    async def run(
        self, sock: socket.socket, on_ready: Callable[[], None], leaving: asyncio.Event
    ) -> None:
        """Start, serve until `leaving`, finish. ListenError if somebody else has the port."""
        try:
            await self._runner.setup()
            try:
                await web.SockSite(self._runner, sock, backlog=backlog()).start()
            except OSError as error:
                raise refused(sock, error) from error
            on_ready()
            await leaving.wait()
        finally:
            await self._runner.cleanup()

    def clients(self) -> int:
        """Connections that are open now."""
        server = self._runner.server
        return 0 if server is None else len(server.connections)
