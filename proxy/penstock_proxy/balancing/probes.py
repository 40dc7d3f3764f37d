"""Probes: what a health check asks a worker, and what its answer says.

Owns: the request of a check, the judgement of the answer, and checks over a socket that the caller
supplies: one that was passed to the worker, or one that begins with a PROXY header. Must not
know: when a worker is checked (`health_check`), what follows from the result (`pool`), and how a
check reaches a worker by its address alone (`address_check`).

The status of the answer decides, and nothing that comes behind its head: not a body without an end,
a close or a reset. As soon as the head is there the check's time no longer runs.

A bad answer often says what is wrong ("no connection to the database"). So its first bytes are part
of the reason. They are the program's own words, so they are made one line of printable characters.
"""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from typing import Final, NamedTuple

from penstock_proxy.balancing.pool import Member
from penstock_proxy.errors import BAD_RESPONSE, RejectedError
from penstock_proxy.http1.chunked import Chunked
from penstock_proxy.http1.parser import parse_status_line
from penstock_proxy.net.connector import SocketAddress, connect_unix
from penstock_proxy.net.proxy_header import local_header
from penstock_worker.telemetry.printable import printable

_USER_AGENT: Final = "penstock-health"
_MAX_HEAD: Final = 64 << 10
MAX_BODY: Final = 64 << 10
"""More of a good answer's body is not read."""
_MAX_QUOTED: Final = 200
"""Characters of a bad answer that the reason repeats."""
_MAX_QUOTED_BYTES: Final = 4 * _MAX_QUOTED
_MAX_INTERIM: Final = 16
"""1xx responses before the one that decides."""
BODY_WAIT_S: Final = 0.05
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
Probe = Callable[[Member], Awaitable[ProbeResult]]
"""Checks any member of a service, once. It may raise OSError or TimeoutError, which are results as
well."""


def from_error(error: OSError) -> ProbeResult:
    """The result that follows from an error of the connection."""
    reason = _NOT_LISTENING.get(error.errno or 0)
    if reason is not None:
        return ProbeResult("refused", reason)
    return ProbeResult("failed", error.strerror or str(error))


def request(path: str, host: str) -> bytes:
    """What is asked. `host`: the Host field."""
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {_USER_AGENT}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode()


def host_of(member: Member) -> str:
    """Its Host field (RFC 9110 section 7.2): the name that its clients would have, and without one
    its address. The port is said unless it is HTTP's own."""
    return (member.name or member.address).removesuffix(":80")


class Answer:
    """What has come of an answer. 2xx and 3xx are good."""

    __slots__ = ("_body", "_head", "_heads_left", "_status", "is_decided")

    def __init__(self) -> None:
        self.is_decided = False
        """Its status is there; only the rest of it is waited for."""
        self._head = b""
        self._body = b""
        self._status = 0
        self._heads_left = _MAX_INTERIM + 1

    def feed(self, data: bytes) -> ProbeResult | None:
        """More has come; empty: it has ended. Returns the result if it is no answer."""
        self._body += data
        while not self.is_decided:
            head, end, rest = self._body.partition(b"\r\n\r\n")
            if not end:
                if not data or len(head) > _MAX_HEAD:
                    return ProbeResult("failed", "no HTTP answer: it broke off")
                break
            try:
                self._status = parse_status_line(head + b"\r\n").status
            except RejectedError as error:
                return ProbeResult("failed", f"no HTTP answer: {error}")
            self._head, self._body = head, rest
            self._heads_left -= 1
            self.is_decided = self._status >= 200 or not self._heads_left
        return None

    @property
    def is_good(self) -> bool:
        return 200 <= self._status < 400

    @property
    def is_enough(self) -> bool:
        """So much of its body has come that no more is read."""
        return len(self._body) >= (MAX_BODY if self.is_good else _MAX_QUOTED_BYTES)

    def result(self) -> ProbeResult:
        """What its status says, and of a bad answer the first words."""
        if self.is_good:
            return HEALTHY
        return _bad_status(self._status, _payload(self._head, self._body))


# Over a socket of the caller


async def get(sock: socket.socket, path: str, host: str = "localhost") -> ProbeResult:
    """GET `path`; 2xx and 3xx are good. OSError when the connection breaks before the answer.

    The socket belongs to the caller and is used for one check: the rest of the response stays
    unread.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, request(path, host))
    answer = Answer()
    while not answer.is_decided:
        if (broken := answer.feed(await loop.sock_recv(sock, 4096))) is not None:
            return broken
    if not answer.is_good:
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(BODY_WAIT_S):
                while not answer.is_enough and (data := await loop.sock_recv(sock, 4096)):
                    answer.feed(data)
    return answer.result()


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


# What an answer says


def _payload(head: bytes, body: bytes) -> bytes:
    """The body without the lines of its chunks, if it has any."""
    if b"\ntransfer-encoding: chunked" not in head.lower():
        return body
    with suppress(RejectedError):
        return b"".join(Chunked(BAD_RESPONSE).feed(body))
    return b""


def _bad_status(status: int, body: bytes) -> ProbeResult:
    text = body[:_MAX_QUOTED_BYTES].decode("utf-8", "replace")
    said = printable(" ".join(text.split()))
    if len(said) > _MAX_QUOTED:
        said = f"{said[:_MAX_QUOTED]}…"
    return ProbeResult("failed", f"HTTP {status}: {said}" if said else f"HTTP {status}")
