"""Which processes listen on a TCP port of this machine, for messages and for doubts.

Owns the way from a port to sockets (/proc/net) and from these to processes (/proc/PID/fd). Other
users' processes can be read by root only, and those of another container by nobody. So an empty
result means "not known". It reads all of /proc, so it is for rare cases.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from penstock_supervisor.kernel.procfs import as_owner_of

_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN: Final = "0A"


def listening_inodes(port: int) -> set[int]:
    """The sockets that listen on the port, on whichever address."""
    found: set[int] = set()
    for table in _TABLES:
        with suppress(OSError):
            found.update(parse_table(table.read_text(), port))
    return found


def parse_table(text: str, port: int) -> Iterator[int]:
    """The inodes of the listening sockets with this port in a table such as /proc/net/tcp."""
    for line in text.splitlines()[1:]:
        words = line.split()
        if words[3] == _LISTEN and int(words[1].rpartition(":")[2], 16) == port:
            yield int(words[9])


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
        for pid in processes_with(listening_inodes(port)):
            return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    return "another process"


def _has_one(pid: int, names: Collection[str]) -> bool:
    with suppress(OSError), as_owner_of(pid):
        for link in (Path("/proc") / str(pid) / "fd").iterdir():
            with suppress(OSError):
                if str(link.readlink()) in names:
                    return True
    return False
