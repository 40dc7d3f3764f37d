"""Which processes listen on a TCP port of this machine, for messages and for doubts.

Owns the way from a socket (`sock_diag` finds it) to processes (/proc/PID/fd). Other users'
processes can be read by root only, and those of another container by nobody. So an empty result
means "not known". It reads all of /proc, so it is for rare cases.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from penstock_supervisor.kernel import sock_diag
from penstock_supervisor.kernel.procfs import as_owner_of


def processes_with(inodes: Collection[int]) -> list[int]:
    """The processes that have one of these sockets, as far as we may see."""
    names = {f"socket:[{inode}]" for inode in inodes}
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208
    return [pid for pid in pids if _has_one(pid, names)] if names else []


def has_one(pid: int, inodes: Collection[int]) -> bool:
    """Has the process one of these sockets? False as well if we may not see that."""
    return _has_one(pid, {f"socket:[{inode}]" for inode in inodes})


def describe_holder(port: int) -> str:
    """Who listens on the port, for a message."""
    with suppress(OSError):
        for pid in processes_with(sock_diag.listeners(port)):
            return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    return "another process"


def _has_one(pid: int, names: Collection[str]) -> bool:
    with suppress(OSError), as_owner_of(pid):
        for link in (Path("/proc") / str(pid) / "fd").iterdir():
            with suppress(OSError):
                if str(link.readlink()) in names:
                    return True
    return False
