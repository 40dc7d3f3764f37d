"""The figures that the kernel has about one process.

Owns which of them are told, by name of the metric. A process that is gone, or may not be
looked at, has none: whoever asks goes on without. Reads /proc, so it belongs into a thread.
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from penstock_supervisor.kernel.procfs import as_owner_of

_LIMIT: Final = "Max open files"


def process_stats(pid: int) -> dict[str, float]:
    """What the kernel says; without what it will not say, and empty if the process is gone."""
    found: dict[str, float] = {}
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return found
    limits = Path(f"/proc/{pid}/limits")
    with as_owner_of(pid), process.oneshot():
        ask = {
            "penstock_process_open_fds": process.num_fds,
            "penstock_process_max_fds": lambda: soft_fd_limit(limits.read_text()),
            "penstock_process_resident_memory_bytes": lambda: process.memory_info().rss,
            "penstock_process_cpu_seconds_total": lambda: sum(process.cpu_times()[:2]),
            "penstock_process_threads": process.num_threads,
        }
        for name, figure in ask.items():
            with suppress(psutil.Error, OSError, ValueError):
                found[name] = figure()
    return found


def soft_fd_limit(limits: str) -> float:
    """The soft limit in /proc/PID/limits, which everybody may read; prlimit(2) asks who we are."""
    (line,) = (line for line in limits.splitlines() if line.startswith(_LIMIT))
    soft = line.removeprefix(_LIMIT).split()[0]
    return math.inf if soft == "unlimited" else float(soft)
