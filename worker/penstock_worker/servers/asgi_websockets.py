"""The WebSockets of an ASGI application, closed with 1001 when the worker leaves.

Owns which are open, and their close. uvicorn closes them with 1012 and at once, when it shuts
down; a worker tells them earlier, while it still serves requests, and lets the closing
handshake end. The close goes the application's own way (`websocket.close`), so it does not
matter which of uvicorn's implementations serves. Must not know when the worker leaves.

An application that goes on sending is told what ASGI has for a client that is gone: `send` raises
an OSError. Otherwise the log would have a traceback for each.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from uvicorn.protocols.utils import ClientDisconnected

_GOING_AWAY: Final = 1001
"""RFC 6455 §7.4.1: the server goes down. Clients connect again, to whoever serves then."""

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class WebSockets:
    """All of one worker."""

    def __init__(self) -> None:
        self._open: set[_WebSocket] = set()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def wrap(self, app: App) -> App:
        """`app` for WebSockets, which are known here."""

        async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
            websocket = _WebSocket(send, self._accepted)
            try:
                await app(scope, receive, websocket.send)
            finally:
                self._open.discard(websocket)

        return wrapped

    async def close_all(self) -> None:
        """Close all that are open, and from now on each that is accepted. Returns when the
        closes are sent."""
        self._closing = True
        await asyncio.gather(*(websocket.close() for websocket in tuple(self._open)))

    def _accepted(self, websocket: "_WebSocket") -> None:
        self._open.add(websocket)
        if self._closing:
            # Not at once: its application has to return from its `accept` first.
            task = asyncio.get_running_loop().create_task(websocket.close())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class _WebSocket:
    def __init__(self, send: Send, on_accept: Callable[["_WebSocket"], None]) -> None:
        self._send = send
        self._on_accept = on_accept
        self._closed_by_us = False
        self._closed = False

    async def send(self, message: Message) -> None:
        """The application's `send`."""
        if self._closed_by_us:
            raise ClientDisconnected
        kind = message["type"]
        self._closed = self._closed or kind == "websocket.close"
        try:
            await self._send(message)
        except RuntimeError:
            # We have closed it while the application waited for the client to read.
            if self._closed_by_us:
                raise ClientDisconnected from None
            raise
        if kind == "websocket.accept":
            self._on_accept(self)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = self._closed_by_us = True
        message = {"type": "websocket.close", "code": _GOING_AWAY, "reason": "the worker leaves"}
        # The client, or its application, has closed it at the same time.
        with suppress(OSError, RuntimeError):
            await self._send(message)
