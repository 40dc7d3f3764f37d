"""The grammar and framing of HTTP/1.1 heads, and nothing else.

Owns: which bytes are a request head or a response head (RFC 9112), and how long the body is.
Must not know: sockets, workers, time, what is forwarded (`request`). No I/O.

Every byte has one reading. What two servers could read in two ways is refused, never repaired:
if the proxy and its worker guess differently, requests can be smuggled.

Every pattern is possessive, so a hostile head cannot make it backtrack. The common head costs
one match and one pass over its lines. These are refused: bare LF, obs-fold, white space before a
colon; a signed, listed or repeated Content-Length; every Transfer-Encoding but `chunked`; both
of them together. Where the grammar allows more than other parsers accept (a length with leading
zeros, which some read as octal), only what all of them read alike is accepted.

See docs/decisions/0010-ambiguous-is-refused.md.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from penstock_proxy.errors import (
    BAD_REQUEST,
    BAD_RESPONSE,
    EXPECTATION,
    HEAD_TOO_LARGE,
    NOT_IMPLEMENTED,
    VERSION,
    Fault,
    RejectedError,
)

MAX_RESPONSE_HEAD: Final = 64 << 10
"""Default limit of a response head, in bytes. nginx: 4 to 8 KiB, HAProxy: 16 KiB."""
NO_LENGTH: Final = -1

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
"""One character of a token (RFC 9110 §5.6.2)."""
_REQUEST_LINE: Final = re.compile(
    rb"(" + TOKEN + rb"{1,32}+) ([\x21\x24-\x7e]++) HTTP/(\d)\.(\d)\r\n"
)
_PART_OF_REQUEST_LINE: Final = re.compile(
    rb"\r|" + TOKEN + rb"{1,32}+(?: (?:[\x21\x24-\x7e]++(?: [HTP/\d.]{0,8}+\r?+)?+)?+)?+"
)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [\t\x20-\x7e\x80-\xff]*+)?+\r\n")
_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)++")
FIELDS: Final = re.compile(rb"(?:" + TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9.\-_~%!$&'()*+;=]++|\[[0-9A-Fa-f:.]++\])(?::\d{0,5}+)?+")
_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?@]++)((?:[/?].*+)?+)")
_ENDS_CHUNKED: Final = re.compile(
    rb"(?:(?!chunked\b)" + TOKEN + rb"++[ \t]*+,[ \t]*+)++chunked", re.IGNORECASE
)
_TOKENS: Final = re.compile(
    rb"[ \t]*+(?:" + TOKEN + rb"++)?+[ \t]*+(?:,[ \t]*+(?:" + TOKEN + rb"++)?+[ \t]*+)*+"
)
_PROTOCOL: Final = TOKEN + rb"++(?:/" + TOKEN + rb"++)?+"
_PROTOCOLS: Final = re.compile(
    rb"[ \t]*+(?:" + _PROTOCOL + rb")?+[ \t]*+(?:,[ \t]*+(?:" + _PROTOCOL + rb")?+[ \t]*+)*+"
)

_NO_OPTIONS: Final[frozenset[bytes]] = frozenset()
_LENGTH_FIELDS: Final = frozenset({b"content-length", b"transfer-encoding"})
_FRAMING: Final = _LENGTH_FIELDS | {b"host"}
"""Fields that may not be repeated, and may not be removed by Connection."""
_NOT_REMOVABLE: Final = _FRAMING | {b"expect"}
_SPECIAL: Final = _FRAMING | {b"connection", b"upgrade", b"expect"}

Lines = list[tuple[bytes, bytes, bytes]]
"""A header block as (lower-case name, value without outer white space, the raw line)."""
Values = dict[bytes, list[bytes]]
"""The values of the fields in _SPECIAL, by lower-case name."""


class RequestLine(NamedTuple):
    """Method, target as received, minor version, where the header block begins."""

    method: bytes
    target: bytes
    minor: int
    end: int


class Framing(NamedTuple):
    """A header block, parsed, and the framing of its message's body."""

    lines: Lines
    values: Values
    length: int
    """Content-Length, or NO_LENGTH."""
    chunked: bool
    connection: frozenset[bytes]
    """The options of Connection, lower case."""
    upgrade: bytes
    """The value of Upgrade; empty unless Connection says upgrade too."""


