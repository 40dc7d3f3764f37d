"""Is a process stopped, as by SIGSTOP, and does it catch a signal? Asked of /proc, which answers
without waiting.

A stopped process keeps its sockets, and the kernel goes on accepting connections for it: no connect
shows that nobody is there. What cannot be read counts as not stopped, and as catching nothing.
"""

from pathlib import Path
from typing import Final

_STOPPED: Final = b"T"
"""By a signal. One that a debugger holds is "t", and is left alone: somebody looks at it."""


def is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # The name of the program is in parentheses and may have any character.
    return stat.rpartition(b") ")[2][:1] == _STOPPED


def catches(pid: int, number: int) -> bool:
    """Has it a handler for this signal? Without one most signals would end it."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return False
    mask = status.partition(b"\nSigCgt:")[2].partition(b"\n")[0]
    return bool(mask) and bool(int(mask, 16) >> (number - 1) & 1)
