"""Text of a program or a client, made fit to be shown: nothing in it acts on a terminal.

The one rule for reasons, last words, tracebacks and answers to checks: what cannot be printed is
escaped and not left out, so that nobody wonders what was there. No I/O.
"""


def printable(text: str) -> str:
    """As it is, but for what cannot be printed, which is escaped: `\\x1b[31m`."""
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    is_fit = character.isprintable() or character == "\t"
    return character if is_fit else character.encode("unicode_escape").decode()
