"""Serves an ASGI 3 application through uvicorn, on a socket that is given.

Owns the settings that make uvicorn a worker behind a front. uvicorn would like to own the
process as well (signals, logging, the loop); all of that is taken from it, so that an ASGI
worker starts and leaves in exactly the way an aiohttp worker does.

Importing this needs the extra `penstock[asgi]`; nobody imports it before an ASGI
application was found.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn

from penstock_worker.listeners import backlog, refused
from penstock_worker.loading import StartError

KEEPALIVE_S: Final = 120
"""As in `aiohttp_server`: longer than a front keeps an idle connection."""


class AsgiServer:
    def __init__(self, app: Any) -> None:
        self._config = uvicorn.Config(
            app,
            interface="asgi3",
            lifespan="auto",
            # Logging belongs to the application, and requests are logged by the front.
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEPALIVE_S,
            backlog=backlog(),
        )
        self._server: _Server | None = None

    async def run(
        self, sock: socket.socket, on_ready: Callable[[], None], leaving: asyncio.Event
    ) -> None:
        """Start, serve until `leaving`, finish.

        ListenError if somebody else has the port, StartError if the application refuses.
        """
        self._server = _Server(self._config, on_ready, leaving)
        try:
            await self._server.serve(sockets=[sock])
        except SystemExit as error:
            raise StartError("its lifespan startup failed") from error

    def clients(self) -> int:
        """Connections that are open now."""
        return 0 if self._server is None else len(self._server.server_state.connections)


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], leaving: asyncio.Event
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._leaving = leaving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's way ends with raising the signal again, which is a death and no exit 0.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        try:
            await super().startup(sockets=sockets)
        except OSError as error:
            # The application's own errors do not come this way: uvicorn logs those.
            raise refused(sockets[0], error) from error
        if self.started:
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._leaving.is_set()