class StatusLine(NamedTuple):
    minor: int
    status: int
    end: int


def cannot_be_request(data: bytes) -> bool:
    """Can this incomplete head never become a request head?

    Without this check, TLS or SSH on a plain port and bare LF would wait for the time-out.
    """
    if data.count(b"\n") != data.count(b"\r\n"):
        return True
    if b"\n" in data:
        return _REQUEST_LINE.match(data) is None
    return _PART_OF_REQUEST_LINE.fullmatch(data) is None


def cannot_be_response(data: bytes) -> bool:
    """Can this incomplete head never become a response head?"""
    return not b"HTTP/1.".startswith(data[:7]) or data.count(b"\n") != data.count(b"\r\n")


def is_target_longer(data: bytes, limit: int) -> bool:
    """Is the target of this incomplete head longer than `limit` already?"""
    start = data.find(b" ") + 1
    part = data[start : start + limit + 1]
    return start > 0 and len(part) > limit and b" " not in part and b"\r" not in part


def skip_empty_lines(data: bytes) -> bytes:
    """Drop all leading empty lines at once: one by one, many of them have quadratic cost."""
    return _EMPTY_LINES.sub(b"", data, count=1)


def parse_request_line(head: bytes) -> RequestLine:
    """Read the request line. Raises RejectedError: 400, or 505 for another major version."""
    match = _REQUEST_LINE.match(head)
    if match is None:
        raise RejectedError(BAD_REQUEST, "malformed request line")
    method, target, major, minor = match.groups()
    if major != b"1" or minor > b"1":
        raise RejectedError(VERSION, "only HTTP/1.0 and HTTP/1.1 are served")
    if len(method) == 7 and method.upper() == b"CONNECT":
        # Only a forward proxy serves it, and this is none. A worker that accepted it would
        # not read what follows as HTTP. Some workers accept it in lower case, against
        # RFC 9110 §9.1.
        raise RejectedError(NOT_IMPLEMENTED, "CONNECT is for forward proxies")
    if (
        not target.startswith(b"/")
        and (target != b"*" or method != b"OPTIONS")
        and not _ABSOLUTE.fullmatch(target)
    ):
        raise RejectedError(BAD_REQUEST, "malformed request target")
    return RequestLine(method, target, 1 if minor == b"1" else 0, match.end())


def split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """Split an absolute-form target into authority and origin-form (RFC 9112 §3.2.2)."""
    match = _ABSOLUTE.fullmatch(target)
    assert match is not None
    path = match[2]
    return match[1], path if path.startswith(b"/") else b"/" + path


def worker_target(line: RequestLine) -> bytes:
    """Return the target as a worker gets it: never in absolute-form."""
    if line.target[:1] in b"/*":
        return line.target
    match = _ABSOLUTE.fullmatch(line.target)
    assert match is not None
    if line.method == b"OPTIONS" and not match[2]:
        # RFC 9112 §3.2.4: this is how a client of a proxy asks about the server as a whole.
        return b"*"
    return split_absolute(line.target)[1]


def parse_status_line(head: bytes) -> StatusLine:
    """Read the status line. Raises RejectedError with BAD_RESPONSE."""
    match = _STATUS_LINE.match(head)
    if match is None:
        raise RejectedError(BAD_RESPONSE, "malformed status line")
    return StatusLine(1 if match[1] == b"1" else 0, int(match[2]), match.end())


def parse_fields(block: bytes, fault: Fault, max_fields: int = 1000) -> Framing:
    """Read a header block with its empty line, and the framing of the body.

    Raises RejectedError with `fault`, or with HEAD_TOO_LARGE beyond `max_fields`.
    """
    if FIELDS.fullmatch(block) is None:
        raise RejectedError(fault, "malformed header field")
    raw_lines = block.split(b"\r\n")[:-2]
    if len(raw_lines) > max_fields:
        raise RejectedError(HEAD_TOO_LARGE, f"more than {max_fields} header fields")
    lines: Lines = []
    values: Values = {}
    for line in raw_lines:
        name, _, raw_value = line.partition(b":")
        name, value = name.lower(), raw_value.strip(b" \t")
        lines.append((name, value, line))
        if name in _SPECIAL:
            # A tab around a length or a coding is legal, but llhttp reads it as part of the value.
            kept = raw_value.strip(b" ") if name in _LENGTH_FIELDS else value
            values.setdefault(name, []).append(kept)
    return _framing(lines, values, fault)


