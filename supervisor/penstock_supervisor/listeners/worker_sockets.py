"""The directory of the unix sockets by which proxies reach the workers of one run.

Owns the directory, `NAME.workers` beside the control socket `NAME.sock`, and the names in it: each
worker has the number of its port as name. A port belongs to one worker of the run at a time, and
the two of a slot alternate, so a name says no more and needs no counting. A worker binds its socket
itself, as it binds its port: what its process is gone from refuses connections at once. (A socket
that the supervisor kept open would let clients wait for nobody.)

The directory belongs to the user of workers and proxies, with mode 0700, so nobody else can connect
or put another file there. What is left of a worker is removed before the next one starts at the
same port, and the rest at the end of the run; of a run that was killed, by the next one.

See docs/decisions/0019-links.md.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from penstock_proxy.net.address import MAX_PATH, Address
from penstock_supervisor.config.model import Service
from penstock_supervisor.config.users import Identity
from penstock_supervisor.errors import StartError
from penstock_supervisor.listeners.control_socket import ControlSocket

_MODE: Final = 0o700
_OTHERS_PASS: Final = 0o711
"""Of the run directory, where another user has to get to its own directory in it."""
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_NAME: Final = "65535.sock"
SUFFIX: Final = ".workers"

_log = logging.getLogger("penstock.supervisor")


class _ImpossibleError(Exception):
    """Why there can be no sockets for workers, in one line."""


class WorkerSockets:
    """Made once for a run."""

    path: Path | None = None
    """The directory; None: there is none, and workers are reached over their ports."""

    def __init__(self, control: ControlSocket | None, identity: Identity | None) -> None:
        """It is made beside the control socket, which has to live longer. `identity`: the user of
        workers and proxies; None: our own."""
        self._why = "the run has no run_dir, where they would be"
        """Why there is no directory."""
        if control is not None:
            try:
                self._open(control, identity)
            except _ImpossibleError as error:
                self._why = str(error)

    def _open(self, control: ControlSocket, identity: Identity | None) -> None:
        run_dir = control.path.parent.absolute()
        self._run_dir = control.directory_fd
        self._name = control.name.removesuffix(".sock") + SUFFIX
        path = run_dir / self._name
        if len(os.fsencode(path / _LONGEST_NAME)) > MAX_PATH:
            raise _ImpossibleError(f"{path} is too long for the path of a socket")
        other = None if identity is None or identity.is_current_user else identity
        try:
            if other is not None:
                self._let_pass(run_dir, other)
            self._fd = self._make(other)
        except OSError as error:
            raise _ImpossibleError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        self.path = path

    def check(self, services: Iterable[Service]) -> None:
        """StartError: one of these services insists on sockets, and there is no directory."""
        for service in services:
            if self.path is None and service.link == "unix":
                raise StartError(
                    f'service.{service.name}.link: no unix sockets here: {self._why}; "auto" uses '
                    "ports then"
                )

    def _let_pass(self, run_dir: Path, user: Identity) -> None:
        os.fchmod(self._run_dir, stat.S_IMODE(os.fstat(self._run_dir).st_mode) | _OTHERS_PASS)
        for directory in run_dir.resolve().parents:
            if not _may_pass(directory.stat(), user):
                raise _ImpossibleError(f"{user.name} may not pass through {directory}")

    def _make(self, owner: Identity | None) -> int:
        remove_stale(self._run_dir)
        with suppress(FileExistsError):
            os.mkdir(self._name, _MODE, dir_fd=self._run_dir)
        fd = os.open(self._name, _OPEN, dir_fd=self._run_dir)
        try:
            # Without the bits that the umask has taken.
            os.fchmod(fd, _MODE)
            _empty(fd)
            if owner is not None:
                os.fchown(fd, owner.uid, owner.gid)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def clear(self, address: Address) -> None:
        """Remove what is at this address: an ended worker has left it. OSError: it cannot be."""
        with suppress(FileNotFoundError):
            os.unlink(Path(address.path).name, dir_fd=self._fd)

    def close(self) -> None:
        """Remove the directory."""
        if self.path is None:
            return
        _empty(self._fd)
        os.close(self._fd)
        with suppress(OSError):
            os.rmdir(self._name, dir_fd=self._run_dir)


def remove_stale(run_dir: int) -> None:
    """Remove the directories of runs that were killed: their control sockets are gone."""
    names = set(os.listdir(run_dir))
    for name in names:
        if name.endswith(SUFFIX) and f"{name.removesuffix(SUFFIX)}.sock" not in names:
            with suppress(OSError):
                fd = os.open(name, _OPEN, dir_fd=run_dir)
                try:
                    _empty(fd)
                finally:
                    os.close(fd)
                os.rmdir(name, dir_fd=run_dir)


def _empty(fd: int) -> None:
    for name in os.listdir(fd):
        try:
            os.unlink(name, dir_fd=fd)
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning("cannot remove %s among workers' sockets: %s", name, error.strerror)


def _may_pass(status: os.stat_result, user: Identity) -> bool:
    """May this user go through a directory? Access lists are not looked at."""
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid in user.groups:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
