"""How many connections may wait in the accept queue of a listening socket.

Owns the one number that every `listen` of ours is given. The kernel cuts a longer queue to its
own limit (`net.core.somaxconn`) without an error, and code that empties a queue has to
know how many can be in it. Must not know sockets.
"""

from pathlib import Path
from typing import Final

BACKLOG: Final = 4096
"""More than that in the queue is not a burst."""
_LIMIT: Final = Path("/proc/sys/net/core/somaxconn")


def max_backlog() -> int:
    """Connections that a queue of ours holds: BACKLOG, or the kernel's limit if that is less."""
    return min(BACKLOG, _somaxconn())


def _somaxconn() -> int:
    try:
        return int(_LIMIT.read_text())
    except (OSError, ValueError):
        return BACKLOG