def _framing(lines: Lines, values: Values, fault: Fault) -> Framing:
    length, chunked = NO_LENGTH, False
    for name in _FRAMING:
        if len(values.get(name, ())) > 1:
            raise RejectedError(fault, f"repeated {name.decode()}")
    if b"content-length" in values:
        length = _length(values[b"content-length"][0], fault)
    if b"transfer-encoding" in values:
        chunked = _chunked(values[b"transfer-encoding"][0], fault)
    if chunked and length != NO_LENGTH:
        raise RejectedError(fault, "both Content-Length and Transfer-Encoding")
    options = _options(values.get(b"connection", ()), fault)
    if options & _NOT_REMOVABLE:
        # A recipient that obeyed would drop the framing that all others use.
        raise RejectedError(fault, "Connection names a framing field")
    upgrade = b", ".join(values.get(b"upgrade", ())) if b"upgrade" in options else b""
    if upgrade and _PROTOCOLS.fullmatch(upgrade) is None:
        raise RejectedError(fault, "malformed Upgrade")
    return Framing(lines, values, length, chunked, options, upgrade)


def check_request(line: RequestLine, framing: Framing) -> bytes:
    """Check a request as a whole, and return its host (empty for HTTP/1.0 without one).

    Raises RejectedError: 400, or 417 for an expectation other than 100-continue.
    """
    expectations = framing.values.get(b"expect", ())
    if line.minor and any(value.lower() != b"100-continue" for value in expectations):
        raise RejectedError(EXPECTATION, "unknown expectation")
    if line.minor == 0 and framing.chunked:
        raise RejectedError(BAD_REQUEST, "Transfer-Encoding in HTTP/1.0")
    (host,) = framing.values.get(b"host", (None,))
    if host is None and line.minor == 1:
        raise RejectedError(BAD_REQUEST, "no Host")
    if host is not None and _HOST.fullmatch(host) is None:
        raise RejectedError(BAD_REQUEST, "malformed Host")
    if line.target[:1] in b"/*":
        return host or b""
    authority, _ = split_absolute(line.target)
    if _HOST.fullmatch(authority) is None:
        raise RejectedError(BAD_REQUEST, "malformed authority")
    if host is not None and authority.lower() != host.lower():
        # By RFC 9112 §3.2.2 the target wins, but a worker might use the field.
        raise RejectedError(BAD_REQUEST, "Host disagrees with the target")
    return authority


def _length(value: bytes, fault: Fault) -> int:
    # int() also accepts signs, underscores and blanks; 18 digits stay below 2^63. With leading
    # zeros, strtol with base 0 reads a number as octal.
    if not value.isdigit() or len(value) > 18 or (value[:1] == b"0" and len(value) > 1):
        raise RejectedError(fault, "malformed Content-Length")
    return int(value)


def _chunked(value: bytes, fault: Fault) -> bool:
    if value.lower() != b"chunked":
        # RFC 9112 §6.1: 501 for an unknown coding. §6.3: but 400 if the last coding is not
        # chunked, because then the end of the body cannot be known.
        if fault is BAD_REQUEST and _ENDS_CHUNKED.fullmatch(value):
            raise RejectedError(NOT_IMPLEMENTED, "Transfer-Encoding other than chunked")
        raise RejectedError(fault, "Transfer-Encoding other than chunked")
    return True


def _options(values: Sequence[bytes], fault: Fault) -> frozenset[bytes]:
    if not values:
        return _NO_OPTIONS
    value = b",".join(values)
    if _TOKENS.fullmatch(value) is None:
        raise RejectedError(fault, "malformed Connection")
    return frozenset(option for part in value.lower().split(b",") if (option := part.strip(b" \t")))
