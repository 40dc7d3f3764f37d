"""Writes lines to a descriptor or a file in a thread, so that no event loop waits.

Owns one open file, the queue in front of it, and what happens when the file is slow or cannot be
written. Must not know what the lines contain.

A thread writes, because `write` blocks for as long as a pipe's reader sleeps or a disk is busy, and
epoll always reports a regular file as ready. The queue has a bound, because it takes memory. At
the bound there are three policies, by what the lines are worth. Lines that come with traffic (an
access log) are dropped and counted. Lines whose source can wait (a child's output) are all
accepted: the caller stops reading while `full`, until `on_capacity` is called. A process' own
messages (`offer`) cannot wait: they have some room of their own beyond the bound, and what does not
fit is counted, and reported when the writer works again.

The thread blocks all signals. They are for the thread of the event loop, and a write to the
terminal of a background job would otherwise be interrupted by SIGTTOU for ever.
"""

import logging
import os
import select
import signal
import stat
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

_log: Final = logging.getLogger("penstock.log_writer")

BOUND: Final = 8 << 20
"""Bytes that may wait. At 300 a line, about as much as a busy second."""
_OWN_ROOM: Final = 1 << 20
"""Bytes beyond the bound for a process' own messages."""
_BATCH_SIZE: Final = 256 << 10
_ATOMIC_SIZE: Final = select.PIPE_BUF
"""A write to a pipe of up to this size is atomic, even if several processes write to it."""
_POLL_MS: Final = 200
"""While a pipe is full: how often to check whether `close` was called."""


