"""Descriptors of the test process: how many are open, and a way to have none left."""

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def descriptors() -> int:
    """How many are open. Those that nobody holds any more are closed first: they are of earlier
    tests."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def next_descriptor() -> int:
    """The number that the next one has which is opened."""
    lowest = os.dup(0)
    os.close(lowest)
    return lowest


@contextmanager
def no_descriptor_left(since: int | None = None) -> Iterator[None]:
    """Not one more can be opened. `since`: `next_descriptor` of before; what was opened since then
    may be closed meanwhile, and makes no room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = next_descriptor() if since is None else since
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
