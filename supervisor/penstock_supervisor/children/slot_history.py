"""What is counted of a slot, across all processes that ran in it, and what is judged of a child.

`SlotHistory` is for people and metrics: a successor takes the slot over from a process that still
runs, and continues its counts. `StartRecord` is what the next start depends on, and each child has
its own: what a newcomer does must not be charged to the worker that it was to replace.

Plain records, written by `child`.
"""

import random
from collections import Counter
from typing import Any

from penstock_supervisor.children.last_output import LastOutput
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.config.model import Restart
from penstock_supervisor.process.restart_policy import RestartPolicy


class SlotHistory:
    """Shared by the children of a slot that follow each other."""

    def __init__(self) -> None:
        self.restarts: Counter[str] = Counter()
        """Restarts so far, by reason."""
        self.exits: Counter[str] = Counter()
        """Every end of a process, by exit status or name of the signal."""
        self.last_exit = ""
        self.last_exit_reason = ""
        """Why the last process ended or could not be started, for people."""
        self.was_ready = False
        """A process of the slot was ready at least once."""
        self.carryover: dict[str, Any] = {}
        """Counters of processes that have ended; see `ChildView.carryover`."""


class StartRecord:
    """A child's own."""

    def __init__(self, plan: ChildPlan) -> None:
        self.was_ready = False
        """A process of this child was ready at least once."""
        self.last_was_ready = False
        """The last process that was started has become ready: the program can start."""
        self.last_exit = ""
        """The end of its last process: `status 1`, or the name of a signal."""
        self.why_ended = ""
        """Why its last process ended or could not be started, for people."""
        self.last_output = LastOutput()
        """What its last process wrote at last."""
        self.restart_policy = RestartPolicy(
            max_restarts=plan.restart.max_restarts,
            within_s=plan.restart.within,
            backoff_s=plan.restart.backoff,
            backoff_max_s=plan.restart.backoff_max,
            retry_after_s=plan.restart.retry_after,
            random=random.random,
            first_at_once=plan.role == "proxy",
        )

    def use_settings(self, restart: Restart) -> None:
        """Judge by these numbers from now on; what has happened counts as before."""
        self.restart_policy.configure(
            max_restarts=restart.max_restarts,
            within_s=restart.within,
            backoff_s=restart.backoff,
            backoff_max_s=restart.backoff_max,
            retry_after_s=restart.retry_after,
        )
