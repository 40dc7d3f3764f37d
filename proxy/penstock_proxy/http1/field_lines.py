"""Blocks of field lines: heads behind their first line, and trailer sections (RFC 9112 §5).

Owns: which bytes are a block, and what is repaired in one that a worker has sent. Must not know:
what a field means. No I/O.

A client's block is never repaired: what was meant is not for us to say, and who stands in front of
us may have read it in another way. A worker's block is read by nobody but us, and the client gets
what we make of it. So where RFC 9112 tells a proxy what it becomes, it becomes that. What a program
can be made to put into a value (a bare CR or LF, NUL) stays refused: that is response splitting.
"""

import re
from typing import Final

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
"""One character of a token (RFC 9110 §5.6.2)."""
FIELDS: Final = re.compile(rb"(?:" + TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")
_FOLD: Final = re.compile(rb"\r\n[ \t]++")
_BLANK_BEFORE_COLON: Final = re.compile(rb"^(" + TOKEN + rb"++)[ \t]++:", re.MULTILINE)


def repaired(block: bytes) -> bytes:
    """A worker's block, with a space for each fold, and nothing between a name and its colon.

    RFC 9112 §5.2 and §5.1. It may still be malformed. So is one that begins with a fold (§2.2).
    """
    if block.startswith((b" ", b"\t")):
        return block
    return _BLANK_BEFORE_COLON.sub(rb"\1:", _FOLD.sub(b" ", block))
