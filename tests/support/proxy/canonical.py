"""The same message in a form that h11 and llhttp take, for what they refuse and RFC 9112 reads.

It is written apart from the proxy, and as narrow as it can be: each step is one form, with its
section. All else stays as it is, so that the other parsers still judge it.
"""

import re
from typing import Final

_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*")
_LATER_MINOR: Final = re.compile(rb"HTTP/1\.[2-9]")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]+")
_QUOTED_OR_SEPARATOR: Final = re.compile(rb'("(?:[^"\\]|\\.)*")|[ \t]*([;=])[ \t]*')
_LENGTH: Final = b"content-length"
_CODING: Final = b"transfer-encoding"


def canonical_request(data: bytes) -> bytes:
    """One whole request."""
    begin = _EMPTY_LINES.match(data)
    assert begin is not None
    head, end, body = data[begin.end() :].partition(b"\r\n\r\n")
    start, *lines = head.split(b"\r\n")
    # RFC 9110 §2.5: a later minor version is read as the latest one that is known.
    start = re.sub(_LATER_MINOR.pattern + rb"$", b"HTTP/1.1", start)
    lines = _framing(lines)
    if _is_chunked(lines):
        body = _chunks(body, is_answer=False)
    return begin[0] + b"\r\n".join([start, *lines]) + end + body


def canonical_response(data: bytes, method: bytes) -> bytes:
    """One whole response to `method`, behind its interim responses, and whatever follows."""
    out = b""
    while True:
        head, end, data = data.partition(b"\r\n\r\n")
        start, *lines = _unfolded(head).split(b"\r\n")
        start = _LATER_MINOR.sub(b"HTTP/1.1", start, count=1)
        # RFC 9112 §5.1: no blanks before a colon.
        lines = _framing([re.sub(rb"^([!-9;-~]+)[ \t]+:", rb"\1:", line) for line in lines])
        is_interim = start[9:10] == b"1" and start[9:12] != b"101"
        if is_interim:
            # RFC 9112 §9.3: the last message says whether the connection persists.
            lines = [line for line in lines if _name(line) != b"connection"]
        out += b"\r\n".join([start, *lines]) + end
        if not is_interim or not end:
            break
    if _is_chunked(lines) and method != b"HEAD" and start[9:12] not in (b"204", b"304"):
        data = _chunks(data, is_answer=True)
    return out + data


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


def _value(line: bytes) -> bytes:
    return line.partition(b":")[2].strip(b" \t")


def _is_chunked(lines: list[bytes]) -> bool:
    return any(_name(line) == _CODING and _value(line).lower() == b"chunked" for line in lines)


def _framing(lines: list[bytes]) -> list[bytes]:
    """RFC 9110 §5.5: blanks around a value do not belong to it; llhttp stumbles over a tab behind
    `chunked`. RFC 9112 §6.3: the same length in several lines, or in a list, is that length."""
    lines = [line.rstrip(b" \t") if _name(line) == _CODING else line for line in lines]
    found = [line for line in lines if _name(line) == _LENGTH]
    members = {part.strip(b" \t") for line in found for part in _value(line).split(b",")}
    if len(members) != 1 or not (digits := members.pop()).isdigit():
        return lines
    line = found[0].partition(b":")[0] + b": " + (digits.lstrip(b"0") or b"0")
    others = [other for other in lines if _name(other) != _LENGTH]
    others.insert(lines.index(found[0]), line)
    return others


def _unfolded(head: bytes) -> bytes:
    """RFC 9112 §5.2: a fold behind a field is a space. Behind the first line it is none."""
    start, end, block = head.partition(b"\r\n")
    if block[:1] in (b" ", b"\t"):
        return head
    return start + end + re.sub(rb"\r\n[ \t]+", b" ", block)


def _chunks(body: bytes, *, is_answer: bool) -> bytes:
    out, at = b"", 0
    while (end := body.find(b"\r\n", at)) >= 0:
        line = body[at:end]
        size = _SIZE.match(line)
        if size is None:
            break
        # RFC 9112 §7.1.1: blanks around the parts of an extension are removed.
        line = _QUOTED_OR_SEPARATOR.sub(lambda match: match[1] or match[2], line)
        # What some servers pad their sizes with.
        out += (line.rstrip(b" \t") if is_answer else line) + b"\r\n"
        at, length = end + 2, int(size[0], 16)
        if length == 0:
            return out + (_trailers(body[at:]) if is_answer else body[at:])
        out += body[at : at + length + 2]
        at += length + 2
    return out + body[at:]


def _trailers(data: bytes) -> bytes:
    """RFC 9110 §6.5.1: nobody obeys framing fields there. The rest is as in a head."""
    if data.startswith(b"\r\n") or data[:1] in (b" ", b"\t"):
        return data
    block, end, rest = data.partition(b"\r\n\r\n")
    lines = re.sub(rb"\r\n[ \t]+", b" ", block).split(b"\r\n")
    lines = [re.sub(rb"^([!-9;-~]+)[ \t]+:", rb"\1:", line) for line in lines]
    kept = [line for line in lines if _name(line) not in (_LENGTH, _CODING)]
    return b"".join(line + b"\r\n" for line in kept) + (b"\r\n" if end else b"") + rest
