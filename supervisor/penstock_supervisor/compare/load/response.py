"""Parses one response for a client of a load: where it ends, and whether it is a success.

It uses the proxy's strict parser. The body is counted and thrown away, because a client of a
load only needs to know when the response is complete. No I/O, no clock.
"""

from typing import Final

from penstock_proxy.errors import BAD_RESPONSE, RejectedError
from penstock_proxy.http1.chunked import Chunked
from penstock_proxy.http1.parser import (
    MAX_RESPONSE_HEAD,
    NO_LENGTH,
    Framing,
    StatusLine,
    parse_fields,
    parse_status_line,
)

_UNTIL_CLOSE: Final = -1


class LoadResponse:
    """Of a GET. `done` is true when it is complete. RejectedError: it is not valid."""

    __slots__ = ("_chunked", "_head", "_remaining", "done", "keep", "status")

    def __init__(self) -> None:
        self._head: bytes | None = b""
        """None after the head was read."""
        self._chunked: Chunked | None = None
        self._remaining = 0
        """Bytes of the body that are still to come, or _UNTIL_CLOSE."""
        self.status = 0
        self.keep = False
        """May the connection be used again?"""
        self.done = False

    @property
    def is_success(self) -> bool:
        return self.done and 200 <= self.status < 400

    def feed(self, data: bytes) -> None:
        if self._head is not None:
            data = self._read_head(self._head + data)
            if self._head is not None:
                return
        if self._chunked is not None:
            self._chunked.feed(data)
            self.done, rest = self._chunked.done, self._chunked.rest
        elif self._remaining == _UNTIL_CLOSE:
            return
        else:
            rest = data[self._remaining :]
            self._remaining = max(0, self._remaining - len(data))
            self.done = not self._remaining
        if rest:
            raise RejectedError(BAD_RESPONSE, "more than was asked for")

    def end(self) -> bool:
        """The connection was closed. True if that is the end of the response."""
        self.done = self._head is None and self._remaining == _UNTIL_CLOSE
        return self.done

    def _read_head(self, data: bytes) -> bytes:
        """Return the bytes after the head; none if the head is not complete."""
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if max(end, len(data) if end < 4 else 0) > MAX_RESPONSE_HEAD:
                raise RejectedError(BAD_RESPONSE, "head too large")
            if end < 4:
                self._head = data
                return b""
            line = parse_status_line(data[:end])
            fields = parse_fields(data[line.end : end], BAD_RESPONSE)
            data = data[end:]
            if line.status == 101:
                raise RejectedError(BAD_RESPONSE, "switched protocols, which nobody asked for")
            if line.status >= 200:
                self._head = None
                self._start_body(line, fields)
                return data

    def _start_body(self, line: StatusLine, fields: Framing) -> None:
        self.status = line.status
        self.keep = (
            b"close" not in fields.connection if line.minor else b"keep-alive" in fields.connection
        )
        if line.status in (204, 304):
            self._remaining = 0
        elif fields.chunked:
            self._chunked = Chunked(BAD_RESPONSE)
        elif fields.length != NO_LENGTH:
            self._remaining = fields.length
        else:
            self._remaining, self.keep = _UNTIL_CLOSE, False
