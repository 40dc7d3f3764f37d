"""The figures that the kernel has about one process.

Owns which of them are told, by name of the metric. A process that is gone, or may not be
looked at, has none: whoever asks goes on without. Reads /proc, so it belongs into a thread.
"""

import math
from contextlib import suppress

import psutil


def figures(pid: int) -> dict[str, float]:
    """What the kernel says; without what it will not say, and empty if the process is gone."""
    found: dict[str, float] = {}
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return found
    with process.oneshot():
        ask = {
            "penstock_process_open_fds": process.num_fds,
            "penstock_process_max_fds": lambda: _limit(process.rlimit(psutil.RLIMIT_NOFILE)[0]),
            "penstock_process_resident_memory_bytes": lambda: process.memory_info().rss,
            "penstock_process_cpu_seconds_total": lambda: sum(process.cpu_times()[:2]),
            "penstock_process_threads": process.num_threads,
        }
        for name, figure in ask.items():
            with suppress(psutil.Error):
                found[name] = figure()
    return found


def _limit(soft: int) -> float:
    return math.inf if soft == psutil.RLIM_INFINITY else soft
