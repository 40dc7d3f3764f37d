"""Probes: how the health of a worker is checked, by a connect or with a GET.

Owns: the connection of one check, and its result. Must not know: when a worker is checked
(`health_check`), and what follows from the result (`pool`).

Each check opens a new connection: a connection that is kept alive says little about whether the
worker still accepts. Where a plain connect is not enough, the caller supplies the socket: one that
was passed to the worker, or one that begins with a PROXY header.

aiohttp is imported when the first check needs it, in another thread. The import takes longer than
the rest of a proxy's start, and clients wait for a proxy that is restarted.

The status line of the answer decides, and nothing that comes behind it: not a body without an end,
a close or a reset. As soon as it is there the check's time no longer runs (`Verdict`).

A bad answer often says what is wrong ("no connection to the database"). So its first bytes are part
of the reason. They are the program's own words, so they are made one line of printable characters.
"""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import BAD_RESPONSE, RejectedError
from penstock_proxy.http1.chunked import Chunked
from penstock_proxy.http1.parser import parse_status_line
from penstock_proxy.net.address import Address, parse_address
from penstock_proxy.net.connector import SocketAddress, connect_unix
from penstock_proxy.net.proxy_header import local_header
from penstock_worker.telemetry.printable import printable

if TYPE_CHECKING:
    import aiohttp

_USER_AGENT: Final = "penstock-health"
_MAX_HEAD: Final = 64 << 10
_MAX_BODY: Final = 64 << 10
"""More of a good answer's body is not read."""
_MAX_QUOTED: Final = 200
"""Characters of a bad answer that the reason repeats."""
_MAX_QUOTED_BYTES: Final = 4 * _MAX_QUOTED
_MAX_INTERIM: Final = 16
"""1xx responses before the one that decides."""
_BODY_WAIT_S: Final = 0.05
"""For a body that did not come with its head: the first words of a bad answer, and the rest of a
good one, because a server may log a response that nobody takes."""
_NOT_LISTENING: Final = {
    errno.ECONNREFUSED: "connection refused",
    errno.ENOENT: "its socket does not exist",
}


class ProbeResult(NamedTuple):
    """The result of one check."""

    outcome: str
    """The value of the metric's label, of metrics.CHECK_RESULTS."""
    reason: str = ""
    """What was wrong, for the log."""


HEALTHY: Final = ProbeResult("ok")
MemberProbe = Callable[[], Awaitable[ProbeResult]]
"""Checks one member, once. It may raise OSError or TimeoutError, which are results as well."""
Probe = Callable[[Member], Awaitable[ProbeResult]]
"""Checks any member of a service, once."""
Verdict = Callable[[], None]
"""Called when the result of a check is known, and only the rest of the answer is waited for."""


def from_error(error: OSError) -> ProbeResult:
    """The result that follows from an error of the connection."""
    reason = _NOT_LISTENING.get(error.errno or 0)
    if reason is not None:
        return ProbeResult("refused", reason)
    return ProbeResult("failed", error.strerror or str(error))


async def connect(address: Address) -> ProbeResult:
    """Check that the worker accepts connections."""
    if address.path:
        (await connect_unix(address.path)).close()
        return HEALTHY
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, address.host, address.port)
    transport.close()
    return HEALTHY


# Over a socket of the caller


async def get(
    sock: socket.socket,
    path: str,
    host: str = "localhost",
    on_verdict: Verdict = lambda: None,
) -> ProbeResult:
    """GET `path`; 2xx and 3xx are good. OSError when the connection breaks before the answer.

    The socket belongs to the caller and is used for one check: the rest of the response stays
    unread.
    """
    loop = asyncio.get_running_loop()
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {_USER_AGENT}\r\n"
        "Connection: close\r\n\r\n"
    )
    await loop.sock_sendall(sock, request.encode())
    body = b""
    for _ in range(_MAX_INTERIM + 1):
        while b"\r\n\r\n" not in body:
            data = await loop.sock_recv(sock, 4096)
            body += data
            if not data or len(body) > _MAX_HEAD:
                return ProbeResult("failed", "no HTTP answer: it broke off")
        head, _, body = body.partition(b"\r\n\r\n")
        try:
            status = parse_status_line(head + b"\r\n").status
        except RejectedError as error:
            return ProbeResult("failed", f"no HTTP answer: {error}")
        if status >= 200:
            break
    on_verdict()
    if _is_good(status):
        return HEALTHY
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(_BODY_WAIT_S):
            while len(body) < _MAX_QUOTED_BYTES and (data := await loop.sock_recv(sock, 4096)):
                body += data
    return _bad_status(status, _payload(head, body))


