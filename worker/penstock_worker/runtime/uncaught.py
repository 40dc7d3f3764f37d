"""Exceptions that no code of the program caught: logged with their traceback, counted, and no more.

Owns the places where Python reports them: callbacks and tasks of the event loop, threads, and what
the interpreter itself has to ignore (`__del__`, callbacks of weak references). With
`on_uncaught = "retire"` the first of them also asks for a successor, as Node would. Must not know
what that means.

A report can come in any thread and in the middle of anything, since a task that nobody awaits
is reported when it is collected. So a report never waits for another: whoever is logging takes
along what came meanwhile. It never raises, and what it keeps is bounded. A client can cause
thousands in a second, of which the log shows one for each place and the number of the others.

What a *transport* reports, and a peer that is gone, is logged as well but no reason to retire.
"""

import logging
import re
import sys
import threading
from asyncio import AbstractEventLoop, Task
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from inspect import isroutine
from time import monotonic
from types import TracebackType
from typing import Any, Final, NamedTuple

from penstock_worker.runtime import exception_text
from penstock_worker.runtime.log_limit import INTERVAL_S, LogLimit
from penstock_worker.telemetry.counters import RequestCounters

_PEER_GONE: Final = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
"""A peer is gone while a task still writes to it: nothing is wrong with the worker."""
_PROGRAM_KEYS: Final = ("handle", "task", "future")
"""Keys of a context that belongs to a callback, a task or a future."""
_MAX_WAITING: Final = 64
"""Reports that wait while another one is logged. The others are only counted."""
_MAX_WHERE: Final = 200
_MAX_SUMMARIZED: Final = 5
"""Places that are named among those that were left out."""

_log: Final = logging.getLogger("penstock.worker")

Report = Callable[[str], object]


class _Uncaught(NamedTuple):
    error: BaseException
    where: str
    code: str
    """The name of the task's coroutine: one line of a library may raise it for many of them."""
    retires: bool


