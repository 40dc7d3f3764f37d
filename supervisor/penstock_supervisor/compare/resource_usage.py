"""What the kernel knows of processes: time, memory, descriptors, and who listens where.

Owns the reading of /proc. A process is read as long as it is there and may be looked at; one
that ended in between counts nothing, because it is not there any more. What the figures mean
is not known here.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PROC: Final = Path("/proc")
_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTEN: Final = "0A"
_ESTABLISHED: Final = "01"
_LINGERS: Final = "06"
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")


class Row(NamedTuple):
    """One TCP socket of this machine."""

    local: int
    """Port."""
    remote: int
    state: str
    """As the kernel writes it: "01" ESTABLISHED, "06" TIME_WAIT, "0A" LISTEN."""
    inode: int


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of processor time, with those of the children that were waited for."""
    return sum(ticks for pid in pids for ticks in _ticks(pid)) * _TICK_S


def own_cpu_s(pids: Iterable[int]) -> float:
    """The same without children: they have a role of their own."""
    return sum(sum(_ticks(pid)[:2]) for pid in pids) * _TICK_S


def rss(pids: Iterable[int]) -> int:
    """Bytes in memory."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(_PROC, str(pid), "statm").read_text().split()[1]) * _PAGE
    return total


def fds(pids: Iterable[int]) -> int:
    """Open descriptors. PermissionError: somebody else's process."""
    total = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            total += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only counted
    return total


def tree(pid: int) -> tuple[int, ...]:
    """The process and all that descend from it; empty when it is gone."""
    try:
        root = psutil.Process(pid)
        return (pid, *(child.pid for child in root.children(recursive=True)))
    except psutil.Error:
        return ()


def outgoing(ports: Collection[int]) -> int:
    """Connections from here to `ports` of this machine: each has a local port of its own.

    Those that are over and linger (TIME_WAIT) are not among them: they go by themselves, and
    how many there are depends on when one looks.
    """
    return sum(
        row.remote in ports and row.local not in ports and row.state != _LINGERS for row in _rows()
    )


def outgoing_of(pids: Collection[int], port: int) -> int:
    """Connections of these processes that are not to the `port` they serve."""
    theirs = {inode for pid, inode in _sockets(pids)}
    return sum(row.inode in theirs and port != row.local and row.remote != 0 for row in _rows())


def listeners(port: int) -> tuple[int, ...]:
    """The oldest processes that listen on a TCP port here, as far as they may be looked at."""
    inodes = {row.inode for row in _rows() if row.local == port and row.state == _LISTEN}
    holders = {pid for pid, inode in _sockets(psutil.pids()) if inode in inodes}
    # Workers inherit the socket of a master, and are found through it.
    return tuple(sorted(pid for pid in holders if _parent(pid) not in holders))


def connected(port: int) -> int:
    """Clients that are connected to a TCP port here."""
    return sum(row.local == port and row.state == _ESTABLISHED for row in _rows())


def _ticks(pid: int) -> tuple[int, int, int, int]:
    """utime, stime, cutime, cstime of proc(5)."""
    try:
        text = Path(_PROC, str(pid), "stat").read_text()
    except OSError:
        return 0, 0, 0, 0
    # The name in parentheses may contain anything.
    fields = text.rpartition(")")[2].split()
    user, system, children_user, children_system = map(int, fields[11:15])
    return user, system, children_user, children_system


def _rows() -> Iterator[Row]:
    for table in _TABLES:
        with suppress(OSError), Path(table).open() as lines:
            next(lines, None)
            for line in lines:
                fields = line.split()
                local, remote = (int(end.rpartition(":")[2], 16) for end in fields[1:3])
                yield Row(local, remote, fields[3], int(fields[9]))


def _sockets(pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Every socket that one of them has, by inode."""
    for pid in pids:
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if match := _SOCKET.fullmatch(str(Path(entry.path).readlink())):
                        yield pid, int(match[1])


def _parent(pid: int) -> int:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return 0
