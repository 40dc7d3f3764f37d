"""What a process says of itself, made fit for our log: bounded, and no forged line of ours.

A worker's reason and traceback come from a program that is not ours, which may repeat what one of
its clients sent. So a reason is one line of printable characters, and the lines of a traceback are
set in, as no line of our own is. Must not know what they are for. No I/O.
"""

from typing import Final

_MAX: Final = 16 << 10
"""Characters that are taken."""


def one_line(value: object) -> str:
    """As a single line; what cannot be printed is escaped."""
    text = " ".join(str(value)[:_MAX].split())
    return "".join(map(_printable, text))


def set_in(value: object) -> str:
    """Each line below the one that it explains, or empty."""
    lines = str(value)[:_MAX].rstrip().splitlines()
    return "".join(f"\n    {''.join(map(_printable, line))}" for line in lines)


def _printable(character: str) -> str:
    is_fit = character.isprintable() or character == "\t"
    return character if is_fit else character.encode("unicode_escape").decode()
