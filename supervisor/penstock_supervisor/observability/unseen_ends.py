"""Processes that ended without a last word: what they had counted last, nobody has seen.

A process of ours that ends by itself, or because it was told to, sends its counters once more. One
that was killed, or that crashed, takes with it what it had counted since it was last asked, and
what it had in flight. Sums go on without it (`counter_carryover`), so whoever tells a sum has to
name it. Owns who counts, and what is kept of an end. No I/O, no clock.
"""

from collections import deque
from typing import Final

from penstock_supervisor.children.child import Child
from penstock_supervisor.snapshot import UnseenEnd

KEPT: Final = 64
"""The last ones. Of more than these in one roll-out only the number is told."""


class UnseenEnds:
    def __init__(self) -> None:
        self._kept: deque[UnseenEnd] = deque(maxlen=KEPT)
        self._number = 0

    def ended(self, child: Child, *, never_picked: bool) -> None:
        """Its process has ended. `never_picked`: a worker that was never in a rotation."""
        if not counts_requests(child) or _had_nobody(child, never_picked=never_picked):
            return
        if child.stats and child.stats.get("seq", 0) is None:
            return
        # Its own: the slot's last end may be that of the process before it.
        end = child.starts.last_exit
        how = f"exited with {end}" if end.startswith("status ") else f"was killed by {end}"
        self._number += 1
        self._kept.append(UnseenEnd(self._number, f"{child.name} {how}"))

    def all(self) -> tuple[UnseenEnd, ...]:
        """Oldest first."""
        return tuple(self._kept)


def counts_requests(child: Child) -> bool:
    """Does it count requests itself? Where a proxy counts, the end of a worker loses nothing."""
    plan = child.plan
    return plan.role == "proxy" or (plan.runs_our_code and plan.scheme != "ports")


def _had_nobody(child: Child, *, never_picked: bool) -> bool:
    """It cannot have had a client."""
    running, plan = child.running, child.plan
    if running is None or running.ready_at is None or plan.awaits_accept:
        return True
    return never_picked and plan.scheme == "handoff"
