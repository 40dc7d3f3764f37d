"""The names that make a process a worker: variables, messages, exit codes.

Both sides import this and nothing else in common, so a name that is mistyped is an
AttributeError and not a worker that waits for ever. No I/O, no clock.

A worker is told by its environment where it stands (service, slot, scheme), where its
connections come from (HOST and PORT, LISTEN_FDS, or links to the fronts) and on which
inherited descriptor the channel to the supervisor is. The channel is Node's: one JSON value a
line, descriptors beside them. What is ours and not the program's is an object whose `cmd`
starts with INTERNAL; Node shows no program a command that starts with NODE_, so one that
knows nothing of us is not disturbed. Everything here is scrubbed from the environment that a
worker passes on.
"""

from typing import Final

PORT: Final = "PORT"
HOST: Final = "HOST"
SERVICE: Final = "PENSTOCK_SERVICE"
SLOT: Final = "PENSTOCK_SLOT"
SCHEME: Final = "PENSTOCK_SCHEME"
"""ports, handoff, shared or reuseport."""
NODE_SLOT: Final = "NODE_APP_INSTANCE"
"""What pm2 calls the slot; programs written for pm2 look for it."""
CHANNEL_FD: Final = "PENSTOCK_CHANNEL_FD"
"""Decimal number of the inherited end of the channel (AF_UNIX, SOCK_STREAM)."""
LINK_FD: Final = "PENSTOCK_LINK_FD"
"""Decimal numbers, with commas between, of the inherited ends of the links to the fronts
(AF_UNIX, SOCK_SEQPACKET), one to each: connections come over them, under `handoff`."""
LISTEN_FDS: Final = "LISTEN_FDS"
LISTEN_PID: Final = "LISTEN_PID"
LISTEN_FDNAMES: Final = "LISTEN_FDNAMES"
LISTEN_START: Final = 3
"""The first passed socket, as sd_listen_fds(3) has it."""
ACCESS_LOG: Final = "PENSTOCK_ACCESS_LOG"
"""Where a worker that has no front before it writes its access log: "FORMAT:WHERE", FORMAT
json or combined, WHERE an inherited descriptor's number or a path. Absent: nowhere."""
ACCEPT_PROXY: Final = "PENSTOCK_ACCEPT_PROXY"
"""[seconds, [network, …]] in JSON: every connection begins with a PROXY header, which comes in
that time and from one of those. Absent: none does."""

BOUNDS: Final = "PENSTOCK_BOUNDS"
"""What clients may take, where no front bounds it: an object in JSON, see `bounds`. Absent: a
front does."""

SCRUBBED: Final = (
    PORT, HOST, SERVICE, SLOT, SCHEME, NODE_SLOT, CHANNEL_FD, LINK_FD, ACCESS_LOG, ACCEPT_PROXY,
    BOUNDS,
    LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES,
    "NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE", "NODE_UNIQUE_ID",
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
)  # fmt: skip
"""Never inherited: the supervisor itself may be somebody's worker."""

INTERNAL: Final = "NODE_PENSTOCK_"
"""What the `cmd` of our own messages starts with. Everything else is the program's."""

# Messages, child to supervisor.
ONLINE: Final = INTERNAL + "ONLINE"
"""{"cmd": ONLINE}: the first word; whoever says it understands the rest."""
READY: Final = INTERNAL + "READY"
"""{"cmd": READY}: clients are served."""
FAILED: Final = INTERNAL + "FAILED"
"""{"cmd": FAILED, "reason": str}: cannot start, and trying again would not help."""
RETIRE: Final = INTERNAL + "RETIRE"
"""{"cmd": RETIRE, "reason": str, "traceback": str}: replace me; SIGTERM is the answer."""
PONG: Final = INTERNAL + "PONG"
"""{"cmd": PONG, "seq": int}, the answer to PING."""

# Supervisor to child.
PING: Final = INTERNAL + "PING"
"""{"cmd": PING, "seq": int}: is somebody there?"""
PROBE: Final = INTERNAL + "PROBE"
"""{"cmd": PROBE} with a connected socket: serve it like a client's; it is a health check."""
LISTEN: Final = INTERNAL + "LISTEN"
"""{"cmd": LISTEN} with a listening socket: accept from this one too."""
REOPEN: Final = INTERNAL + "REOPEN"
"""{"cmd": REOPEN}: open the access log anew."""

# Both ways.
STATS: Final = INTERNAL + "STATS"
"""Asked {"cmd": STATS, "seq": int}, answered with the same `seq` and `metrics`. Said once more,
without being asked and with None, by one that leaves."""

EXIT_FAILED: Final = 78
"""EX_CONFIG of sysexits.h: the child said FAILED; a restart would only say it again."""
