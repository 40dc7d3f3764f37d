"""Is the worker there? A connect that succeeds is a yes; everything else is "not yet".

For programs that have no channel to say it themselves. It does not know what a deadline
is: whoever asks stops asking. When a deadline did pass, `where_it_listens` looks at what
the process really opened, because a wrong port is the usual reason, and its number is the
whole answer.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import psutil

from penstock_proxy.config import Address

_FIRST_S: Final = 0.05
_LONGEST_S: Final = 0.5
_GROWTH: Final = 1.5
_CONNECT_S: Final = 2.0
"""A listener whose queue is full lets a connect wait; try again rather than for ever."""


def waits() -> Iterator[float]:
    """Seconds between two tries: short while a quick program starts, then rarer."""
    wait = _FIRST_S
    while True:
        yield wait
        wait = min(wait * _GROWTH, _LONGEST_S)


async def until_it_answers(address: Address) -> None:
    """Return once something accepts a connection there. Cancel to stop asking."""
    for wait in waits():
        if await _answers(address):
            return
        await asyncio.sleep(wait)


async def _answers(address: Address) -> bool:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await loop.sock_connect(sock, (address.host, address.port))
            # With a port from the ephemeral range the kernel can connect a socket to
            # itself: it draws that very port as our own.
            return bool(sock.getsockname() != sock.getpeername())
        except (OSError, TimeoutError):
            return False


def where_it_listens(pid: int) -> tuple[str, ...]:
    """Addresses that the process and all below it listen on, as far as we may look."""
    found: set[str] = set()
    for process in _tree(pid):
        with suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(str(Address(connection.laddr.ip, connection.laddr.port)))
    return tuple(sorted(found))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
