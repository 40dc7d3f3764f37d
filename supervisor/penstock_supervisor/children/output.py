"""What children say, line by line, with their names in front: `web/0 | hello`.

Owns the reading ends of their pipes and our own stdout and stderr. Lines are whole in our
output because one writer puts them there, and a reader sees whose they are.

Two things must not happen: that a terminal nobody looks at stops the supervisor, and that
output is lost because a child is loud. So a thread writes (`penstock_worker.telemetry.log_writer`),
and when its queue is full we stop *reading*: the child waits in its own write, as it would have
without us.
"""

import os
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Protocol

from penstock_worker.telemetry.log_writer import LogWriter

LONGEST: Final = 16 << 10
"""Bytes of a line; what is longer comes in pieces, each a line of its own."""
_READ: Final = 64 << 10
_MOST_DRAINED: Final = 1 << 20
"""Bytes that are read from a child that is gone before its exit is logged."""
_COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_PROXY: Final = 90


class Lines(Protocol):
    """Where finished lines go: a `LogWriter`."""

    @property
    def full(self) -> bool: ...
    def write(self, lines: bytes) -> None: ...


class Capture:
    """One pipe of one child. Closes it at its end, or when told."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        fd: int,
        prefix: bytes,
        lines: Lines,
        on_close: Callable[["Capture"], None],
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._prefix = prefix
        self._lines = lines
        self._on_close = on_close
        self._rest = b""
        self.closed = False
        self._reading = False
        self.resume()

    def resume(self) -> None:
        """There is room again."""
        if not self.closed and not self._reading and not self._lines.full:
            self._reading = True
            self._loop.add_reader(self._fd, self._read)

    def drain(self) -> None:
        """Take what the pipe still holds. Its end may be far: a grandchild can hold it."""
        left = _MOST_DRAINED
        while left > 0 and not self.closed and not self._lines.full and (got := self._read()):
            left -= got

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._pause()
        os.close(self._fd)
        if self._rest:
            self._lines.write(self._prefix + self._rest + b"\n")
            self._rest = b""
        self._on_close(self)

    def _read(self) -> int:
        try:
            data = os.read(self._fd, _READ)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            data = b""
        if not data:
            self.close()
            return 0
        *whole, self._rest = _cut(self._rest + data)
        if whole:
            self._lines.write(b"".join(self._prefix + line + b"\n" for line in whole))
        if self._lines.full:
            self._pause()
        return len(data)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)


def _cut(data: bytes) -> Iterator[bytes]:
    """Split into lines of at most LONGEST; the last one is what has no end yet."""
    *whole, rest = data.split(b"\n")
    for line in whole:
        for start in range(0, max(len(line), 1), LONGEST):
            yield line[start : start + LONGEST].removesuffix(b"\r")
    while len(rest) > LONGEST:
        yield rest[:LONGEST]
        rest = rest[LONGEST:]
    yield rest


class Output:
    """Our stdout and stderr, and everybody who speaks through them."""

    def __init__(self, loop: AbstractEventLoop, *, stdout: int = 1, stderr: int = 2) -> None:
        self._loop = loop
        self._captures: set[Capture] = set()
        self._colours: dict[str, int] = {}
        # Two descriptors of one terminal or file are two sinks: each keeps its lines whole.
        self._log_writers = tuple(LogWriter(fd, on_capacity=self._room) for fd in (stdout, stderr))
        self._coloured = tuple(_is_terminal(fd) for fd in (stdout, stderr))

    def capture(self, name: str, stdout: int | None, stderr: int) -> tuple[Capture, ...]:
        """Adopt a child's pipes; `name` goes in front of every line."""
        captures = tuple(
            Capture(
                self._loop,
                fd,
                self._prefix(name, coloured=self._coloured[which]),
                self._log_writers[which],
                self._captures.discard,
            )
            for which, fd in enumerate((stdout, stderr))
            if fd is not None
        )
        self._captures.update(captures)
        return captures

    def close(self) -> None:
        """Read what is there, write what is read, wait for nobody."""
        for capture in tuple(self._captures):
            capture.drain()
            capture.close()
        for log_writer in self._log_writers:
            log_writer.close()

    def _prefix(self, name: str, *, coloured: bool) -> bytes:
        if not coloured:
            return f"{name} | ".encode()
        turn = len(self._colours) % len(_COLOURS)
        colour = self._colours.setdefault(name, _COLOURS[turn])
        if name.startswith("proxy/"):
            colour = _PROXY
        return f"\x1b[{colour}m{name} |\x1b[0m ".encode()

    def _room(self) -> None:
        # From the sink's thread, and possibly after the loop has ended.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._resume)

    def _resume(self) -> None:
        for capture in tuple(self._captures):
            capture.resume()


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
