"""The head of a response: as its worker sent it, and as the client gets it.

Owns: what is dropped from a response head, whether the worker's connection may be reused and
after how much idle time, and the cache of parsed heads. Must not know: sockets, framing beyond
what `parser` returns, what the client requested. No I/O.
"""

import re
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Final

from penstock_proxy.errors import BAD_RESPONSE, RejectedError
from penstock_proxy.http1 import authentication, parser
from penstock_proxy.http1.fields import HOP_BY_HOP, NOT_IN_TRAILERS, keep_trailers
from penstock_proxy.http1.parser import Framing

IDLE_S: Final = 60.0
"""Idle time of a connection to a worker. Most servers close later (after 75 s and more)."""
_TIMEOUT: Final = re.compile(rb"(?i:\btimeout[ \t]*=[ \t]*\"?)(\d{1,9})")

_BARE_STATUS_LINE: Final = len(b"HTTP/1.1 200\r\n")
_CACHED_HEADS: Final = 256
_MAX_CACHED_HEAD: Final = 4 << 10


@dataclass(slots=True)
class Response:
    """A worker's response head, ready for the client except for Connection and framing."""

    status: int
    minor: int
    length: int
    chunked: bool
    close: bool
    """The worker's connection cannot be reused."""
    max_idle_s: float
    """How long the connection may be idle before it is reused; 0: it cannot be reused."""
    authenticates: bool
    """It is a step of an authentication of the worker's connection, and that can be reused."""
    upgrade: bytes
    head: bytes
    """Status line and fields, with Content-Length if there is one, without the empty line."""
    is_simple: bool
    """It is final, says how long its body is, and reports no failure of the worker. Nothing about
    it has to be decided, unless the request is a HEAD."""
    kept: bytes
    """The whole head for a client of HTTP/1.1 whose connection is kept."""
    is_dated: bool
    """It has come with a Date, or needs none."""
    connection: frozenset[bytes] = frozenset()
    """The options of Connection, lower case: no trailer has such a name."""


_NEVER_A_HEAD: Final = b"\0"


class ResponseHeads:
    """Parses response heads, with a cache: a worker's heads are the same bytes for a second."""

    def __init__(self, limit: int = parser.MAX_RESPONSE_HEAD, *, keeps_alive: bool = True) -> None:
        """`limit`: bytes of one head. `keeps_alive`: connections may be used again. If not, only
        those may that are authenticated: by their own client."""
        self._limit = limit
        self._keeps_alive = keeps_alive
        self._cache: dict[bytes, Response] = {}
        self._second = 0
        self._date = b""
        """The line for responses without Date, of this second."""
        self._has_undated = False
        """Some in the cache have it, and are good for this second only."""
        self.last_head = _NEVER_A_HEAD
        """What was read last. Most responses begin with the same bytes as the one before, and to
        see that costs less than to find the end of the head and to look it up."""
        self.last: Response | None = None
        """The response that begins with `last_head`, if there is one."""

    def configure(self, limit: int) -> None:
        """Set the limit. Heads in the cache may be too long for it."""
        self._limit = limit
        self._forget()

    def tick(self, wall: float) -> None:
        """Tell responses without Date when they came: `wall` is the time in seconds since 1970."""
        if (second := int(wall)) != self._second:
            self._second, self._date = second, date_line(second)
            if self._has_undated:
                self._has_undated = False
                self._forget()

    def _forget(self) -> None:
        self._cache.clear()
        self.last_head, self.last = _NEVER_A_HEAD, None

    def read(self, head: bytes) -> Response:
        """Parse a response head, or take it from the cache. Raises RejectedError."""
        response = self._cache.get(head)
        if response is None:
            # Here, and not before every look-up: heads in the cache were short enough.
            self.check(len(head))
            response = parse_response(head, self._date)
            self._has_undated = self._has_undated or not response.is_dated
            if not (self._keeps_alive or response.authenticates):
                response = replace(response, max_idle_s=0.0)
            if len(head) <= _MAX_CACHED_HEAD:
                if len(self._cache) >= _CACHED_HEADS:
                    self._cache.clear()
                self._cache[head] = response
        self.last_head, self.last = head, response
        return response

    def check(self, size: int) -> None:
        """Raises RejectedError for a head of that size, whole or not."""
        if size > self._limit:
            raise RejectedError(BAD_RESPONSE, f"response head beyond {self._limit} bytes")


