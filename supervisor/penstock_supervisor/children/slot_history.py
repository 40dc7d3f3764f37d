"""Counts and restarts of one slot, across all processes that ran in it.

A successor takes a slot over from a process that still runs, and continues the slot's counts and
its restart policy. A plain record, written by `child`.
"""

import random
from collections import Counter
from typing import Any

from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.process.restart_policy import RestartPolicy


class SlotHistory:
    def __init__(self, plan: ChildPlan) -> None:
        self.restarts: Counter[str] = Counter()
        """Restarts so far, by reason."""
        self.exits: Counter[str] = Counter()
        """Every end of a process, by exit status or name of the signal."""
        self.last_exit = ""
        self.last_exit_reason = ""
        """Why the last process ended or could not be started, for people."""
        self.was_ready = False
        """A process was ready at least once."""
        self.last_was_ready = False
        """The last process that was started has become ready: the program can start."""
        self.carryover: dict[str, Any] = {}
        """Counters of processes that have ended; see `ChildView.carryover`."""
        self.restart_policy = RestartPolicy(
            max_restarts=plan.restart.max_restarts,
            within_s=plan.restart.within,
            backoff_s=plan.restart.backoff,
            backoff_max_s=plan.restart.backoff_max,
            retry_after_s=plan.restart.retry_after,
            random=random.random,
            first_at_once=plan.role == "proxy",
        )