class UncaughtExceptions:
    """`install` it once, and `restore` Python's own reports in the end.

    `on_logged(reason)` is called for each that is logged, and `on_retire(reason)` for the first
    one that is a reason to retire, both in the loop's thread.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        counters: RequestCounters,
        write_error: Callable[[str], object],
        on_logged: Report,
        on_retire: Report,
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._write_error = write_error
        self._on_logged = on_logged
        self._on_retire = on_retire
        self._limit = LogLimit()
        """Guarded by `_lock`, as all that logs is."""
        self._lock = threading.Lock()
        self._waiting: deque[_Uncaught] = deque()
        self._overflowed = 0
        self._will_summarize = False
        self._has_asked = False
        """`on_retire` was called."""

    def install(self) -> None:
        self._loop.set_exception_handler(self._from_loop)
        threading.excepthook = self._from_thread
        sys.unraisablehook = self._from_interpreter
        sys.excepthook = self._from_main

    def restore(self) -> None:
        """Python reports again by itself. Call it in a forked child, and at the end."""
        threading.excepthook = threading.__excepthook__
        sys.unraisablehook = sys.__unraisablehook__
        sys.excepthook = sys.__excepthook__

    def summarize(self) -> None:
        """Log how many were left out until now."""
        self._will_summarize = False
        if not self._lock.acquire(blocking=False):
            self._summarize_later()
            return
        try:
            self._limit.add_left_out(self._take_overflow())
            by_place, others = self._limit.left_out()
        finally:
            self._lock.release()
        most = Counter(by_place).most_common(_MAX_SUMMARIZED)
        others += sum(by_place.values()) - sum(count for _, count in most)
        parts = [f"{count} more like {_described(place)}" for place, count in most]
        if others:
            parts.append(f"{others} more at other places")
        if parts:
            self._write(f"exceptions that nobody caught, not shown: {', '.join(parts)}", None)
        self._log_waiting()

    # Where Python reports them.

    def _from_loop(self, loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None:
            # A warning, such as of a task that was destroyed.
            loop.default_exception_handler(context)
        elif not isinstance(error, SystemExit | KeyboardInterrupt):
            # Those two have ended the loop by now: see `program_exit`.
            where, code, retires = "the event loop", "", False
            # Classes of the program are asked here, and may fail.
            with suppress(Exception):
                where, code = _where(context)
                retires = is_reason_to_retire(context)
            self._report(error, where, code, retires=retires)

    def _from_thread(self, thread: threading.ExceptHookArgs) -> None:
        if thread.exc_type is not SystemExit and thread.exc_value is not None:
            name = "a thread" if thread.thread is None else f'thread "{thread.thread.name}"'
            self._report(thread.exc_value, name[:_MAX_WHERE], "", retires=True)

    def _from_interpreter(self, ignored: "sys.UnraisableHookArgs") -> None:
        # Not the object itself: nothing may keep it, as it is being destroyed.
        if ignored.exc_value is not None:
            where = f"{place_of(ignored)}, where Python ignores it"
            self._report(ignored.exc_value, where[:_MAX_WHERE], "", retires=False)

    def _from_main(
        self, kind: type[BaseException], error: BaseException, found: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._report(error, "the interpreter", "", retires=True)
        else:
            sys.__excepthook__(kind, error, found)

    # From a report to the log.

    def _report(self, error: BaseException, where: str, code: str, *, retires: bool) -> None:
        try:
            # One operation for the interpreter: no lock is needed to add to an attribute.
            self._counters.uncaught += 1
            if len(self._waiting) < _MAX_WAITING:
                self._waiting.append(_Uncaught(error, where, code, retires))
            else:
                self._overflowed += 1
            self._log_waiting()
        except BaseException:  # noqa: BLE001 -- even without memory or stack, a report ends nothing
            self._overflowed += 1

    def _log_waiting(self) -> None:
        # If another thread logs, or this one is in the middle of it, that one takes it along.
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                while self._waiting:
                    self._log(self._waiting.popleft())
            finally:
                self._lock.release()

    def _log(self, uncaught: _Uncaught) -> None:
        reason = f"{exception_text.reason(uncaught.error)}, in {uncaught.where}"
        place = (exception_text.place(uncaught.error), uncaught.code)
        before = self._limit.seen(place, monotonic())
        if before is None:
            self._summarize_later()
        else:
            more = f" (and {before} more like it before)" if before else ""
            headline = f"an exception that nobody caught, in {uncaught.where}{more}"
            self._write(headline, uncaught.error)
            self._in_loop(self._on_logged, reason)
        if uncaught.retires and not self._has_asked:
            self._has_asked = True
            self._in_loop(self._on_retire, reason)

    def _write(self, headline: str, error: BaseException | None) -> None:
        """Log it, for whatever the program does with its logs; without them, to stderr."""
        text = "" if error is None else exception_text.traceback_text(error).rstrip()
        try:
            # A program that configures logging often disables the loggers that it finds.
            if _log.isEnabledFor(logging.ERROR):
                record = _log.makeRecord(_log.name, logging.ERROR, __file__, 0, headline, (), None)
                if error is not None:
                    record.exc_info = (type(error), error, error.__traceback__)
                    # A formatter uses this one, which is bounded.
                    record.exc_text = text
                _log.handle(record)
                return
        except Exception as why:  # noqa: BLE001 -- a handler of the program's own
            headline = f"{headline} (it could not be logged: {exception_text.reason(why)})"
        self._write_error(f"{headline}\n{text}\n" if text else f"{headline}\n")

    def _summarize_later(self) -> None:
        if not self._will_summarize:
            self._will_summarize = True
            self._in_loop(self._loop.call_later, INTERVAL_S, self.summarize)

    def _in_loop(self, callback: Callable[..., object], *arguments: Any) -> None:
        # The loop may be closed by now: then the worker is about to exit.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _take_overflow(self) -> int:
        overflowed, self._overflowed = self._overflowed, 0
        return overflowed


def is_reason_to_retire(context: dict[str, Any]) -> bool:
    """Is this context that of an exception in the program's own code?"""
    error = context.get("exception")
    if not isinstance(error, Exception) or is_peer_gone(error):
        return False
    if "transport" in context or "protocol" in context:
        # Bytes that break a protocol must not let a stranger end a worker.
        return False
    return any(key in context for key in _PROGRAM_KEYS)


def is_peer_gone(error: BaseException) -> bool:
    """Does it say only that a peer is gone? A group does if all of its exceptions do."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(_PEER_GONE)[1] is None
    return isinstance(error, _PEER_GONE)


def _where(context: dict[str, Any]) -> tuple[str, str]:
    """In words, and the name of the task's coroutine."""
    found = context.get("task") or context.get("future")
    if isinstance(found, Task):
        name = getattr(found.get_coro(), "__qualname__", "") or "?"
        return f'task "{found.get_name()}" ({name})'[:_MAX_WHERE], name
    message = " ".join(str(context.get("message") or "the event loop").split())
    return message.removeprefix("Exception in ")[:_MAX_WHERE], ""


def _described(key: Any) -> str:
    place, code = key
    return exception_text.described(place) + (f" in {code}" if code else "")


def place_of(ignored: "sys.UnraisableHookArgs") -> str:
    """The name of the function, or else the type, that has raised what Python ignores."""
    found = ignored.object
    if found is None:
        # Since Python 3.14 a finalizer is named in the message alone.
        match = re.search(r"<function (\S+)", ignored.err_msg or "")
        return match[1] if match else "the interpreter"
    return str(found.__qualname__ if isroutine(found) else type(found).__qualname__)
