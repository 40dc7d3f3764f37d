"""Runs the worker's own task; a `sys.exit` elsewhere in the program is a wish to leave.

asyncio lets SystemExit and KeyboardInterrupt of any task or callback end the loop, with all that
is in flight. Here the loop goes on, and `on_exit` decides: a worker that serves asks for a
successor, and leaves with that status when it has finished.

Must not know how a worker leaves.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from penstock_worker.runtime import exception_text

_EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
_EXIT_MESSAGE: Final = 1
"""Of `sys.exit("a message")`."""


def run(
    runner: asyncio.Runner, main: Coroutine[Any, Any, int], on_exit: Callable[[int, str], bool]
) -> int:
    """Run `main` to its end, and return what it returns.

    `on_exit(status, reason)` is called while the loop pauses, when another task or a callback
    wants to exit. If it returns False, that ends everything at once: SystemExit or
    KeyboardInterrupt is raised.
    """
    pid = os.getpid()
    running: list[asyncio.Task[Any]] = []

    async def remembered() -> int:
        task = asyncio.current_task()
        assert task is not None
        running.append(task)
        return await main

    try:
        try:
            return runner.run(remembered())
        except (SystemExit, KeyboardInterrupt) as error:
            _go_on(running, error, on_exit, pid)
        while True:
            try:
                result: int = runner.get_loop().run_until_complete(running[0])
            except (SystemExit, KeyboardInterrupt) as error:
                _go_on(running, error, on_exit, pid)
            else:
                return result
    finally:
        if os.getpid() != pid:
            # A child that was forked somewhere below, and has not left by `os._exit`.
            _leave_child()


def exit_status(error: SystemExit | KeyboardInterrupt) -> int:
    """The status of a process that this exception ends."""
    if isinstance(error, KeyboardInterrupt):
        return _EXIT_INTERRUPTED
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else _EXIT_MESSAGE


def _go_on(
    running: list[asyncio.Task[Any]],
    error: SystemExit | KeyboardInterrupt,
    on_exit: Callable[[int, str], bool],
    pid: int,
) -> None:
    """Return if the loop goes on, else raise the error again."""
    if os.getpid() != pid or not running or running[0].done():
        raise error
    kind = "sys.exit" if isinstance(error, SystemExit) else "KeyboardInterrupt"
    status = exit_status(error)
    _, path, line = exception_text.place(error)
    if not on_exit(status, f'{kind} with status {status} ("{path}", line {line})'):
        raise error


def _leave_child() -> None:
    """End a forked child that has run out of its own code. The worker's is not its to run."""
    error = sys.exc_info()[1]
    status = 0
    if isinstance(error, SystemExit | KeyboardInterrupt):
        status = exit_status(error)
        if isinstance(error, SystemExit) and isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    elif error is not None:
        sys.__excepthook__(type(error), error, error.__traceback__)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
