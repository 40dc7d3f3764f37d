"""The decoder of the chunked transfer coding (RFC 9112 §7.1).

Owns: where a chunked body ends, and which of its bytes are payload. As in `parser`, every byte
has one reading and every pattern is possessive. Nothing of the framing is passed on: the other
side gets chunks of our own. So what the grammar allows is taken although other parsers refuse it
(blanks around the parts of an extension), and from a worker, blanks behind a size as well: some
servers pad it. No I/O.
"""

import re
from typing import Final

from penstock_proxy.errors import BAD_REQUEST, BAD_RESPONSE, Fault, RejectedError
from penstock_proxy.http1.field_lines import FIELDS, TOKEN, repaired

MAX_CHUNK_LINE: Final = 256
"""Bytes of a chunk's size and extensions; honest senders need only a few."""
MAX_TRAILERS: Final = 8 << 10

_SIZE: Final = rb"(?=[0-9A-Fa-f])(0{0,5}+[0-9A-Fa-f]{0,15}+)"
"""At most 20 digits, of which 15 count."""
_EXTENSIONS: Final = (
    rb"(?:[ \t]*+;[ \t]*+" + TOKEN + rb"++(?:[ \t]*+=[ \t]*+(?:" + TOKEN + rb"++"
    rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"))?+)*+'
)
_CHUNK_LINE: Final = re.compile(_SIZE + _EXTENSIONS + rb"\r\n")
_PADDED_CHUNK_LINE: Final = re.compile(_SIZE + _EXTENSIONS + rb"[ \t]*+\r\n")
_PART_OF_CHUNK_LINE: Final = re.compile(
    rb"(?:" + _SIZE + rb"[ \t]*+(?:;[\t\x20-\x7e\x80-\xff]*+)?+\r?+)?+"
)
_FRAMING_IN_TRAILERS: Final = re.compile(
    rb"(?:\A|\n)(?:content-length|transfer-encoding):", re.IGNORECASE
)
"""RFC 9110 §6.5.1 forbids framing fields in trailers, and some parsers obey them. Who stands in
front of us may be one, so a request that has them is refused. A worker's are dropped."""


class Chunked:
    """Decodes one chunked body: it checks the framing and returns the payload (RFC 9112 §7.1).

    The payload is framed anew for the other side, so the next server never has to read the
    extensions and sizes that we have read.
    """

    __slots__ = ("_fault", "_left", "_line", "done", "rest", "trailers")

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._left = 0
        """Payload bytes that are missing of this chunk. -2: its CRLF is next; -1: the trailers."""
        self._line = b""
        self.done = False
        self.rest = b""
        """Bytes that follow the body, once it is done."""
        self.trailers = b""
        """The raw trailer block without its empty line, once it is done."""

    def feed(self, data: bytes) -> list[bytes]:
        """Decode bytes; returns the payload in them. Raises RejectedError."""
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
                self._read_trailers(data[at:])
                break
            else:
                at = self._read_size_line(data, at)
                if at < 0:
                    break
        return out

    def _read_size_line(self, data: bytes, at: int) -> int:
        """Read the CRLF that ends a chunk, and the next size line. -1: incomplete."""
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
        match = _CHUNK_LINE.fullmatch(data, at, end + 1) or self._padded(data, at, end + 1)
        self._left = int(match[1], 16) or -1
        return end + 1

    def _padded(self, data: bytes, at: int, end: int) -> re.Match[bytes]:
        """A worker's size line that is padded with blanks."""
        match = _PADDED_CHUNK_LINE.fullmatch(data, at, end)
        if match is None or self._fault is not BAD_RESPONSE:
            raise RejectedError(self._fault, "malformed chunk size")
        return match

    def _read_trailers(self, data: bytes) -> None:
        if data.startswith(b"\r\n"):
            self.done, self.rest = True, data[2:]
            return
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if data.count(b"\n") != data.count(b"\r\n") or data[:1] in b" \t":
                raise RejectedError(self._fault, "malformed trailers")
            if len(data) > MAX_TRAILERS + 3:  # the last 3 may begin the empty line
                raise RejectedError(self._fault, "trailers too large")
            self._line = data
            return
        if end > MAX_TRAILERS:
            raise RejectedError(self._fault, "trailers too large")
        self.trailers = self._checked(data[: end + 4])[:-2]
        self.done, self.rest = True, data[end + 4 :]

    def _checked(self, block: bytes) -> bytes:
        """A trailer block with its empty line, repaired if it is a worker's."""
        fault = self._fault
        if FIELDS.fullmatch(block) is None:
            block = repaired(block) if fault is BAD_RESPONSE else b""
            if FIELDS.fullmatch(block) is None:
                raise RejectedError(fault, "malformed trailers")
        if fault is BAD_REQUEST and _FRAMING_IN_TRAILERS.search(block) is not None:
            raise RejectedError(fault, "framing in trailers")
        return block
