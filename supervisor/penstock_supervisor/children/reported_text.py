"""What a process says of itself, made fit for our log: bounded, and no forged line of ours.

A worker's reason and traceback come from a program that is not ours, which may repeat what one of
its clients sent. So a reason is one line of printable characters, and the lines of a traceback are
set in, as no line of our own is. Must not know what they are for. No I/O.
"""

from typing import Final

from penstock_worker.telemetry.printable import printable

_MAX: Final = 16 << 10
"""Characters that are taken."""
_HEAD: Final = 140
_TAIL: Final = 60
"""Characters of a long line that are shown: it begins with what it is about, and ends with the
rest of an error."""


def one_line(value: object) -> str:
    """As a single line; what cannot be printed is escaped."""
    text = " ".join(str(value)[:_MAX].split())
    return printable(text)


def set_in(value: object) -> str:
    """Each line below the one that it explains, or empty."""
    lines = str(value)[:_MAX].rstrip().splitlines()
    return "".join(f"\n    {printable(line)}" for line in lines)


def shortened(line: str) -> str:
    """A line that a person can read: a long one without its middle."""
    if len(line) <= _HEAD + _TAIL:
        return line
    return f"{line[:_HEAD]} … {line[-_TAIL:]}"
