"""Reads /proc of another user's process, as that user.

With CAP_SYS_PTRACE root can read the descriptors and system calls of every process. In most
containers root does not have it, and can read them only as the user of the process. The kernel
checks the filesystem user id (setfsuid(2)), which belongs to a thread. So it is changed while
this thread reads, and other threads are not affected.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from penstock_supervisor.errors import StartError

_CAP_SYS_PTRACE: Final = 19
_LIBC: Final = ctypes.CDLL(None)
_STATUS: Final = Path("/proc/self/status")


def require_proc() -> None:
    """StartError: /proc is not mounted. The control socket is reached through it, and listening
    sockets and the states of processes are read there."""
    if not _STATUS.exists():
        raise StartError("/proc is not mounted here, and nothing works without it: mount it first")


def _can_read_all_processes() -> bool:
    try:
        status = _STATUS.read_text()
    except OSError:
        return False
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_PTRACE & 1)
    return True


_NEEDS_OWNER: Final = os.geteuid() == 0 and not _can_read_all_processes()


@contextmanager
def as_owner_of(pid: int) -> Iterator[None]:
    """Inside, this thread reads files with the rights of the process' owner. It must not await."""
    try:
        owner = Path(f"/proc/{pid}").stat() if _NEEDS_OWNER else None
    except OSError:
        owner = None
    if owner is None or owner.st_uid == os.geteuid():
        yield
        return
    _LIBC.setfsgid(owner.st_gid)
    _LIBC.setfsuid(owner.st_uid)
    try:
        yield
    finally:
        _LIBC.setfsuid(os.geteuid())
        _LIBC.setfsgid(os.getegid())
