"""Resource usage of one process, as the kernel counts it.

Owns which numbers are read, by the name of their metric. A process that has ended, or that we
may not read, has none. It reads /proc, so it must run in a thread.
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from penstock_supervisor.kernel.procfs import as_owner_of

_LIMIT: Final = "Max open files"


def process_stats(pid: int) -> dict[str, float]:
    """Values by metric name, without those that cannot be read; empty if the process is gone."""
    stats: dict[str, float] = {}
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return stats
    limits = Path(f"/proc/{pid}/limits")
    with as_owner_of(pid), process.oneshot():
        readers = {
            "penstock_process_open_fds": process.num_fds,
            "penstock_process_max_fds": lambda: soft_fd_limit(limits.read_text()),
            "penstock_process_resident_memory_bytes": lambda: process.memory_info().rss,
            "penstock_process_cpu_seconds_total": lambda: sum(process.cpu_times()[:2]),
            "penstock_process_threads": process.num_threads,
        }
        for name, read in readers.items():
            with suppress(psutil.Error, OSError, ValueError):
                stats[name] = read()
    return stats


def soft_fd_limit(limits: str) -> float:
    """The soft limit in /proc/PID/limits. Everybody may read that file; prlimit(2) needs rights."""
    (line,) = (line for line in limits.splitlines() if line.startswith(_LIMIT))
    soft = line.removeprefix(_LIMIT).split()[0]
    return math.inf if soft == "unlimited" else float(soft)
