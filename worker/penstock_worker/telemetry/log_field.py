"""One field of a line of the access log: cut to a length, and nothing in it that a client forges.

Owns what a client's bytes look like in a line, in JSON and in the combined format: printable
ASCII, whatever came in. Must not know which fields a line has (`access_log`). No I/O.

Nearly every field is printable and has nothing to escape. So that is asked first, by the calls
that cost least, and all else is in functions of its own.
"""

from json.encoder import encode_basestring_ascii as quoted
from typing import Final

MAX_FIELD: Final = 1024
"""Characters of one field, by default; a longer one is cut and ends in CUT."""
CUT: Final = "..."

_ESCAPES: Final = {
    code: f"\\x{code:02X}" for code in (*range(0x20), 0x22, 0x5C, *range(0x7F, 0x100))
}
"""As nginx writes them: the only quotes in a line are those around its fields."""


def json_text(value: str | bytes, limit: int) -> str:
    """A string of JSON, with its quotes. Valid UTF-8 is decoded, other bytes become \\xNN."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return quoted(text)
    return _json_escaped(text, limit)


def _json_escaped(text: str, limit: int) -> str:
    # There must be no lone surrogate: many JSON parsers would refuse the whole line.
    text = _octets(_cut(text, limit)).decode("utf-8", "backslashreplace")
    # DEL is the one control character that `quoted` leaves as it is.
    return quoted(text).replace("\x7f", "\\u007f")


def combined_text(value: str | bytes, limit: int) -> str:
    """Text for between two quotes: what is not printable, and quotes themselves, become \\xNN."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return text if '"' not in text and "\\" not in text else text.translate(_ESCAPES)
    return _octets(_cut(text, limit)).decode("latin-1").translate(_ESCAPES)


def combined_word(value: str, limit: int) -> str:
    """Text for where no quotes are: blanks are escaped as well; "-" if there is nothing."""
    return combined_text(value, limit).replace(" ", "\\x20") or "-"


def header_field(head: bytes, lower: bytes, name: bytes) -> bytes:
    """The value of the first field of that name, such as `b"referer:"`; empty: there is none.
    `lower`: the head in lower case."""
    start = 0
    if not lower.startswith(name):
        start = lower.find(b"\n" + name) + 1
        if not start:
            return b""
    end = head.find(b"\n", start)
    return head[start + len(name) : len(head) if end < 0 else end].strip()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT


def _octets(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        # Not a client's bytes, or not decoded as latin-1.
        return text.encode("utf-8", "surrogatepass")
