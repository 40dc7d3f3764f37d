"""Which processes of a process group are alive. Its leader may have ended before them.

Owns the question whether a group still exists, although its leader was reaped. The kernel gives
the leader's pid to no new process as long as the group has a member. So if a process has that
pid again, then our group has ended, and a signal to its id would reach strangers.

Dead processes that nobody has reaped count for the kernel as members, but not here. With a
process 1 that reaps nobody, as in many containers, they would stay for ever.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_DEAD: Final = "ZX"


class Member(NamedTuple):
    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def exists(group: int) -> bool:
    """Has the group of a reaped leader members? Dead ones that nobody has reaped count."""
    _reap_ours(group)
    if _pid_exists(group):
        return False
    try:
        os.killpg(group, 0)
    except OSError:
        # EPERM: they are another user's by now. Nothing can be done about them.
        return False
    return True


def kill(group: int, number: signal.Signals) -> None:
    """Signal the group of a reaped leader, if it still exists."""
    if exists(group):
        with suppress(OSError):
            os.killpg(group, number)


def living_members(group: int) -> list[Member] | None:
    """Its members that are alive; None: /proc cannot be read."""
    try:
        pids = [int(name) for name in os.listdir(_PROC) if name.isdecimal()]  # noqa: PTH208
    except OSError:
        return None
    if not pids:
        return None
    return list(_living(pids, group))


def _living(pids: list[int], group: int) -> Iterator[Member]:
    for pid in pids:
        with suppress(OSError, ValueError):
            name, state, group_of = parse_stat((_PROC / str(pid) / "stat").read_bytes())
            if group_of == group and state not in _DEAD:
                yield Member(pid, name)


def parse_stat(line: bytes) -> tuple[str, str, int]:
    """Name, state and process group in /proc/PID/stat. The name may have any characters."""
    before, _, after = line.rpartition(b")")
    state, _, group = after.split()[:3]
    return before.partition(b"(")[2].decode(errors="replace"), state.decode(), int(group)


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _reap_ours(group: int) -> None:
    """Reap members that became our children, which is so for process 1 of a container."""
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            continue
