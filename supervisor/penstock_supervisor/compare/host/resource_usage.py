"""CPU time, memory, descriptors and TCP connections of processes, as /proc has them.

A process that has ended counts as zero. Must not know what the numbers are for.
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
_TIME_WAIT: Final = "06"
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")


class TcpSocket(NamedTuple):
    """One TCP socket of this machine."""

    local_port: int
    remote_port: int
    state: str
    """As the kernel writes it: "01" ESTABLISHED, "06" TIME_WAIT, "0A" LISTEN."""
    inode: int


class CpuTime(NamedTuple):
    """Seconds of processor time."""

    user: float
    kernel: float

    @property
    def total(self) -> float:
        return self.user + self.kernel


def cpu_time(pids: Iterable[int]) -> CpuTime:
    """With that of the children that were waited for."""
    ticks = [_ticks(pid) for pid in pids]
    return CpuTime(
        sum(one[0] + one[2] for one in ticks) * _TICK_S,
        sum(one[1] + one[3] for one in ticks) * _TICK_S,
    )


def own_cpu_time(pids: Iterable[int]) -> CpuTime:
    """The same without children, which have a role of their own."""
    ticks = [_ticks(pid) for pid in pids]
    return CpuTime(sum(one[0] for one in ticks) * _TICK_S, sum(one[1] for one in ticks) * _TICK_S)


def rss(pids: Iterable[int]) -> int:
    """Bytes in memory."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(_PROC, str(pid), "statm").read_text().split()[1]) * _PAGE
    return total


def fds(pids: Iterable[int]) -> int:
    """Open descriptors. PermissionError: it is another user's process."""
    total = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            total += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only counted
    return total


def tree(pid: int) -> tuple[int, ...]:
    """The process and all its descendants. Empty if it has ended."""
    try:
        root = psutil.Process(pid)
        return (pid, *(child.pid for child in root.children(recursive=True)))
    except psutil.Error:
        return ()


def connections_to(ports: Collection[int]) -> int:
    """Connections from this machine to these of its ports. Each uses an ephemeral port.

    Connections in TIME_WAIT are not counted: their number depends on the moment.
    """
    return sum(
        sock.remote_port in ports and sock.local_port not in ports and sock.state != _TIME_WAIT
        for sock in _tcp_sockets()
    )


def outgoing_connections(pids: Collection[int], port: int) -> int:
    """Connections of these processes, without those of clients to the `port` that they serve."""
    inodes = {inode for pid, inode in _socket_inodes(pids)}
    return sum(
        sock.inode in inodes and port != sock.local_port and sock.remote_port != 0
        for sock in _tcp_sockets()
    )


def listening_processes(port: int) -> tuple[int, ...]:
    """The processes that listen on a TCP port, without those whose parent does so as well.

    Processes of other users are left out if their descriptors may not be read.
    """
    inodes = {
        sock.inode for sock in _tcp_sockets() if sock.local_port == port and sock.state == _LISTEN
    }
    holders = {pid for pid, inode in _socket_inodes(psutil.pids()) if inode in inodes}
    # Workers inherit the socket of a master, and are found through it.
    return tuple(sorted(pid for pid in holders if _parent(pid) not in holders))


def clients(port: int) -> int:
    """Established connections of clients to a TCP port of this machine."""
    return sum(sock.local_port == port and sock.state == _ESTABLISHED for sock in _tcp_sockets())


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


def _tcp_sockets() -> Iterator[TcpSocket]:
    for table in _TABLES:
        with suppress(OSError), Path(table).open() as lines:
            next(lines, None)
            for line in lines:
                fields = line.split()
                local, remote = (int(end.rpartition(":")[2], 16) for end in fields[1:3])
                yield TcpSocket(local, remote, fields[3], int(fields[9]))


def _socket_inodes(pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(pid, inode) of every socket that these processes have."""
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
