"""Output of children, line by line, with the child's name in front: `web/0 | hello`.

Owns the read ends of the children's pipes, and our own stdout and stderr. A single writer for
each keeps lines whole, and the prefix shows which child wrote a line.

A blocked terminal must not stop the supervisor, and much output must not be lost. So a thread
does the writing (`penstock_worker.telemetry.log_writer`). When its queue is full we stop
*reading*, and the child blocks in its own write, as it would without a supervisor. A proxy must
not: it writes in its event loop, and all clients would wait. Its lines are read all the time, and
lost when the queue is full.

The last lines of each process are kept as well (`last_output`), to be told if it does not start.
"""

import os
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Protocol

from penstock_supervisor.children.last_output import LastOutput
from penstock_worker.telemetry.log_writer import LogWriter

MAX_LINE: Final = 16 << 10
"""Bytes of a line; a longer one is split into several lines."""
_READ_SIZE: Final = 64 << 10
_MAX_DRAINED: Final = 1 << 20
"""Bytes that are read from the pipe of an ended child before its exit is logged."""
_FLUSH_S: Final = 1.0
"""At the end of the run, for a reader that is slow."""
_COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_PROXY_COLOUR: Final = 90


class LineWriter(Protocol):
    """What finished lines are written to: a `LogWriter`."""

    @property
    def full(self) -> bool: ...
    def write(self, lines: bytes) -> None: ...
    def offer(self, lines: bytes) -> None: ...


class Capture:
    """Reads one pipe of one child. It closes the pipe at its end, or with `close`."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        fd: int,
        prefix: bytes,
        writer: LineWriter,
        on_close: Callable[["Capture"], None],
        *,
        can_wait: bool = True,
        last: LastOutput | None = None,
    ) -> None:
        """`can_wait`: the child may block in its write, so that no line is lost. `last` gets each
        line as well, without the prefix."""
        self._loop = loop
        self._fd = fd
        self._prefix = prefix
        self._writer = writer
        self._can_wait = can_wait
        self._last = LastOutput() if last is None else last
        self._on_close = on_close
        self._partial_line = b""
        self.closed = False
        self._reading = False
        self.resume()

    def resume(self) -> None:
        """The writer may have capacity again: go on reading."""
        if not self.closed and not self._reading and not self._must_wait:
            self._reading = True
            self._loop.add_reader(self._fd, self._read)

    def drain(self) -> None:
        """Read what the pipe holds now. It may not end yet: a grandchild can keep it open."""
        budget = _MAX_DRAINED
        while budget > 0 and not self.closed and not self._must_wait and (size := self._read()):
            budget -= size

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._pause()
        os.close(self._fd)
        if self._partial_line:
            self._write([self._partial_line])
            self._partial_line = b""
        self._on_close(self)

    def _read(self) -> int:
        try:
            data = os.read(self._fd, _READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            data = b""
        if not data:
            self.close()
            return 0
        *lines, self._partial_line = split_lines(self._partial_line + data)
        if lines:
            self._write(lines)
        if self._must_wait:
            self._pause()
        return len(data)

    @property
    def _must_wait(self) -> bool:
        return self._can_wait and self._writer.full

    def _write(self, lines: list[bytes]) -> None:
        self._last.add(lines)
        write = self._writer.write if self._can_wait else self._writer.offer
        write(b"".join(self._prefix + line + b"\n" for line in lines))

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)


def split_lines(data: bytes) -> Iterator[bytes]:
    """Split into lines of at most MAX_LINE; the last one is not complete yet."""
    *lines, rest = data.split(b"\n")
    for line in lines:
        for start in range(0, max(len(line), 1), MAX_LINE):
            yield line[start : start + MAX_LINE].removesuffix(b"\r")
    while len(rest) > MAX_LINE:
        yield rest[:MAX_LINE]
        rest = rest[MAX_LINE:]
    yield rest


class Output:
    """Our stdout and stderr, and the captured pipes that are copied to them."""

    def __init__(
        self, loop: AbstractEventLoop, *, stdout: int = 1, stderr: int | LogWriter = 2
    ) -> None:
        """A writer stays the caller's, who has other lines for it as well."""
        self._loop = loop
        self._captures: set[Capture] = set()
        self._colours: dict[str, int] = {}
        self._use_colour = tuple(_is_terminal(target) for target in (stdout, stderr))
        # One writer for each descriptor, also if both are the same terminal or file.
        self._own_writers = [LogWriter(one) for one in (stdout, stderr) if isinstance(one, int)]
        self._log_writers = (
            self._own_writers[0],
            self._own_writers[1] if isinstance(stderr, int) else stderr,
        )
        for log_writer in self._log_writers:
            log_writer.on_capacity = self._on_capacity

    @property
    def lines_lost(self) -> int:
        """Lines that could not be written: of proxies, our own, and all after an error."""
        return sum(log_writer.dropped for log_writer in self._log_writers)

    def capture(
        self,
        name: str,
        stdout: int | None,
        stderr: int,
        *,
        can_wait: bool = True,
        last: LastOutput | None = None,
    ) -> tuple[Capture, ...]:
        """Read a child's pipes from now on, and close them; `name` precedes every line."""
        captures = tuple(
            Capture(
                self._loop,
                fd,
                self._prefix(name, use_colour=self._use_colour[stream]),
                self._log_writers[stream],
                self._captures.discard,
                can_wait=can_wait,
                last=last,
            )
            for stream, fd in enumerate((stdout, stderr))
            if fd is not None
        )
        self._captures.update(captures)
        return captures

    def close(self) -> None:
        """Read what the pipes hold now, write it, and do not wait for more."""
        for capture in tuple(self._captures):
            capture.drain()
            capture.close()
        for log_writer in self._log_writers:
            log_writer.on_capacity = None
        for log_writer in self._own_writers:
            log_writer.close(_FLUSH_S)

    def _prefix(self, name: str, *, use_colour: bool) -> bytes:
        if not use_colour:
            return f"{name} | ".encode()
        index = len(self._colours) % len(_COLOURS)
        colour = self._colours.setdefault(name, _COLOURS[index])
        if name.startswith("proxy/"):
            colour = _PROXY_COLOUR
        return f"\x1b[{colour}m{name} |\x1b[0m ".encode()

    def _on_capacity(self) -> None:
        # Called in the writer's thread, and possibly after the loop has ended.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._resume_all)

    def _resume_all(self) -> None:
        for capture in tuple(self._captures):
            capture.resume()


def _is_terminal(target: int | LogWriter) -> bool:
    return os.isatty(target if isinstance(target, int) else target.fileno())
