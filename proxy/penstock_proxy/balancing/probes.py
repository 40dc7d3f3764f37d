"""How a worker is asked whether it is well: by connecting to it, or with a GET.

Owns: the connection of one check, and what an answer to it says, or that there is none. Must
not know: when a worker is asked (`health_check`), and what follows from its answer (`pool`).

Each check opens a new connection: one that was kept says little about whether the worker still
accepts. A worker to which it is not enough to connect is asked over a socket that the caller
has: one that was passed to it, or one that begins with a PROXY header.

aiohttp is imported when the first check needs it, and beside the event loop: it takes longer
than all the rest of a proxy's start, and a proxy that comes back has clients waiting.
"""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import RejectedError
from penstock_proxy.http1.parser import parse_status_line
from penstock_proxy.net.address import Address, parse_address
from penstock_proxy.net.connector import SocketAddress
from penstock_proxy.net.proxy_header import local_header

if TYPE_CHECKING:
    import aiohttp

_USER_AGENT: Final = "penstock-health"
_MOST_HEAD: Final = 64 << 10
_MOST_BODY: Final = 64 << 10
"""More of an answer is not read: what counts has been said in its first line."""
_NOBODY_THERE: Final = {
    errno.ECONNREFUSED: "connection refused",
    errno.ENOENT: "its socket does not exist",
}


class ProbeResult(NamedTuple):
    """The result of one check."""

    outcome: str
    """The value of the metric's label, of metrics.CHECK_RESULTS."""
    why: str = ""
    """What was wrong, for people."""


OK: Final = ProbeResult("ok")
MemberProbe = Callable[[], Awaitable[ProbeResult]]
"""Checks one member, once. It may raise OSError or TimeoutError: these are results, too."""
Probe = Callable[[Member], Awaitable[ProbeResult]]
"""The same for any member of a service."""


def from_error(error: OSError) -> ProbeResult:
    """What an error of the connection says of the worker."""
    nobody = _NOBODY_THERE.get(error.errno or 0)
    if nobody is not None:
        return ProbeResult("refused", nobody)
    return ProbeResult("failed", error.strerror or str(error))


async def connect(address: Address) -> ProbeResult:
    """It accepts, and that is enough."""
    loop = asyncio.get_running_loop()
    transport: asyncio.Transport
    if address.path:
        transport, _ = await loop.create_unix_connection(asyncio.Protocol, address.path)
    else:
        transport, _ = await loop.create_connection(asyncio.Protocol, address.host, address.port)
    transport.close()
    return OK


# Over a socket that is there already


async def get(sock: socket.socket, path: str, host: str = "localhost") -> ProbeResult:
    """GET `path`; 2xx and 3xx are good. OSError when the connection breaks.

    The socket is the caller's, and one check's: what is left of an answer is not read.
    """
    loop = asyncio.get_running_loop()
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {_USER_AGENT}\r\n"
        "Connection: close\r\n\r\n"
    )
    await loop.sock_sendall(sock, request.encode())
    head = b""
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(sock, 4096)
        head += data
        if not data or len(head) > _MOST_HEAD:
            return ProbeResult("failed", "no HTTP answer: it broke off")
    try:
        status = parse_status_line(head[: head.index(b"\r\n\r\n") + 4]).status
    except RejectedError as error:
        return ProbeResult("failed", f"no HTTP answer: {error}")
    return _from_status(status)


async def with_proxy_header(
    address: SocketAddress, named: str, version: int, path: str | None
) -> ProbeResult:
    """Connect, say that it is us, and GET `path` if there is one; `named`: the Host."""
    loop = asyncio.get_running_loop()
    family, sockaddr = address
    with closing(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)) as sock:
        await loop.sock_connect(sock, sockaddr)
        await loop.sock_sendall(sock, local_header(version, sock))
        if path is None:
            return OK
        return await get(sock, path, "localhost" if family == socket.AF_UNIX else named)


# By aiohttp


async def import_client() -> None:
    """Import aiohttp beside the event loop, before the first `http_client`."""
    await asyncio.to_thread(import_module, "aiohttp")


@asynccontextmanager
async def http_client(member: Member, path: str) -> AsyncIterator[MemberProbe]:
    """GET `path` of a member that listens; 2xx and 3xx are good.

    A session for each member, because aiohttp binds one to a single unix socket.
    """
    import aiohttp

    address = parse_address(member.address)
    connector: aiohttp.BaseConnector
    if address.path:
        connector = aiohttp.UnixConnector(address.path, force_close=True)
    else:
        connector = aiohttp.TCPConnector(force_close=True, use_dns_cache=False)
    async with aiohttp.ClientSession(
        connector=connector,
        headers={"User-Agent": _USER_AGENT, "Connection": "close"},
        cookie_jar=aiohttp.DummyCookieJar(),
        # Whoever asks limits the time of the whole check.
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:
        if address.path:
            # There is no name to say; an empty Host is refused by many.
            yield lambda: _get_with(session, f"http://localhost{path}")
        else:
            # Read each time: another process in this slot may listen elsewhere.
            yield lambda: _get_with(session, f"http://{member.address}{path}")


async def _get_with(session: "aiohttp.ClientSession", url: str) -> ProbeResult:
    from aiohttp import ClientError
    from yarl import URL

    try:
        # encoded: the path is said exactly as it was configured.
        async with session.get(URL(url, encoded=True), allow_redirects=False) as response:
            result = _from_status(response.status)
            # An answer that is cut off in the middle would be an error in the worker's log.
            room = _MOST_BODY if result is OK else 0
            while room > 0 and (piece := await response.content.read(room)):
                room -= len(piece)
            return result
    except ClientError as error:
        if isinstance(error, OSError):
            raise
        return ProbeResult("failed", f"no HTTP answer: {str(error) or type(error).__name__}")


def _from_status(status: int) -> ProbeResult:
    return OK if 200 <= status < 400 else ProbeResult("failed", f"HTTP {status}")
