"""Lines to a file descriptor or a file, written by a thread, so that no event loop waits.

Owns one open file, the queue before it, and what happens when the file cannot keep up or
cannot be written at all. It does not know what the lines say.

Why a thread: a pipe whose reader sleeps and a disk that is busy block `write` for as long
as they like, and a regular file is always "ready" to epoll. Why a bound: what is not
written is memory. At the bound there are two policies, and the caller chooses by what the
lines are worth: lines that arrive as traffic does (an access log) are dropped and counted;
lines that somebody can be asked to hold back (a child's output) are all taken, and the
caller stops reading while `full`, until `on_room`.
"""

import logging
import os
import select
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
_BATCH: Final = 256 << 10
_WHOLE: Final = select.PIPE_BUF
"""A pipe that several processes write into keeps pieces of up to this size in one piece."""
_PATIENCE_MS: Final = 200
"""How often a wait for a full pipe looks whether it has been given up."""


class Sink:
    """One destination of lines.

    `target` is a descriptor, which stays the caller's, or a path, which is appended to and
    created if need be; OSError if it cannot be. `on_room` is called by the writing thread.
    """

    def __init__(
        self, target: int | str, *, bound: int = BOUND, on_room: Callable[[], None] | None = None
    ) -> None:
        self._path = target if isinstance(target, str) else None
        self._fd = _open(target) if isinstance(target, str) else target
        self._atomic = _needs_whole_pieces(self._fd)
        self._bound = bound
        self._on_room = on_room
        self._changed = threading.Condition()
        # All below is guarded by `_changed`.
        self._queue: deque[bytes | None] = deque()
        """None: open the file anew, after what came before."""
        self._waiting = 0
        """Bytes in the queue or being written."""
        self._held_back = False
        self._dropped = 0
        self._closing = False
        self._given_up = False
        # The thread's own.
        self._failing = False
        self._torn = False
        """The last thing written was not the end of a line."""
        # A daemon, because nothing can wake a thread out of a write to a pipe that nobody
        # reads, and an exit must not wait for it.
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dropped(self) -> int:
        """Lines that were not written and never will be."""
        return self._dropped

    @property
    def full(self) -> bool:
        return self._waiting >= self._bound

    def write(self, lines: bytes) -> None:
        """Queue whole lines, each with its newline. Never blocks."""
        with self._changed:
            crowded = self._on_room is None and self._waiting + len(lines) > self._bound
            if self._closing or crowded:
                self._dropped += _count(lines)
                return
            self._queue.append(lines)
            self._waiting += len(lines)
            self._held_back = self._held_back or self._waiting >= self._bound
            self._changed.notify()

    def reopen(self) -> None:
        """Open the path anew, after everything queued so far. A descriptor stays as it is."""
        if self._path is None:
            return
        with self._changed:
            if not self._closing:
                self._queue.append(None)
                self._changed.notify()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, as far as `timeout_s` reaches, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._given_up = True
            lost = sum(_count(lines) for lines in self._queue if lines)
            self._queue.clear()
            self._dropped += lost
        if lost:
            _log.warning("%s: closed with %d lines unwritten", self._name, lost)

    @property
    def _name(self) -> str:
        return self._path or f"descriptor {self._fd}"

    # The writing thread.

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            if not batch:
                self._open_anew()
                continue
            self._write(batch)
            self._make_room(len(batch))
        if self._path is not None:
            os.close(self._fd)

    def _take(self) -> bytes | None:
        """The next piece of work: lines; nothing, to reopen; None, to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            taken: list[bytes] = []
            size = 0
            while self._queue and size < _BATCH:
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
        with self._changed:
            self._waiting -= written
            # Half, so that a caller is not stopped and started for every line.
            room = self._held_back and self._waiting <= self._bound // 2
            if room:
                self._held_back = False
        if room and self._on_room is not None:
            # The caller's event loop may have been closed before this thread.
            with suppress(RuntimeError):
                self._on_room()

    def _write(self, batch: bytes) -> None:
        start = 0
        try:
            if self._torn:
                # What a full disk cut in two stays one broken line, and breaks no other.
                self._write_piece(b"\n")
            while start < len(batch):
                end = _piece_end(batch, start) if self._atomic else len(batch)
                start += self._write_piece(batch[start:end])
        except OSError as error:
            self._fail(error, batch[start:])
            return
        if self._failing:
            self._failing = False
            _log.warning("%s: writing again; %d lines were lost", self._name, self._dropped)

    def _write_piece(self, piece: bytes) -> int:
        view = memoryview(piece)
        while view:
            try:
                written = os.write(self._fd, view)
            except BlockingIOError:
                self._wait_until_writable()
                continue
            self._torn = view[written - 1] != 0x0A
            view = view[written:]
        return len(piece)

    def _wait_until_writable(self) -> None:
        """Somebody made the descriptor non-blocking; stdout is shared with whoever has it."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while not poll.poll(_PATIENCE_MS):
            if self._given_up:
                raise TimeoutError("given up")

    def _fail(self, error: OSError, unwritten: bytes) -> None:
        # No reader, no space, an input/output error: all mean that these lines are lost.
        # Trying again is left to the next lines; waiting would stop whoever is held back.
        with self._changed:
            self._dropped += _count(unwritten)
        if not self._failing:
            self._failing = True
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
        self._fd, self._atomic, self._torn = fd, _needs_whole_pieces(fd), False


def _open(path: str) -> int:
    # Non-blocking for the sake of a FIFO: without it, one that has no reader would block
    # right here; with it, that is an error. Regular files do not care.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    return os.open(Path(path), flags, 0o640)


def _needs_whole_pieces(fd: int) -> bool:
    """A regular file takes any size in one piece; a pipe or a terminal may be shared."""
    return not stat.S_ISREG(os.fstat(fd).st_mode)


def _piece_end(batch: bytes, start: int) -> int:
    """Where a piece of whole lines ends that a pipe will not cut; a longer line is alone."""
    end = batch.rfind(b"\n", start, start + _WHOLE) + 1
    return end or (batch.find(b"\n", start) + 1) or len(batch)


def _count(lines: bytes) -> int:
    return lines.count(b"\n")
