"""What our runtime hooks into its own process, put in place and taken away in one place.

Owns the order: reports of uncaught exceptions, the dump of stacks, and what a forked child gets
rid of, which includes the other two. Must not know what any of them does.
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from penstock_worker.runtime.forked_child import ForkedChildren
from penstock_worker.runtime.stack_dump import StackDump
from penstock_worker.runtime.supervisor_link import SupervisorLink
from penstock_worker.runtime.uncaught import UncaughtExceptions


@contextmanager
def installed(
    loop: AbstractEventLoop,
    supervisor: SupervisorLink,
    on_uncaught: Callable[[str], None],
    write_error: Callable[[str], object],
) -> Iterator[None]:
    """Inside, this process is a worker's. `on_uncaught(reason)`: see `UncaughtExceptions`."""
    uncaught = UncaughtExceptions(
        loop, supervisor.counters, write_error, supervisor.uncaught, on_uncaught
    )
    stack_dump = StackDump(loop)

    def in_child() -> None:
        stack_dump.reset()
        uncaught.restore()

    uncaught.install()
    stack_dump.install()
    children = ForkedChildren(loop, supervisor.descriptors, in_child)
    try:
        yield
    finally:
        # The stack dump stays: without its handler the signal would kill the worker.
        children.close()
        uncaught.summarize()
        uncaught.restore()
