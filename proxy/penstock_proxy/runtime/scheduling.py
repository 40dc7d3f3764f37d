"""The scheduling policy of a proxy that only passes connections to workers.

Owns one call. On a busy core the kernel would interrupt a worker for every new connection. The
proxy would then pass on one or two connections at a time, and each interruption costs as much as
four of them. With SCHED_BATCH (sched(7)) the proxy waits until the worker's time slice ends, a few
milliseconds at most, and then passes on all that have arrived. It gets its share of the core as
before. On an idle core nothing changes. A proxy that forwards bytes does not use it, because a
client waits for each of its turns.

Measured on two busy cores: 13.4 µs of CPU a connection in place of 19, 7 % more connections a
second, and the same p99.

See docs/decisions/0017-sched-batch-under-handoff.md.
"""

import os
from contextlib import suppress


def let_workers_finish() -> None:
    """From now on this process does not preempt others when it wakes."""
    # A policy that was set from outside is kept, and a container may forbid the call.
    with suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
