"""The chunked transfer coding (RFC 9112 §7.1), taken apart.

Owns: where a chunked body ends, and what of its bytes is payload. As in `http1`, every byte has
one reading, every pattern is possessive, and where a grammar is wider than what other parsers
take (blanks around a chunk extension) we keep to what all of them read alike. No I/O.
"""

import re
from typing import Final

from penstock_proxy.errors import Fault, RejectedError
from penstock_proxy.http1.parser import FIELDS, TOKEN

MAX_CHUNK_LINE: Final = 256
"""Bytes of a chunk's size and extensions; nobody honest sends more than a few."""
MAX_TRAILERS: Final = 8 << 10

_CHUNK_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,15}+)(?:;" + TOKEN + rb"++(?:=(?:" + TOKEN + rb"++"
    rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"))?+)*+\r\n'
)
_PART_OF_CHUNK_LINE: Final = re.compile(
    rb"[0-9A-Fa-f]{0,15}+|[0-9A-Fa-f]{1,15}+(?:;[\t\x20-\x7e\x80-\xff]*+)?+\r?+"
)
_FRAMING_AGAIN: Final = re.compile(
    rb"(?:\A|\n)(?:content-length|transfer-encoding):", re.IGNORECASE
)
"""In trailers. RFC 9110 §6.5.1 forbids it, and there are parsers that obey it as in a head."""


class Chunked:
    """Takes a chunked body apart: payload out, framing checked and gone (RFC 9112 §7.1).

    The payload is framed anew for the other side, so no reading of ours of an extension
    or of a size can differ from the next server's.
    """

    __slots__ = ("_fault", "_left", "_line", "done", "rest", "trailers")

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._left = 0
        """Payload bytes of this chunk still to come; -2: its CRLF; -1: the trailers."""
        self._line = b""
        self.done = False
        self.rest = b""
        """Bytes behind the end, once it is done."""
        self.trailers = b""
        """The raw trailer block without its empty line, once it is done."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, return the payload in them. Raises RejectedError."""
        out: list[bytes] = []
        if self._line:
            data, self._line = self._line + data, b""
        at, size = 0, len(data)
        while at < size:
            if self._left > 0:
                piece = data if at == 0 and size <= self._left else data[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._left = -2
            elif self._left == -1:
                self._finish(data[at:])
                break
            else:
                at = self._size_line(data, at)
                if at < 0:
                    break
        return out

    def _size_line(self, data: bytes, at: int) -> int:
        """Read the end of a chunk and the next one's size; -1 when bytes are missing."""
        start = at
        if self._left == -2:
            crlf = data[at : at + 2]
            if not b"\r\n".startswith(crlf):
                raise RejectedError(self._fault, "a chunk is longer than it said")
            if len(crlf) < 2:
                self._line = data[start:]
                return -1
            at += 2
        end = data.find(b"\n", at, at + MAX_CHUNK_LINE)
        if end < 0:
            if _PART_OF_CHUNK_LINE.fullmatch(data, at, at + MAX_CHUNK_LINE) is None:
                raise RejectedError(self._fault, "malformed chunk size")
            if len(data) - at >= MAX_CHUNK_LINE:
                raise RejectedError(self._fault, "chunk size line too long")
            self._line = data[start:]
            return -1
        match = _CHUNK_LINE.fullmatch(data, at, end + 1)
        if match is None:
            raise RejectedError(self._fault, "malformed chunk size")
        self._left = int(match[1], 16) or -1
        return end + 1

    def _finish(self, data: bytes) -> None:
        if data.startswith(b"\r\n"):
            self.done, self.rest = True, data[2:]
            return
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if data.count(b"\n") != data.count(b"\r\n") or data[:1] in b" \t":
                raise RejectedError(self._fault, "malformed trailers")
            if len(data) > MAX_TRAILERS + 3:  # most of the end may be here
                raise RejectedError(self._fault, "trailers too large")
            self._line = data
            return
        if end > MAX_TRAILERS or FIELDS.fullmatch(data, 0, end + 4) is None:
            raise RejectedError(self._fault, "malformed trailers")
        if _FRAMING_AGAIN.search(data, 0, end) is not None:
            raise RejectedError(self._fault, "framing in trailers")
        self.done, self.trailers, self.rest = True, data[: end + 2], data[end + 4 :]
