"""Uncaught exceptions: a worker that has one retires, because its state may be corrupt.

Owns the three places where Python reports an exception that no code caught: callbacks and tasks
of the event loop, threads, and the interpreter itself. Each is passed to `retire`, in the
loop's thread. Must not know what retiring means.

What a *transport* reports is no reason to retire: a connection that is reset, or bytes that
break a protocol, must not let a stranger end a worker.
"""

import sys
import threading
import traceback
from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

_MAX_TRACEBACK: Final = 16 << 10
"""Characters of a traceback. An endless recursion has a thousand frames; the first and the last
tell what it is."""
_CUT: Final = "\n    [...]\n"
_PEER_GONE: Final = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
"""A peer is gone while a task still writes to it: nothing is wrong with the worker."""
_PROGRAM_KEYS: Final = ("handle", "task", "future")
"""Keys of a context that belongs to a callback, a task or a future."""

Retire = Callable[[str, str], None]


def install(loop: AbstractEventLoop, retire: Retire) -> None:
    """Call `retire(reason, traceback)` for every uncaught exception from now on."""

    def from_loop(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if is_uncaught(context) and error is not None:
            retire(reason(error), traceback_text(error))
        else:
            loop.default_exception_handler(context)

    def from_thread(thread: threading.ExceptHookArgs) -> None:
        if thread.exc_type is not SystemExit and thread.exc_value is not None:
            in_loop(thread.exc_value)

    def from_interpreter(
        kind: type[BaseException], error: BaseException, _: TracebackType | None
    ) -> None:
        if issubclass(kind, Exception):
            in_loop(error)
        else:
            sys.__excepthook__(kind, error, error.__traceback__)

    def in_loop(error: BaseException) -> None:
        # The loop may be closed by now: then the worker is about to exit.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(retire, reason(error), traceback_text(error))

    loop.set_exception_handler(from_loop)
    threading.excepthook = from_thread
    sys.excepthook = from_interpreter


def is_uncaught(context: dict[str, Any]) -> bool:
    """Is this context that of an exception in the program's own code?"""
    error = context.get("exception")
    if not isinstance(error, Exception) or isinstance(error, _PEER_GONE):
        return False
    if "transport" in context or "protocol" in context:
        return False
    return any(key in context for key in _PROGRAM_KEYS)


def reason(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text}"[:500] if text else name


def traceback_text(error: BaseException) -> str:
    """The traceback, cut to a bounded length."""
    text = "".join(traceback.format_exception(error))
    if len(text) <= _MAX_TRACEBACK:
        return text
    half = (_MAX_TRACEBACK - len(_CUT)) // 2
    return text[:half] + _CUT + text[-half:]