async def with_proxy_header(
    address: SocketAddress, host: str, version: int, path: str | None
) -> ProbeResult:
    """Connect, send a PROXY header, and GET `path` unless it is None; `host`: the Host field."""
    loop = asyncio.get_running_loop()
    family = address[0]
    with closing(await _connected(address)) as sock:
        await loop.sock_sendall(sock, local_header(version, sock))
        if path is None:
            return HEALTHY
        return await get(sock, path, "localhost" if family == socket.AF_UNIX else host)


async def _connected(address: SocketAddress) -> socket.socket:
    family, sockaddr = address
    if family == socket.AF_UNIX:
        return await connect_unix(sockaddr)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


# With aiohttp


async def import_client() -> None:
    """Import aiohttp in another thread, before the first `http_client`."""
    await asyncio.to_thread(import_module, "aiohttp")


@asynccontextmanager
async def http_client(
    member: Member, path: str, on_verdict: Verdict = lambda: None
) -> AsyncIterator[MemberProbe]:
    """GET `path` of a member that listens; 2xx and 3xx are good.

    Yields a probe, which connects anew each time.
    """
    import aiohttp

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, use_dns_cache=False),
        # A compressed answer could not be quoted.
        headers={
            "User-Agent": _USER_AGENT,
            "Connection": "close",
            "Accept-Encoding": "identity",
        },
        cookie_jar=aiohttp.DummyCookieJar(),
        # The caller limits the time of the whole check.
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:

        def probe() -> Awaitable[ProbeResult]:
            # Read each time: its next process may listen at another address.
            address = parse_address(member.address)
            if address.path:
                return _get_over_unix(address.path, path, on_verdict)
            return _get_with(session, f"http://{member.address}{path}", on_verdict)

        yield probe


async def _get_over_unix(where: str, path: str, on_verdict: Verdict) -> ProbeResult:
    """GET `path` over a unix socket: a session of aiohttp would keep the first one's path."""
    with closing(await connect_unix(where)) as sock:
        # A unix socket has no host name, and many servers refuse an empty Host.
        return await get(sock, path, on_verdict=on_verdict)


async def _get_with(session: "aiohttp.ClientSession", url: str, on_verdict: Verdict) -> ProbeResult:
    from aiohttp import ClientError
    from yarl import URL

    try:
        # encoded: the path is sent exactly as it was configured.
        async with session.get(URL(url, encoded=True), allow_redirects=False) as response:
            on_verdict()
            if not _is_good(response.status):
                body = await _first_bytes(response.content, _MAX_QUOTED_BYTES)
                return _bad_status(response.status, body)
            await _first_bytes(response.content, _MAX_BODY)
            return HEALTHY
    except ClientError as error:
        if isinstance(error, OSError):
            raise
        return ProbeResult("failed", f"no HTTP answer: {str(error) or type(error).__name__}")


async def _first_bytes(content: "aiohttp.StreamReader", room: int) -> bytes:
    """So much of a body as comes soon; how it ends does not matter."""
    from aiohttp import ClientError

    body = b""
    with suppress(TimeoutError, ClientError, OSError):
        async with asyncio.timeout(_BODY_WAIT_S):
            while len(body) < room and (piece := await content.read(room - len(body))):
                body += piece
    return body


# What an answer says


def _payload(head: bytes, body: bytes) -> bytes:
    """The body without the lines of its chunks, if it has any."""
    if b"\ntransfer-encoding: chunked" not in head.lower():
        return body
    with suppress(RejectedError):
        return b"".join(Chunked(BAD_RESPONSE).feed(body))
    return b""


def _is_good(status: int) -> bool:
    return 200 <= status < 400


def _bad_status(status: int, body: bytes) -> ProbeResult:
    text = body[:_MAX_QUOTED_BYTES].decode("utf-8", "replace")
    said = printable(" ".join(text.split()))
    if len(said) > _MAX_QUOTED:
        said = f"{said[:_MAX_QUOTED]}…"
    return ProbeResult("failed", f"HTTP {status}: {said}" if said else f"HTTP {status}")
