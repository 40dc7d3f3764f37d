"""Is a process stopped, as by SIGSTOP? Asked of /proc, which answers without waiting.

A stopped process keeps its sockets, and the kernel goes on accepting connections for it: no connect
shows that nobody is there. What cannot be read counts as not stopped.
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
