"""Sends a socket to a proxy again and again until the proxy has it.

A proxy may have no free descriptor at the moment. A channel tries a few times at once and then
drops the socket, because every later message waits behind it. But a proxy that never gets its
link to a worker would never give that worker a client. So the socket is sent again here, once a
second, until one of these is true: the proxy has it, the proxy is another process, or the socket
is no longer wanted. Must not know what the socket is for.
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from socket import socket
from typing import Any, Final, Protocol

RETRY_S: Final = 1.0


class Recipient(Protocol):
    """The child that gets the socket."""

    @property
    def pid(self) -> int | None:
        """Its current process."""

    def send(
        self, message: Any, handle: socket | None, on_sent: Callable[[bool], None] | None
    ) -> bool:
        """`on_sent` is called with True if the handle arrived, with False if it did not."""


def deliver(
    loop: AbstractEventLoop,
    recipient: Recipient,
    message: Mapping[str, Any],
    handle: socket,
    is_wanted: Callable[[], bool] = lambda: True,
    on_late: Callable[[], None] = lambda: None,
    on_arrived: Callable[[], None] = lambda: None,
) -> None:
    """Send `message` with `handle`, and repeat it if need be. The handle stays the caller's.

    A handle that was closed is not sent again. `on_late` is called if the handle arrived only
    at a later try: the recipient may have got other messages before it. `on_arrived` is called
    in both cases.
    """
    pid = recipient.pid

    def retry() -> None:
        if recipient.pid == pid and handle.fileno() >= 0 and is_wanted():
            recipient.send(message, handle, on_retry_sent)

    def on_first_sent(arrived: bool) -> None:
        if arrived:
            on_arrived()
        else:
            loop.call_later(RETRY_S, retry)

    def on_retry_sent(arrived: bool) -> None:
        on_first_sent(arrived)
        if arrived:
            on_late()

    recipient.send(message, handle, on_first_sent)
