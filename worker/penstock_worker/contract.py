"""The names that make a process a worker: variables, messages, exit codes.

Both sides import this and nothing else in common, so a name that is mistyped is an
AttributeError and not a worker that waits for ever. No I/O, no clock.

A worker is told by its environment where it stands (service, slot), where it has to
listen (HOST, PORT) and, if it is one of our own runtimes, on which inherited descriptor
the channel to the supervisor is. The channel carries one JSON object a line; `cmd` says
what it is. Everything here is scrubbed from the environment that a worker passes on.
"""

from typing import Final

PORT: Final = "PORT"
HOST: Final = "HOST"
SERVICE: Final = "PENSTOCK_SERVICE"
SLOT: Final = "PENSTOCK_SLOT"
NODE_SLOT: Final = "NODE_APP_INSTANCE"
"""What pm2 calls the slot; programs written for pm2 look for it."""
CHANNEL_FD: Final = "PENSTOCK_CHANNEL_FD"
"""Decimal number of the inherited end of the channel (AF_UNIX, SOCK_STREAM)."""

SCRUBBED: Final = (
    PORT, HOST, SERVICE, SLOT, NODE_SLOT, CHANNEL_FD,
    "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    "NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE", "NODE_UNIQUE_ID",
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
)  # fmt: skip
"""Never inherited: the supervisor itself may be somebody's worker."""

# Messages, child to supervisor.
READY: Final = "ready"
"""{"cmd": "ready"}: the port is served."""
FAILED: Final = "failed"
"""{"cmd": "failed", "reason": str}: cannot start, and trying again would not help."""
STATS: Final = "stats"
"""Asked {"cmd": "stats", "seq": int}, answered with the same `seq` and `metrics`."""

EXIT_FAILED: Final = 78
"""EX_CONFIG of sysexits.h: the child said FAILED; a restart would only say it again."""