def date_line(second: int) -> bytes:
    """The line of Date for this second since 1970 (RFC 9110 §5.6.7)."""
    return b"Date: %b" % formatdate(second, usegmt=True).encode()


def parse_response(head: bytes, date: bytes = b"") -> Response:
    """Parse a worker's response head and make the client's. Raises RejectedError.

    `date`: the line for a response that has no Date. Whoever forwards it adds one, because caches
    count from there (RFC 9110 §6.6.1).
    """
    minor, status, end = parser.parse_status_line(head)
    framing = parser.parse_fields(head[end:], BAD_RESPONSE)
    options = framing.connection
    dropped = HOP_BY_HOP | options
    # HTTP/1.0 has no chunks: such a body is read, but its connection is closed (RFC 9112 §6.1).
    close = b"close" in options or (not minor and (framing.chunked or b"keep-alive" not in options))
    if status == 204 or status < 200:
        # Neither may announce a body (RFC 9110 §8.6). A worker that announces one may send it.
        # It must become neither the next client's response nor this one's final response.
        announced = framing.chunked or framing.length > 0
        if status < 200 and (announced or (not minor and status != 101)):
            # HTTP/1.0 has no interim responses: its clients take this one for the final one. In
            # HTTP/1.1 the final one says whether the connection ends (RFC 9112 §9.3).
            raise RejectedError(BAD_RESPONSE, "an interim response with a body, or of HTTP/1.0")
        dropped |= {b"content-length"}
        close = close or announced
    # The space behind the status belongs to the grammar, also without a reason (RFC 9112 §4).
    kept = [b"HTTP/1.1" + head[8 : end - 2] + (b" " if end == _BARE_STATUS_LINE else b"")]
    kept += [raw for name, _, raw in framing.lines if name not in dropped]
    # The usual spelling is found first: looking at each line takes ten times as long.
    is_dated = (
        status < 200 or b"\nDate:" in head or any(name == b"date" for name, _, _ in framing.lines)
    )
    if date and not is_dated:
        kept.append(date)
    if status == 426 and (protocols := parser.offered_protocols(framing.values)):
        # RFC 9110 §15.5.22: the client has to learn what is required.
        kept.append(b"Connection: Upgrade\r\nUpgrade: " + protocols)
    kept.append(b"")
    max_idle_s, authenticates = (0.0, False) if close else _reuse(framing)
    client_head = b"\r\n".join(kept)
    has_length = framing.length != parser.NO_LENGTH and not framing.chunked
    is_ordinary = 200 <= status < 500 and status not in (204, 304, 408) and not authenticates
    return Response(
        status,
        minor,
        framing.length,
        framing.chunked,
        close,
        max_idle_s,
        authenticates,
        framing.upgrade,
        client_head,
        is_simple=has_length and is_ordinary,
        kept=client_head + b"\r\n",
        is_dated=is_dated,
        connection=options,
    )


def _reuse(framing: Framing) -> tuple[float, bool]:
    """How long the worker keeps an idle connection, by its Keep-Alive, at most IDLE_S; and whether
    it authenticates the connection."""
    max_idle_s, authenticates = IDLE_S, False
    for name, value, _ in framing.lines:
        if name == b"keep-alive":
            if (match := _TIMEOUT.search(value)) is not None:
                # timeout=0 means less than a second, not that the connection is closed.
                max_idle_s = min(max_idle_s, float(match[1]) or 0.001)
        elif name in authentication.CHALLENGES and authentication.is_of_connection(value):
            authenticates = True
    return max_idle_s, authenticates


def keep_response_trailers(block: bytes, options: frozenset[bytes]) -> bytes:
    """The fields of a response's trailer block that are allowed; `options`: of Connection."""
    dropped = NOT_IN_TRAILERS | options
    return keep_trailers(block, lambda name: name not in dropped)
