"""The scheduling policy of a proxy that only passes connections to workers.

Owns one call, and whether it was made. On a busy core the kernel would interrupt a worker for every
new connection. The proxy would then pass on one or two connections at a time, and each interruption
costs as much as four of them. With SCHED_BATCH (sched(7)) the proxy waits until the worker's time
slice ends, a few milliseconds at most, and then passes on all that have arrived. It gets its share
of the core as before. On an idle core nothing changes. A proxy that forwards bytes does not use it,
because a client waits for each of its turns.

Measured on two busy cores: 13.4 µs of CPU a connection in place of 19, 7 % more connections a
second, and the same p99.

See docs/decisions/0017-sched-batch-under-handoff.md.
"""

import os
from contextlib import suppress


class Scheduling:
    """The policy of this process. Not interrupting others is for one that only passes connections
    on; the services that it has may change."""

    def __init__(self) -> None:
        self._is_ours = False
        """The present policy is not the one that the process was started with."""

    def let_workers_finish(self, wanted: bool) -> None:
        """From now on this process does not preempt others when it wakes; or it does again."""
        before, after = _policies(wanted)
        # A policy that was set from outside is kept, and a container may forbid the call.
        with suppress(OSError):
            if (wanted or self._is_ours) and os.sched_getscheduler(0) == before:
                os.sched_setscheduler(0, after, os.sched_param(0))
                self._is_ours = wanted


def _policies(batch: bool) -> tuple[int, int]:
    """The policy that is changed, and what it becomes."""
    return (os.SCHED_OTHER, os.SCHED_BATCH) if batch else (os.SCHED_BATCH, os.SCHED_OTHER)
