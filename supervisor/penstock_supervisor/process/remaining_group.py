"""What a child started and left behind: the rest of its process group, after its leader ended.

Owns the end of these processes. They may be in the middle of somebody's work, for example a
conversion that a request waits for. So they get a signal and the rest of the time, and are killed
only at the deadline. It does not know the child, or why it ended.

The end of a process that is not our child is reported by nothing, so it is polled. There is
nothing to poll in the usual case, where the group ends together with its leader.
"""

import logging
import signal
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import Final

from penstock_supervisor.kernel import process_groups

_POLL_S: Final = 0.05
_MAX_POLL_S: Final = 0.5
_KILLED_S: Final = 5.0
"""How long killed processes may take. Then they are in the kernel, which nobody can change."""
_POLLS_BEFORE_LOG: Final = 4
"""Most end at once, because of the signal. That is not worth a line."""
_MAX_NAMES: Final = 5

_log = logging.getLogger("penstock.supervisor")


class RemainingGroup:
    """Made when the leader was reaped, if its group still exists. Calls `on_end` once."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        group: int,
        name: str,
        deadline: float,
        on_end: Callable[[], None],
        number: signal.Signals | None,
    ) -> None:
        """`number`: the signal that they get now; None: they had it already."""
        self._loop = loop
        self._group = group
        self._name = name
        self._deadline = deadline
        self._on_end = on_end
        self._poll_s = _POLL_S
        self._is_killed = False
        self._polls = 0
        if number is not None:
            process_groups.kill(group, number)
        self._timer: TimerHandle = loop.call_later(0, self._poll)

    def shorten(self, deadline: float) -> None:
        """They have no longer than this."""
        self._deadline = min(self._deadline, deadline)
        self._poll_s = _POLL_S

    def kill(self) -> None:
        """Kill them now."""
        self._is_killed = True
        self._deadline = self._loop.time() + _KILLED_S
        process_groups.kill(self._group, signal.SIGKILL)
        self._poll_s = _POLL_S

    def _poll(self) -> None:
        now = self._loop.time()
        members = self._members()
        if members is not None and not members:
            self._on_end()
            return
        names = _listed(members)
        self._polls += 1
        if self._polls == _POLLS_BEFORE_LOG and not self._is_killed:
            left_s = max(0.0, self._deadline - now)
            _log.info("%s: what it started goes on, at most %.1f s: %s", self._name, left_s, names)
        if now >= self._deadline:
            if self._is_killed:
                _log.error("%s: killed and still there: %s", self._name, names)
                self._on_end()
                return
            _log.warning("%s: what it started is killed at the deadline: %s", self._name, names)
            self.kill()
        wait_s = min(self._poll_s, max(0.0, self._deadline - now))
        self._poll_s = min(self._poll_s * 2, _MAX_POLL_S)
        self._timer = self._loop.call_later(wait_s, self._poll)

    def _members(self) -> list[process_groups.Member] | None:
        """None: there are some, and /proc does not show which."""
        if not process_groups.exists(self._group):
            return []
        return process_groups.living_members(self._group)


def _listed(members: list[process_groups.Member] | None) -> str:
    if members is None:
        return "processes that /proc does not show"
    more = f" and {len(members) - _MAX_NAMES} more" if len(members) > _MAX_NAMES else ""
    return ", ".join(map(str, members[:_MAX_NAMES])) + more
