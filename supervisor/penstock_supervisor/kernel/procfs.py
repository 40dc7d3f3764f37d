"""Looking at another user's process in /proc, with that user's eyes.

Root sees the descriptors and system calls of everybody by CAP_SYS_PTRACE, which it does not
have in most containers. There it may look at what a user's processes do only as that user.
The kernel asks for the user of file accesses (setfsuid(2)), which a thread has for itself: it
is changed for as long as it takes to look, and no other thread notices.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_CAP_SYS_PTRACE: Final = 19
_LIBC: Final = ctypes.CDLL(None)


def _sees_everybody() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_PTRACE & 1)
    return True


_NEEDS_OWNER: Final = os.geteuid() == 0 and not _sees_everybody()


@contextmanager
def as_owner_of(pid: int) -> Iterator[None]:
    """Inside, what the process' own user may see of it can be seen. Nothing may wait there."""
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
