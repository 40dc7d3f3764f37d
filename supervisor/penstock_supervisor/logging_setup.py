"""Sets up logging: the supervisor's own messages go to stderr, one line each.

Of a message with several lines, such as a traceback, each line has the time and the level: grep
and the journal know lines only.

stdout is only for the access log and for output of workers, so that a pipe gets nothing else.

A run writes its messages through a thread (`log_thread`), because a terminal or pipe that nobody
reads would block its event loop: it would not hear TERM, and restart no worker. The thread also
writes the children's output, so the lines stay in order. What is said before and after a run is
written by `write_bounded`, which does not wait for long either.
"""

import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Final

from penstock_worker.telemetry.log_writer import LogWriter

_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
_HEAD: Final = "%(asctime)s.%(msecs)03d %(levelname)-7s "
_STDERR: Final = 2
_FLUSH_S: Final = 1.0
"""At the end of a run, for a reader that is slow."""


class LineFormatter(logging.Formatter):
    """Each line of a message stands for itself."""

    def __init__(self) -> None:
        super().__init__(f"{_HEAD}%(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text.replace("\n", f"\n{_HEAD % vars(record)}") if "\n" in text else text


class ThreadHandler(logging.Handler):
    """Passes messages to the thread. Never blocks."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self.writer: LogWriter | None = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n"
        except Exception as error:  # noqa: BLE001
            # A message that cannot be formatted must not end what its caller was about to do.
            line = f"{record.levelname} {record.msg!s:.200} ({type(error).__name__})\n"
        if self.writer is None:
            write_bounded(line, 0.0)
        else:
            self.writer.offer(line.encode(errors="backslashreplace"))


def set_up(verbosity: int) -> None:
    """Verbosity 0 is INFO; each step up or down is one level."""
    _install(logging.StreamHandler(sys.stderr), verbosity)


@contextmanager
def log_thread(verbosity: int) -> Iterator[LogWriter]:
    """Inside, a thread writes all messages, and what else its writer gets, to stderr."""
    writer = LogWriter(_STDERR)
    handler = ThreadHandler(writer)
    _install(handler, verbosity)
    try:
        yield writer
    finally:
        # First: it reports by a message what it could not write.
        handler.writer = None
        writer.close(_FLUSH_S)


def write_bounded(text: str, within_s: float = _FLUSH_S) -> None:
    """Write to stderr, but do not wait for longer than this. Errors are ignored."""
    try:
        fd = sys.stderr.fileno()
    except OSError:
        # Somebody who embeds us has put something else there.
        sys.stderr.write(text)
        return
    data = text.encode(errors="backslashreplace")
    deadline = monotonic() + within_s
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    with suppress(OSError):
        while data and poll.poll(max(0.0, deadline - monotonic()) * 1000):
            # So much always fits into a pipe that is writable.
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]


def _install(handler: logging.Handler, verbosity: int) -> None:
    level = _LEVELS[max(0, min(len(_LEVELS) - 1, verbosity + 2))]
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # At DEBUG asyncio logs its selector for every event loop.
    logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))
