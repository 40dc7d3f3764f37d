"""What nobody caught: it makes a worker retire instead of going on as if nothing were.

Owns the three places where Python reports an exception that no code waits for: a callback or
a task of the event loop, a thread, and the interpreter itself. Says it once to whoever is
asked (`retire`), in the loop's thread. Must not know what retiring means.

What a *transport* reports is not of this kind: a connection that is reset, or a stranger's
bytes that break a protocol, must not be a way to end workers from outside.
"""

import sys
import threading
import traceback
from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

_MOST: Final = 16 << 10
"""Characters of a traceback. A recursion without an end has a thousand frames; the first and
the last tell what it is."""
_CUT: Final = "\n    [...]\n"
_HUNG_UP: Final = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
"""A peer that is gone while a forgotten task still writes to it: nothing is wrong with us."""
_MINE: Final = ("handle", "task", "future")
"""Keys of a context that come with an exception of a callback, a task or a future."""

Retire = Callable[[str, str], None]


def watch(loop: AbstractEventLoop, retire: Retire) -> None:
    """Call `retire(reason, traceback)` for everything that nobody catches, from now on."""

    def from_loop(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if is_uncaught(context) and error is not None:
            retire(reason(error), shown(error))
        else:
            loop.default_exception_handler(context)

    def from_thread(thread: threading.ExceptHookArgs) -> None:
        if thread.exc_type is not SystemExit and thread.exc_value is not None:
            elsewhere(thread.exc_value)

    def from_interpreter(
        kind: type[BaseException], error: BaseException, _: TracebackType | None
    ) -> None:
        if issubclass(kind, Exception):
            elsewhere(error)
        else:
            sys.__excepthook__(kind, error, error.__traceback__)

    def elsewhere(error: BaseException) -> None:
        # The loop may be closed by now: then the worker is on its way out already.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(retire, reason(error), shown(error))

    loop.set_exception_handler(from_loop)
    threading.excepthook = from_thread
    sys.excepthook = from_interpreter


def is_uncaught(context: dict[str, Any]) -> bool:
    """Is this the report of an exception in the program's own code?"""
    error = context.get("exception")
    if not isinstance(error, Exception) or isinstance(error, _HUNG_UP):
        return False
    if "transport" in context or "protocol" in context:
        return False
    return any(key in context for key in _MINE)


def reason(error: BaseException) -> str:
    """One line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text}"[:500] if text else name


def shown(error: BaseException) -> str:
    """The traceback, bounded."""
    text = "".join(traceback.format_exception(error))
    if len(text) <= _MOST:
        return text
    half = (_MOST - len(_CUT)) // 2
    return text[:half] + _CUT + text[-half:]
