"""The head of a response: as its worker sent it, and as the client gets it.

Owns: what is dropped from a response head, whether the worker's connection may be used again and
for how long, and the memory of heads seen before. Must not know: sockets, framing beyond what
`http1` says of it, what the client asked. No I/O.
"""

import re
from typing import Final, NamedTuple

from penstock_proxy.errors import BAD_RESPONSE, RejectedError
from penstock_proxy.http1 import parser
from penstock_proxy.http1.fields import HOP_BY_HOP, NO_TRAILERS, keep_trailers
from penstock_proxy.http1.parser import Framing

IDLE_S: Final = 60.0
"""An idle connection to a worker is closed before most servers would (75 s and more)."""
_TIMEOUT: Final = re.compile(rb"(?i:\btimeout[ \t]*=[ \t]*\"?)(\d{1,9})")

_REMEMBERED: Final = 256
_REMEMBERED_SIZE: Final = 4 << 10


class Response(NamedTuple):
    """A worker's response head, ready for the client but for Connection and framing."""

    status: int
    minor: int
    length: int
    chunked: bool
    close: bool
    """The worker's connection cannot be used again."""
    keep_s: float
    """How long it may be idle before it is used again; 0: it cannot be."""
    upgrade: bytes
    out: bytes
    """Status line and fields without the empty line; Content-Length is in it, if any."""


class ResponseHeads:
    """Turns response heads around. Workers repeat theirs, to the very byte, all second long."""

    def __init__(self, limit: int = parser.MAX_RESPONSE_HEAD) -> None:
        """`limit`: bytes of one head."""
        self._limit = limit
        self._remembered: dict[bytes, Response] = {}

    def read(self, head: bytes) -> Response:
        """Judge a response head and say what goes to the client. Raises RejectedError."""
        known = self._remembered.get(head)
        if known is None:
            # Here, and not before every look-up: what is remembered was short enough.
            self.check(len(head))
            known = parse_response(head)
            if len(head) <= _REMEMBERED_SIZE:
                if len(self._remembered) >= _REMEMBERED:
                    self._remembered.clear()
                self._remembered[head] = known
        return known

    def check(self, size: int) -> None:
        """Raises RejectedError for a head of that size, whole or not."""
        if size > self._limit:
            raise RejectedError(BAD_RESPONSE, f"response head beyond {self._limit} bytes")


def parse_response(head: bytes) -> Response:
    """Judge a worker's response head and say what goes to the client. Raises RejectedError."""
    minor, status, end = parser.parse_status_line(head)
    framing = parser.parse_fields(head[end:], BAD_RESPONSE)
    options = framing.connection
    dropped = HOP_BY_HOP | options
    # HTTP/1.0 knows no chunks: read once, then never trusted again (RFC 9112 §6.1).
    close = b"close" in options if minor else framing.chunked or b"keep-alive" not in options
    if status == 204 or status < 200:
        # Neither may announce a body (RFC 9110 §8.6). Whoever does may send one, and the
        # next client must not get it for an answer; nor this one for the final response.
        announced = framing.chunked or framing.length > 0
        if status < 200 and (announced or (close and status != 101)):
            # HTTP/1.0 has no interim responses: to who reads it as such, it is the only one.
            raise RejectedError(BAD_RESPONSE, "an interim response with a body, or that closes")
        dropped |= {b"content-length"}
        close = close or announced
    kept = [b"HTTP/1.1" + head[8 : end - 2]]
    kept += [raw for name, _, raw in framing.lines if name not in dropped]
    kept.append(b"")
    return Response(
        status,
        minor,
        framing.length,
        framing.chunked,
        close,
        0.0 if close else _keep_s(framing),
        framing.upgrade,
        b"\r\n".join(kept),
    )


def _keep_s(framing: Framing) -> float:
    """How long its worker will keep the connection: its own word, but no longer than most."""
    for name, value, _ in framing.lines:
        if name == b"keep-alive" and (match := _TIMEOUT.search(value)) is not None:
            # 0 is less than a second, and not the end.
            return min(IDLE_S, float(match[1]) or 0.001)
    return IDLE_S


def keep_response_trailers(block: bytes) -> bytes:
    """Keep of a response's trailer block what may be in one."""
    return keep_trailers(block, lambda name: name not in NO_TRAILERS)
