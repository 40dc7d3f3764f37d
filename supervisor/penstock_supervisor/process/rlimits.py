"""Raises the supervisor's limit of descriptors, and restores it in children.

Each worker needs a few descriptors (pipes, channel, link, pidfd), so a few hundred workers need
more than the usual soft limit of 1024. That limit is low because programs with select(2) break
above it, so children get the limit that we inherited.
"""

import resource
from typing import Final

from penstock_supervisor.errors import StartError

_INHERITED: Final = resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_to_hard(needed: int) -> None:
    """Raise our soft limit to the hard limit. StartError: that is less than what is needed."""
    _, hard = _INHERITED
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if problem := shortage(needed):
        raise StartError(problem)


def shortage(needed: int) -> str:
    """Why so many descriptors are too many, as one line. Empty: they are not."""
    _, hard = _INHERITED
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return ""
    return (
        f"the limit of open files is {hard}, and this run needs {needed}: "
        f"raise it with ulimit -n {needed}, or LimitNOFILE={needed} for systemd"
    )


def restore() -> None:
    """Restore the inherited limits; called in a child before exec."""
    resource.setrlimit(resource.RLIMIT_NOFILE, _INHERITED)
