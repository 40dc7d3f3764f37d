"""How many descriptors the supervisor may have, and what its children inherit.

A few for each worker (pipes, channel, link, pidfd), so a few hundred workers are more than the
customary soft limit of 1024. That limit is low for the sake of programs that use select(2),
so children get back what we were given.
"""

import resource
from typing import Final

_GIVEN: Final = resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_to_hard() -> None:
    """Take all that we may have."""
    _, hard = _GIVEN
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def restore() -> None:
    """In a child, before it becomes the program."""
    resource.setrlimit(resource.RLIMIT_NOFILE, _GIVEN)
