"""An exception in words: its reason in one line, its traceback, the place where it was raised.

Owns the bounds of these texts. None of the functions raises, whatever the exception is: its class
is the program's own, and its `__str__` may fail. No I/O but the sources that a traceback
shows.
"""

import traceback
from types import TracebackType
from typing import Final

MAX_TRACEBACK: Final = 16 << 10
"""Characters of a traceback. An endless recursion has a thousand frames; the first and the last
tell what it is."""
MAX_REASON: Final = 500
_CUT: Final = "\n    [...]\n"
_MAX_FRAMES: Final = 100
"""Frames that are looked at to find the last one, of each exception."""

Place = tuple[str, str, int]
"""The exception's class, and the file and line that raised it."""


def reason(error: BaseException) -> str:
    """The error in one bounded line."""
    name = type(error).__name__
    try:
        text = " ".join(str(error)[: 4 * MAX_REASON].split())
    except BaseException:  # noqa: BLE001 -- whatever the program's __str__ raises
        return f"{name}: its __str__ fails"
    return f"{name}: {text}"[:MAX_REASON] if text else name


def traceback_text(error: BaseException) -> str:
    """The traceback, cut to a bounded length."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as why:  # noqa: BLE001 -- the program's own class, or no stack is left
        return f"{reason(error)} (no traceback: {type(why).__name__})\n"
    if len(text) <= MAX_TRACEBACK:
        return text
    half = (MAX_TRACEBACK - len(_CUT)) // 2
    return text[:half] + _CUT + text[-half:]


def place(error: BaseException) -> Place:
    """Where it was raised; of a group, where the first of its exceptions was."""
    for _ in range(_MAX_FRAMES):
        if not isinstance(error, BaseExceptionGroup) or not error.exceptions:
            break
        error = error.exceptions[0]
    return (type(error).__qualname__, *_last_line(error.__traceback__))


def described(place: Place) -> str:
    """A place in words."""
    name, path, line = place
    return f'{name} ("{path}", line {line})' if path else name


def _last_line(found: TracebackType | None) -> tuple[str, int]:
    for _ in range(_MAX_FRAMES):
        if found is None or found.tb_next is None:
            break
        found = found.tb_next
    if found is None:
        return "", 0
    return found.tb_frame.f_code.co_filename, found.tb_lineno
