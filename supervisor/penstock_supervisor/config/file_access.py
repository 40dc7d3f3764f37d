"""Reads the files, and looks at the directories, that a configuration consists of.

Whatever is at a path, the answer is its content or one line that says why not. A FIFO, a device or
a file without an end must not hang the reader or fill its memory, so what is read is a regular file
and has a bound. A mount that hangs can still block; whoever has a loop calls this in a thread
(`blocking`).

A file may be written while it is read. Half of a TOML file is often a valid one, with half of the
services. So a file that changed while it was read, or a moment before, is read again until it is
the same for a while.
"""

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

_READ_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS: Final = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
NO_DIRECTORY: Final = "no such directory"
_CHUNK: Final = 1 << 16
SETTLED_S: Final = 0.2
"""A file that is unchanged for so long is complete. Who writes one takes no break in between."""
_YOUNG_S: Final = 2.0
"""A file that was changed so recently is looked at twice. More than SETTLED_S, because the clock
of a file server may be another one."""
_TRIES: Final = 8
_BEING_WRITTEN: Final = "it is being written; write another file and rename it"


class UnusableFileError(Exception):
    """There is no file that can be read. The text is one line, without the path."""


class Found(NamedTuple):
    """What is in a file, and which version of it that is."""

    data: bytes
    version: tuple[int, ...]
    is_whole: bool
    """It was not changed while it was read, or it is what came out of a pipe."""
    changed_at: float
    """Unix time."""


def read_regular(path: Path, at_most: int) -> bytes:
    """The content of a regular file of at most so many bytes. UnusableFileError. Blocks."""
    return _read(path, at_most).data


def read_given(path: Path, at_most: int) -> bytes:
    """As `read_regular`, or what a pipe has, up to its end: a person waits for it."""
    for _ in range(_TRIES):
        found = _read(path, at_most, or_pipe=True)
        if found.is_whole:
            return found.data
        time.sleep(SETTLED_S)
    raise UnusableFileError(_BEING_WRITTEN)


def read_settled(
    path: Path,
    at_most: int,
    *,
    now: Callable[[], float] = time.time,  # noqa: TID251 — files have the time of day
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """As `read_regular`, of a file that nobody is writing to."""
    before = None
    for _ in range(_TRIES):
        found = _read(path, at_most)
        is_settled = now() - found.changed_at > _YOUNG_S or found == before
        if found.is_whole and is_settled:
            return found.data
        before = found
        sleep(SETTLED_S)
    raise UnusableFileError(_BEING_WRITTEN)


def why_no_directory(path: str | Path) -> str:
    """Why there is no directory at this path, or empty. Blocks."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 — Path.is_dir raises some errors, and hides some
    except FileNotFoundError:
        return NO_DIRECTORY
    except OSError as error:
        text = _reason(error)
        return f"{text[:1].lower()}{text[1:]}"
    except ValueError:
        return "not a path"
    return "" if stat.S_ISDIR(mode) else "not a directory"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _read(path: Path, at_most: int, *, or_pipe: bool = False) -> Found:
    try:
        # Before it is opened: to open a device may have an effect.
        is_pipe = _check_kind(path.stat().st_mode, or_pipe=or_pipe)
        # A pipe is waited for: for who writes to it, and for its end.
        fd = os.open(path, _READ_FLAGS & ~os.O_NONBLOCK if is_pipe else _READ_FLAGS)
        try:
            return _read_open(fd, at_most, or_pipe=or_pipe)
        finally:
            os.close(fd)
    except OSError as error:
        raise UnusableFileError(_reason(error)) from error
    except ValueError as error:
        raise UnusableFileError("not a path") from error


def _check_kind(mode: int, *, or_pipe: bool) -> bool:
    """True: it is a pipe, and may be one."""
    if stat.S_ISREG(mode):
        return False
    if or_pipe and stat.S_ISFIFO(mode):
        return True
    if stat.S_ISDIR(mode):
        raise UnusableFileError(os.strerror(errno.EISDIR))
    kind = next((words for is_kind, words in _KINDS if is_kind(mode)), "something else")
    raise UnusableFileError(f"expected a regular file, and it is {kind}")


def _read_open(fd: int, at_most: int, *, or_pipe: bool) -> Found:
    before = os.fstat(fd)
    _check_kind(before.st_mode, or_pipe=or_pipe)
    data = bytearray()
    while len(data) <= at_most and (chunk := os.read(fd, min(_CHUNK, at_most + 1 - len(data)))):
        data += chunk
    if len(data) > at_most:
        raise UnusableFileError(f"too large: at most {at_most >> 10} KiB")
    after = os.fstat(fd)
    version = _version(after)
    return Found(
        bytes(data),
        version,
        _version(before) == version or stat.S_ISFIFO(before.st_mode),
        max(after.st_mtime, after.st_ctime),
    )


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
