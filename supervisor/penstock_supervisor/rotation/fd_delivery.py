"""A socket that a proxy has to have in the end, and may have no descriptor for now.

Owns the patience that a channel does not have: that one tries a few times at once and then
gives a socket up, because all that is said after it waits. A link that is never there would be
a worker that gets no client for as long as it lives; so here it is sent again, now and then,
until the proxy has it, is another process, or nobody wants it any more. Must not know what
the socket is for.
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from socket import socket
from typing import Any, Final, Protocol

RETRY_S: Final = 1.0


class Receiver(Protocol):
    """Who gets it."""

    @property
    def pid(self) -> int | None:
        """Which process it is now."""

    def send(
        self, message: Any, handle: socket | None, on_sent: Callable[[bool], None] | None
    ) -> bool:
        """`on_sent` hears whether the handle was taken."""


def deliver(
    loop: AbstractEventLoop,
    proxy: Receiver,
    order: Mapping[str, Any],
    handle: socket,
    is_wanted: Callable[[], bool] = lambda: True,
    on_late: Callable[[], None] = lambda: None,
) -> None:
    """Send `order` with `handle`, again and again if need be; the handle stays the caller's.

    A handle that was closed is not wanted. `on_late` is called when the proxy has it, and was
    told of other things before.
    """
    pid = proxy.pid

    def retry() -> None:
        if proxy.pid == pid and handle.fileno() >= 0 and is_wanted():
            proxy.send(order, handle, on_retry)

    def on_first(taken: bool) -> None:
        if not taken:
            loop.call_later(RETRY_S, retry)

    def on_retry(taken: bool) -> None:
        on_first(taken)
        if taken:
            on_late()

    proxy.send(order, handle, on_first)
