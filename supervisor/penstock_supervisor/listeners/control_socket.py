"""The private directory of a user's runs, and in it the name of each one's control socket.

Owns what makes a directory private, and the names in it: `PID.sock`. Where it is, `config` says;
what is said over the socket is `control`'s.

Somebody else may have made the directory before us, or put a link in its place: a place like
/tmp belongs to everybody. So it is made with mode 0700, never opened wider and never taken
over; opened once, without following a link at its end; and from then on everything happens
relative to that descriptor. (A path through /proc/self/fd is also short: the kernel takes
no more than 107 bytes of a socket's name.)

A socket gets its name when it listens already. One that refuses to be connected to is thus
what a killed run left, and is removed by the next.
"""

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from penstock_supervisor.errors import StartError

_MODE: Final = 0o700
_SOCKET_MODE: Final = 0o600
_BACKLOG: Final = 64
_NAME: Final = re.compile(r"(\d+)(-\d+)?\.sock")
_BEFORE: Final = ".new"
"""What the name of a socket ends in that does not listen yet."""
_TRIES: Final = 8
"""A run that ends may take the directory away while we enter it."""


class RefusedError(StartError):
    """The directory is not one that only we can write to."""


class RunDir:
    """One of them, open. RefusedError says what is wrong with it; OSError: there is none."""

    def __init__(self, path: Path, *, make: bool) -> None:
        self.path = path
        self._made = make and _made(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.lexists(path):
                raise RefusedError(f"{path}: not a directory, or a link to one") from None
            raise
        try:
            self.owner = _judge(path, os.fstat(self._fd), strangers=not make)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; one that we made goes, if nobody else's socket is in it."""
        os.close(self._fd)
        if self._made:
            with suppress(OSError):
                self.path.rmdir()

    def names(self) -> list[str]:
        """Sockets, live ones and others."""
        return sorted(filter(_NAME.fullmatch, self._all()))

    def connect(self, name: str, timeout_s: float) -> socket.socket:
        """A connection to the run of that name. ConnectionRefusedError: it is dead."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(self._place(name))
        except BaseException:
            sock.close()
            raise
        return sock

    def sweep(self) -> None:
        """Remove what killed runs left."""
        for name in self.names():
            if self.is_dead(name):
                self.remove(name)
        for name in self._all():
            pid = name.removesuffix(_BEFORE)
            if name.endswith(_BEFORE) and not Path("/proc", pid.partition("-")[0]).exists():
                self.remove(name)

    def bind(self, sock: socket.socket, pid: int) -> str:
        """Make it listen, and then give it a name, which is returned."""
        before = f"{pid}-{id(sock)}{_BEFORE}"
        # A socket's file has the mode of the socket: it is never anybody else's to open.
        os.fchmod(sock.fileno(), _SOCKET_MODE)
        sock.bind(self._place(before))
        try:
            os.chmod(before, _SOCKET_MODE, dir_fd=self._fd)
            sock.listen(_BACKLOG)
            for name in _names(pid):
                if self._take(before, name):
                    return name
        finally:
            self.remove(before)
        raise AssertionError

    def remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    def identity(self, name: str) -> tuple[int, int] | None:
        """Which file has that name; None if there is none."""
        try:
            found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def is_dead(self, name: str) -> bool:
        """Nobody listens there any more."""
        try:
            # Not waiting: one whose queue is full is alive.
            self.connect(name, 0.0).close()
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
        return False

    def _all(self) -> list[str]:
        return os.listdir(self._fd)  # noqa: PTH208 — pathlib knows no descriptors

    def _take(self, before: str, name: str) -> bool:
        for _ in range(2):
            try:
                os.link(before, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except FileExistsError:
                # A container's first process has the same number each time.
                if not self.is_dead(name):
                    return False
                self.remove(name)
            else:
                return True
        return False

    def _place(self, name: str) -> str:
        return f"/proc/self/fd/{self._fd}/{name}"


class ControlSocket:
    """The listening socket of one run, by its name in the directory. Closes both."""

    def __init__(self, path: Path) -> None:
        """OSError, RefusedError."""
        for left in reversed(range(_TRIES)):
            directory = RunDir(path, make=True)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                directory.sweep()
                self.name = directory.bind(self.socket, os.getpid())
            except BaseException as error:
                self.socket.close()
                directory.close()
                if isinstance(error, FileNotFoundError) and left:
                    continue
                raise
            break
        self._directory = directory
        self._file = directory.identity(self.name)

    @property
    def path(self) -> Path:
        return self._directory.path / self.name

    def close(self) -> None:
        self.socket.close()
        if self._directory.identity(self.name) == self._file:
            self._directory.remove(self.name)
        self._directory.close()


def _made(path: Path) -> bool:
    try:
        path.mkdir(_MODE)
    except FileExistsError:
        return False
    return True


def _judge(path: Path, found: os.stat_result, *, strangers: bool) -> int:
    """Who it belongs to. Who only looks may be root, and look at anybody's."""
    us = os.geteuid()
    if found.st_uid != us and not (strangers and us == 0):
        raise RefusedError(f"{path}: belongs to uid {found.st_uid}, and we are uid {us}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise RefusedError(f"{path}: others may write to it (mode {mode:04o}); expected 0700")
    return found.st_uid


def _names(pid: int) -> Iterator[str]:
    """One process may have several runs."""
    yield f"{pid}.sock"
    yield from (f"{pid}-{number}.sock" for number in range(2, 1 << 16))
