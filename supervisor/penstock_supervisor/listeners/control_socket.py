"""The private directory of a user's runs, and the control sockets in it.

Owns what makes a directory private, and the names in it: `PID.sock`. `config` decides where it
is, and `control` owns the protocol on the socket.

In a shared directory such as /tmp another user may have created this directory before us, or a
link in its place. So it is created with mode 0700, and a directory that others own or can write
to is refused. It is opened once, without following a link, and used by its descriptor afterwards.
(A path below /proc/self/fd is also short: a socket's path has at most 107 bytes.)

A socket gets its name only after it listens. So a socket that refuses connections was left by a
run that was killed, and the next run removes it.

See docs/decisions/0014-control-over-a-private-socket.md.
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
_TEMPORARY_SUFFIX: Final = ".new"
"""The suffix of a socket's name before it listens."""
_ATTEMPTS: Final = 8
"""Another run that ends may remove the directory before we have a socket in it."""


class UnsafeDirectoryError(StartError):
    """Others can write to the directory, or it is no directory."""


class RunDir:
    """An open run directory. UnsafeDirectoryError: it is not private. OSError: it cannot be
    opened."""

    def __init__(self, path: Path, *, make: bool) -> None:
        self.path = path
        self._made_here = make and _make_directory(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.lexists(path):
                raise UnsafeDirectoryError(f"{path}: not a directory, or a link to one") from None
            raise
        try:
            self.owner = _check_access(path, os.fstat(self._fd), any_owner=not make)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Close it. If we created it and it is empty, remove it."""
        os.close(self._fd)
        if self._made_here:
            with suppress(OSError):
                self.path.rmdir()

    def names(self) -> list[str]:
        """Names of all control sockets, also stale ones."""
        return sorted(filter(_NAME.fullmatch, self._entries()))

    def connect(self, name: str, timeout_s: float) -> socket.socket:
        """Connect to the socket of that name. ConnectionRefusedError: its run is dead."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(self._proc_path(name))
        except BaseException:
            sock.close()
            raise
        return sock

    def remove_stale(self) -> None:
        """Remove sockets that killed runs left."""
        for name in self.names():
            if self.is_stale(name):
                self.remove(name)
        for name in self._entries():
            pid = name.removesuffix(_TEMPORARY_SUFFIX).partition("-")[0]
            if name.endswith(_TEMPORARY_SUFFIX) and not Path("/proc", pid).exists():
                self.remove(name)

    def bind(self, sock: socket.socket, pid: int) -> str:
        """Bind the socket, listen, and give it a final name, which is returned."""
        temporary = f"{pid}-{id(sock)}{_TEMPORARY_SUFFIX}"
        # The file gets the mode of the socket, so others can never open it.
        os.fchmod(sock.fileno(), _SOCKET_MODE)
        sock.bind(self._proc_path(temporary))
        try:
            os.chmod(temporary, _SOCKET_MODE, dir_fd=self._fd)
            sock.listen(_BACKLOG)
            for name in _candidate_names(pid):
                if self._link_name(temporary, name):
                    return name
        finally:
            self.remove(temporary)
        raise AssertionError

    def remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    def file_id(self, name: str) -> tuple[int, int] | None:
        """Device and inode of the file with that name; None if there is none."""
        try:
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def is_stale(self, name: str) -> bool:
        """True if nothing listens on the socket of that name."""
        try:
            # Without waiting: a run whose queue is full is alive.
            self.connect(name, 0.0).close()
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
        return False

    def _entries(self) -> list[str]:
        return os.listdir(self._fd)  # noqa: PTH208 — pathlib knows no descriptors

    def _link_name(self, temporary: str, name: str) -> bool:
        for _ in range(2):
            try:
                os.link(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except FileExistsError:
                # In a container the supervisor may have the same pid in every run.
                if not self.is_stale(name):
                    return False
                self.remove(name)
            else:
                return True
        return False

    def _proc_path(self, name: str) -> str:
        return f"/proc/self/fd/{self._fd}/{name}"


class ControlSocket:
    """The listening control socket of one run. It owns its directory too."""

    def __init__(self, path: Path) -> None:
        """OSError, RefusedError."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            directory = RunDir(path, make=True)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                directory.remove_stale()
                self.name = directory.bind(self.socket, os.getpid())
            except BaseException as error:
                self.socket.close()
                directory.close()
                if isinstance(error, FileNotFoundError) and attempts_left:
                    continue
                raise
            break
        self._directory = directory
        self._file_id = directory.file_id(self.name)

    @property
    def path(self) -> Path:
        return self._directory.path / self.name

    @property
    def directory_fd(self) -> int:
        """The open run directory."""
        return self._directory.fileno()

    def close(self) -> None:
        self.socket.close()
        if self._directory.file_id(self.name) == self._file_id:
            self._directory.remove(self.name)
        self._directory.close()


def _make_directory(path: Path) -> bool:
    try:
        path.mkdir(_MODE)
    except FileExistsError:
        return False
    return True


def _check_access(path: Path, status: os.stat_result, *, any_owner: bool) -> int:
    """The owner of a private directory. With `any_owner` root accepts those of other users."""
    own_uid = os.geteuid()
    if status.st_uid != own_uid and not (any_owner and own_uid == 0):
        raise UnsafeDirectoryError(
            f"{path}: belongs to uid {status.st_uid}, and we are uid {own_uid}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise UnsafeDirectoryError(
            f"{path}: others may write to it (mode {mode:04o}); expected 0700"
        )
    return status.st_uid


def _candidate_names(pid: int) -> Iterator[str]:
    """The first is the usual name; the others are for further runs of the same process."""
    yield f"{pid}.sock"
    yield from (f"{pid}-{number}.sock" for number in range(2, 1 << 16))
