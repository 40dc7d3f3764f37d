"""The grammar and framing of HTTP/1.1 heads, and nothing else.

Owns: which bytes are a request head or a response head (RFC 9112), and how long the body is.
Must not know: sockets, workers, time, what is forwarded (`request`). No I/O.

Every byte has one reading. What the RFCs read in one way is taken, and written to the other side
in the one form that every server reads alike. What two servers could read in two ways is refused:
if the proxy and its worker guess differently, requests can be smuggled. A worker's head is read
more kindly than a client's, as far as RFC 9112 says how (`field_lines`).

Every pattern is possessive, so a hostile head cannot make it backtrack. The common head costs
one match and one pass over its lines; whatever is uncommon is found by what fails there.

docs/http-grammar.md has all that is taken, repaired and refused, with the reasons. See
docs/decisions/0010-ambiguous-is-refused.md and docs/decisions/0020-grammar.md.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
from penstock_proxy.http1 import target_forms
from penstock_proxy.http1.field_lines import FIELDS, TOKEN, repaired

MAX_RESPONSE_HEAD: Final = 64 << 10
"""Default limit of a response head, in bytes. nginx: 4 to 8 KiB, HAProxy: 16 KiB."""
NO_LENGTH: Final = -1

MAX_METHOD: Final = 32
"""Bytes of a method. No registered one is half as long."""

_REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb"++) ([!\x22\x24-\x7e]++) HTTP/(\d)\.(\d)\r\n")
_PART_OF_REQUEST_LINE: Final = re.compile(
    rb"\r|" + TOKEN + rb"++(?: (?:[!\x22\x24-\x7e]++(?: [HTP/\d.]{0,8}+\r?+)?+)?+)?+"
)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.(\d) ([1-9]\d\d)(?: [\t\x20-\x7e\x80-\xff]*+)?+\r\n")
_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)++")
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
_CONTENT_LENGTH: Final = b"content-length"
_NOT_REMOVABLE: Final = frozenset({_CONTENT_LENGTH, b"transfer-encoding", b"host", b"expect"})
"""Fields that Connection may not remove. In a response only a length matters of them."""
_SPECIAL: Final = _NOT_REMOVABLE | {b"connection", b"upgrade"}
_MAX_DIGITS: Final = 18
"""Of a length: it stays below 2^63."""

Lines = list[tuple[bytes, bytes, bytes]]
"""A header block as (lower-case name, value without outer white space, the raw line)."""
Values = dict[bytes, list[bytes]]
"""The values of the fields in _SPECIAL, by lower-case name."""


@dataclass(slots=True)
class RequestLine:
    """Method, target as received, minor version, where the header block begins."""

    method: bytes
    target: bytes
    minor: int
    """0 or 1: a higher one is read as 1 (RFC 9110 §2.5)."""
    end: int
    is_plain: bool = False
    """It is in origin-form and HTTP/1.1, and can be forwarded as it is."""


@dataclass(slots=True)
class Framing:
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
    """Read the request line.

    Raises RejectedError: 400, 501 for a method that nobody has, 505 for another major version.
    """
    match = _REQUEST_LINE.match(head)
    if match is None:
        raise RejectedError(BAD_REQUEST, "malformed request line")
    method, target, major, minor = match.groups()
    is_origin_form = target.startswith(b"/")
    if major != b"1":
        raise RejectedError(VERSION, "only HTTP/1.0 and HTTP/1.1 are served")
    if len(method) > MAX_METHOD:
        raise RejectedError(NOT_IMPLEMENTED, f"method beyond {MAX_METHOD} bytes")
    if len(method) == 7 and method.upper() == b"CONNECT":
        # Only a forward proxy serves it, and this is none. A worker that accepted it would
        # not read what follows as HTTP. Some workers accept it in lower case, against
        # RFC 9110 §9.1.
        raise RejectedError(NOT_IMPLEMENTED, "CONNECT is for forward proxies")
    if (
        not is_origin_form
        and (target != b"*" or method != b"OPTIONS")
        and not target_forms.is_absolute(target)
    ):
        raise RejectedError(BAD_REQUEST, "malformed request target")
    end = match.end()
    if minor == b"1":
        return RequestLine(method, target, 1, end, is_origin_form)
    return RequestLine(method, target, 0 if minor == b"0" else 1, end)


def parse_status_line(head: bytes) -> StatusLine:
    """Read the status line. Raises RejectedError with BAD_RESPONSE."""
    match = _STATUS_LINE.match(head)
    if match is None:
        raise RejectedError(BAD_RESPONSE, "malformed status line")
    return StatusLine(0 if match[1] == b"0" else 1, int(match[2]), match.end())


def parse_fields(block: bytes, fault: Fault, max_fields: int = 1000) -> Framing:
    """Read a header block with its empty line, and the framing of the body.

    `fault`: BAD_REQUEST for a client's block, BAD_RESPONSE for a worker's, which is repaired. It is
    that of the RejectedError, which is HEAD_TOO_LARGE beyond `max_fields`.
    """
    if FIELDS.fullmatch(block) is None:
        block = repaired(block) if fault is BAD_RESPONSE else b""
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
            # Tabs stay around a length, so that its line is seen to need another form.
            kept = raw_value.strip(b" ") if name == _CONTENT_LENGTH else value
            values.setdefault(name, []).append(kept)
    return _framing(lines, values, fault)


def _framing(lines: Lines, values: Values, fault: Fault) -> Framing:
    length, chunked = NO_LENGTH, False
    lengths = values.get(_CONTENT_LENGTH)
    if lengths is not None:
        value = lengths[0]
        if len(lengths) == 1 and value.isdigit() and len(value) <= _MAX_DIGITS:
            length = int(value)
        else:
            length = _one_length(lengths, fault)
        if len(lengths) > 1 or not value.isdigit() or (value[:1] == b"0" and len(value) > 1):
            lines = _with_length(lines, length)
    if b"transfer-encoding" in values:
        chunked = _chunked(values[b"transfer-encoding"], fault)
    if chunked and length != NO_LENGTH:
        raise RejectedError(fault, "both Content-Length and Transfer-Encoding")
    options = _options(values.get(b"connection", ()), fault)
    if options & _NOT_REMOVABLE and (fault is BAD_REQUEST or _CONTENT_LENGTH in options):
        # A recipient that obeyed would drop the framing that all others use.
        raise RejectedError(fault, "Connection names a framing field")
    upgrade = offered_protocols(values) if b"upgrade" in options else b""
    return Framing(lines, values, length, chunked, options, upgrade)


def offered_protocols(values: Values) -> bytes:
    """The value of Upgrade; empty if it is none. Whoever gets it may ignore it (RFC 9110 §7.8)."""
    upgrade = b", ".join(values.get(b"upgrade", ()))
    return upgrade if _PROTOCOLS.fullmatch(upgrade) is not None else b""


def check_request(line: RequestLine, framing: Framing) -> bytes:
    """Check a request as a whole, and return its host (empty for HTTP/1.0 without one).

    Raises RejectedError: 400, or 417 for an expectation other than 100-continue.
    """
    values = framing.values
    if line.minor and b"expect" in values and not _is_continue(values[b"expect"]):
        raise RejectedError(EXPECTATION, "unknown expectation")
    if line.minor == 0 and framing.chunked:
        raise RejectedError(BAD_REQUEST, "Transfer-Encoding in HTTP/1.0")
    hosts = values.get(b"host", ())
    if len(hosts) > 1:
        raise RejectedError(BAD_REQUEST, "repeated Host")
    if not hosts and line.minor:
        raise RejectedError(BAD_REQUEST, "no Host")
    return target_forms.host(line.target, hosts[0] if hosts else None)


def _is_continue(expectations: Sequence[bytes]) -> bool:
    """Is nothing expected but 100-continue? (RFC 9110 §10.1.1, a list)"""
    members = b",".join(expectations).lower().split(b",")
    return all(member.strip(b" \t") in (b"", b"100-continue") for member in members)


def _one_length(lengths: Sequence[bytes], fault: Fault) -> int:
    """The one length that is repeated, in lines or in a list (RFC 9112 §6.3)."""
    members = {member.strip(b" \t") for value in lengths for member in value.split(b",")}
    value = members.pop()
    # int() also accepts signs, underscores and blanks.
    if members or not value.isdigit() or len(value) > _MAX_DIGITS:
        raise RejectedError(fault, "malformed Content-Length")
    return int(value)


def _with_length(lines: Lines, length: int) -> Lines:
    """These lines with one Content-Length, in the form that all read alike. There are servers that
    read a leading zero as octal, a tab as part of the value, or only one of two lines."""
    digits = b"%d" % length
    at = [line[0] for line in lines].index(_CONTENT_LENGTH)
    one = (_CONTENT_LENGTH, digits, b"Content-Length: " + digits)
    return [*lines[:at], one, *(line for line in lines[at:] if line[0] != _CONTENT_LENGTH)]


def _chunked(values: Sequence[bytes], fault: Fault) -> bool:
    value = values[0].lower()
    if len(values) > 1:
        raise RejectedError(fault, "repeated Transfer-Encoding")
    if value != b"chunked":
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
    found = {option for part in value.lower().split(b",") if (option := part.strip(b" \t"))}
    if _TOKENS.fullmatch(value) is None:
        if fault is BAD_REQUEST:
            raise RejectedError(fault, "malformed Connection")
        # Whatever the worker wanted to say of its connection: it is not used again.
        found.add(b"close")
    return frozenset(found)