class LogWriter:
    """One destination of lines.

    `target` is a descriptor, which stays the caller's, or the path of a file, which is created if
    need be and appended to. OSError: it cannot be opened. The thread calls `on_capacity`.
    """

    def __init__(
        self,
        target: int | str,
        *,
        bound: int = BOUND,
        on_capacity: Callable[[], None] | None = None,
    ) -> None:
        self._path = target if isinstance(target, str) else None
        self._fd = _open(target) if isinstance(target, str) else target
        self._shared = _is_shared(self._fd)
        self._bound = bound
        self.on_capacity = on_capacity
        """It can be set by whoever uses the writer for lines that can wait."""
        self._condition = threading.Condition()
        # All below is guarded by `_condition`.
        self._queue: deque[bytes | None] = deque()
        """None: reopen the file, after the lines before it are written."""
        self._waiting = 0
        """Bytes in the queue or being written."""
        self._caller_paused = False
        self._dropped = 0
        self._lost = 0
        """Lines of `offer` that were lost and are not reported yet."""
        self._closing = False
        self._aborted = False
        # The thread's own.
        self._is_failing = False
        self._mid_line = False
        """The last write ended in the middle of a line."""
        # A daemon: nothing can interrupt a write to a pipe that nobody reads, and the process
        # must be able to exit.
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor that it writes to now."""
        return self._fd

    @property
    def dropped(self) -> int:
        """Lines that were lost."""
        return self._dropped

    @property
    def full(self) -> bool:
        return self._waiting >= self._bound

    def write(self, lines: bytes) -> None:
        """Queue whole lines, each with its newline. Never blocks."""
        with self._condition:
            overflows = self.on_capacity is None and self._waiting + len(lines) > self._bound
            if self._closing or overflows:
                self._dropped += _count_lines(lines)
                return
            self._queue.append(lines)
            self._waiting += len(lines)
            self._caller_paused = self._caller_paused or self._waiting >= self._bound
            self._condition.notify()

    def offer(self, lines: bytes) -> None:
        """Queue whole lines of the process' own, or drop and count them. Never blocks."""
        with self._condition:
            if self._closing or self._waiting + len(lines) > self._bound + _OWN_ROOM:
                count = _count_lines(lines)
                self._dropped += count
                self._lost += count
                return
            self._queue.append(lines)
            self._waiting += len(lines)
            self._condition.notify()

    def reopen(self) -> None:
        """Open the path again, after all that is queued. A descriptor stays as it is."""
        if self._path is None:
            return
        with self._condition:
            if not self._closing:
                self._queue.append(None)
                self._condition.notify()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for `timeout_s` at the most, and end the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout_s)
        with self._condition:
            self._aborted = True
            lost = sum(_count_lines(lines) for lines in self._queue if lines)
            self._queue.clear()
            self._dropped += lost
        if lost:
            _log.warning("%s: closed with %d lines unwritten", self._name, lost)

    @property
    def _name(self) -> str:
        return self._path or f"descriptor {self._fd}"

    # The writing thread.

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (batch := self._take()) is not None:
            if not batch:
                self._open_anew()
                continue
            self._write(batch)
            self._make_room(len(batch))
        if self._path is not None:
            os.close(self._fd)

    def _take(self) -> bytes | None:
        """The next thing to do: lines to write; b"", to reopen; None, to end."""
        with self._condition:
            self._condition.wait_for(lambda: self._queue or self._closing)
            taken: list[bytes] = []
            size = 0
            while self._queue and size < _BATCH_SIZE:
                lines = self._queue[0]
                if not lines:
                    if not taken:
                        self._queue.popleft()
                        return b""
                    break
                taken.append(lines)
                size += len(lines)
                self._queue.popleft()
            return b"".join(taken) if taken else None

    def _make_room(self, written: int) -> None:
        with self._condition:
            self._waiting -= written
            # Only at half, so that a caller does not pause and resume for every line.
            room = self._caller_paused and self._waiting <= self._bound // 2
            if room:
                self._caller_paused = False
        if room and (on_capacity := self.on_capacity) is not None:
            # The caller's event loop may have been closed before this thread.
            with suppress(RuntimeError):
                on_capacity()

    def _write(self, batch: bytes) -> None:
        start = 0
        try:
            if self._mid_line:
                # A full disk cut a line in two: end it, so that it does not spoil the next one.
                self._write_piece(b"\n")
            while start < len(batch):
                end = _write_end(batch, start) if self._shared else len(batch)
                start += self._write_piece(batch[start:end])
        except OSError as error:
            self._fail(error, batch[start:])
            return
        with self._condition:
            lost, self._lost = self._lost, 0
        if self._is_failing:
            self._is_failing = False
            _log.warning("%s: writing again; %d lines were lost", self._name, self._dropped)
        elif lost:
            _log.warning("%d lines of this log were lost: nobody has read %s", lost, self._name)

    def _write_piece(self, piece: bytes) -> int:
        view = memoryview(piece)
        while view:
            try:
                written = os.write(self._fd, view)
            except BlockingIOError:
                self._wait_until_writable()
                continue
            self._mid_line = view[written - 1] != 0x0A
            view = view[written:]
        return len(piece)

    def _wait_until_writable(self) -> None:
        """Wait, as the descriptor is non-blocking: any process that shares stdout may set that."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while not poll.poll(_POLL_MS):
            if self._aborted:
                raise TimeoutError("given up")

    def _fail(self, error: OSError, unwritten: bytes) -> None:
        # No reader, no space, an input/output error: these lines are lost, and the next ones
        # are tried again. To wait instead would block a caller that has paused.
        with self._condition:
            self._dropped += _count_lines(unwritten)
        if not self._is_failing:
            self._is_failing = True
            _log.error(
                "%s: cannot write: %s; lines are dropped until it works again",
                self._name, error.strerror or error,
            )  # fmt: skip

    def _open_anew(self) -> None:
        assert self._path is not None
        try:
            fd = _open(self._path)
        except OSError as error:
            _log.error("%s: cannot reopen: %s; the old file is kept", self._path, error.strerror)
            return
        os.close(self._fd)
        self._fd, self._shared, self._mid_line = fd, _is_shared(fd), False


def _open(path: str) -> int:
    # O_NONBLOCK: without it, opening a FIFO that has no reader would block. With it that is an
    # error. For regular files it changes nothing.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    return os.open(Path(path), flags, 0o640)


def _is_shared(fd: int) -> bool:
    """May others write, too? To a pipe or a terminal; to a regular file any write is atomic."""
    return not stat.S_ISREG(os.fstat(fd).st_mode)


def _write_end(batch: bytes, start: int) -> int:
    """The end of the next write: as many whole lines as are atomic, or one longer line."""
    end = batch.rfind(b"\n", start, start + _ATOMIC_SIZE) + 1
    return end or (batch.find(b"\n", start) + 1) or len(batch)


def _count_lines(lines: bytes) -> int:
    return lines.count(b"\n")
