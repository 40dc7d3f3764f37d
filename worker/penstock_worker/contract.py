"""The names that make a process a worker: variables, messages, exit codes.

Owns these names for both sides: a misspelt one is an AttributeError, and not a worker that waits
for ever. No I/O, no clock.

The environment tells a worker which one it is (service, slot, scheme), where its connections come
from (HOST and PORT, LISTEN_FDS, or links to the proxies), and which inherited descriptor is the
channel to the supervisor. The channel is Node's: one JSON value a line, with descriptors beside
them. Our own messages are objects whose `cmd` starts with INTERNAL. Node shows no program a
command that starts with NODE_, so a program that does not know us never sees them. A worker
removes all of these variables from the environment of its child processes.
"""

from typing import Final

PORT: Final = "PORT"
HOST: Final = "HOST"
SOCKET: Final = "PENSTOCK_SOCKET"
"""Path of the unix socket where proxies connect, beside PORT and HOST. Absent: they use these."""
SERVICE: Final = "PENSTOCK_SERVICE"
SLOT: Final = "PENSTOCK_SLOT"
SCHEME: Final = "PENSTOCK_SCHEME"
"""ports, handoff, shared or reuseport."""
NODE_SLOT: Final = "NODE_APP_INSTANCE"
"""pm2's name for the slot, for programs that were written for pm2."""
CHANNEL_FD: Final = "PENSTOCK_CHANNEL_FD"
"""Decimal number of the inherited end of the channel (AF_UNIX, SOCK_STREAM)."""
LINK_FD: Final = "PENSTOCK_LINK_FD"
"""Decimal numbers, separated by commas, of the inherited ends of the links to the proxies
(AF_UNIX, SOCK_SEQPACKET), one to each. Under `handoff` connections come over them."""
LISTEN_FDS: Final = "LISTEN_FDS"
LISTEN_PID: Final = "LISTEN_PID"
LISTEN_FDNAMES: Final = "LISTEN_FDNAMES"
LISTEN_START: Final = 3
"""The first passed socket, as sd_listen_fds(3) has it."""
ACCESS_LOG: Final = "PENSTOCK_ACCESS_LOG"
"""Where a worker without a proxy writes its access log: "FORMAT:WHERE". FORMAT is json or
combined, WHERE an inherited descriptor's number or a path. Absent: nowhere."""
ACCEPT_PROXY: Final = "PENSTOCK_ACCEPT_PROXY"
"""[seconds, [network, …]] in JSON: every connection begins with a PROXY header, which has to be
complete in that time and to come from one of those networks. Absent: none does."""

BOUNDS: Final = "PENSTOCK_BOUNDS"
"""Limits on clients, where no proxy has them: an object in JSON, see `limits`. Absent: a proxy
has them."""

AWAIT_ACCEPT: Final = "PENSTOCK_AWAIT_ACCEPT"
"""1: the worker starts and is READY, and answers PING and PROBE, but accepts nothing before ACCEPT.
So clients come to it only when it has passed a check. Absent: it accepts as soon as it can."""

ON_UNCAUGHT: Final = "PENSTOCK_ON_UNCAUGHT"
"""log or retire: what an uncaught exception leads to. Absent: log."""

SCRUBBED: Final = (
    PORT, HOST, SOCKET, SERVICE, SLOT, SCHEME, NODE_SLOT, CHANNEL_FD, LINK_FD, ACCESS_LOG,
    ACCEPT_PROXY, BOUNDS, AWAIT_ACCEPT, ON_UNCAUGHT,
    LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES,
    "NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE", "NODE_UNIQUE_ID",
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
)  # fmt: skip
"""Removed from what the supervisor inherits, which may itself be a worker of another one."""

INTERNAL: Final = "NODE_PENSTOCK_"
"""What the `cmd` of our own messages starts with. All other messages are the program's."""

# Messages, child to supervisor.
ONLINE: Final = INTERNAL + "ONLINE"
"""{"cmd": ONLINE}: the first message; a child that sends it understands the others."""
READY: Final = INTERNAL + "READY"
"""{"cmd": READY}: clients are served."""
FAILED: Final = INTERNAL + "FAILED"
"""{"cmd": FAILED, "reason": str}: it cannot start, which ends a run that has just begun."""
RETIRE: Final = INTERNAL + "RETIRE"
"""{"cmd": RETIRE, "reason": str, "traceback": str}: replace me. The answer is SIGTERM."""
UNCAUGHT: Final = INTERNAL + "UNCAUGHT"
"""{"cmd": UNCAUGHT, "reason": str}: an exception that nobody caught was logged. Many alike are one
message; how many there were is in the answer to STATS."""
PONG: Final = INTERNAL + "PONG"
"""{"cmd": PONG, "seq": int}, the answer to PING."""
CUT: Final = INTERNAL + "CUT"
"""{"cmd": CUT, "count": int}: so many requests and connections were still open when the time to
finish was over, and were cut. Said once for each time that is over."""

# Supervisor to child.
PING: Final = INTERNAL + "PING"
"""{"cmd": PING, "seq": int}: does the loop run?"""
PROBE: Final = INTERNAL + "PROBE"
"""{"cmd": PROBE} with a connected socket: a health check. Serve it like a client's."""
LISTEN: Final = INTERNAL + "LISTEN"
"""{"cmd": LISTEN} with a listening socket: accept from this one too."""
ACCEPT: Final = INTERNAL + "ACCEPT"
"""{"cmd": ACCEPT}: accept from your sockets, after AWAIT_ACCEPT or PAUSE. Messages are carried out
in order, so the answer to a PING that follows says that it accepts."""
PAUSE: Final = INTERNAL + "PAUSE"
"""{"cmd": PAUSE}: accept nothing from your sockets until ACCEPT. What is open is served, and new
clients wait in the queues, for others or for ACCEPT. A worker that leaves meanwhile takes nothing
from them."""
STOP: Final = INTERNAL + "STOP"
"""{"cmd": STOP, "finish": seconds, "within": seconds}: SIGTERM will follow, at once or later. Until
then the worker accepts, but tells those that would stay (WebSockets, event streams) that the end
comes. What is open may take `finish` seconds more; then it is cut, and the program cleans up.
What is left after `within` seconds is killed. If it is said again, the earlier end holds."""
MAKE_ROOM: Final = INTERNAL + "MAKE_ROOM"
"""{"cmd": MAKE_ROOM, "count": int}: so many clients wait for a place. End up to as many connections
that have no request. Said again for as long as somebody waits."""
REOPEN: Final = INTERNAL + "REOPEN"
"""{"cmd": REOPEN}: open the access log again."""

# Both ways.
STATS: Final = INTERNAL + "STATS"
"""Question {"cmd": STATS, "seq": int}; answer with the same `seq` and `metrics`. A child that
exits sends one more, with None as `seq`."""

EXIT_FAILED: Final = 78
"""EX_CONFIG of sysexits.h: the child sent FAILED."""

DUMP_STACKS_SIGNAL: Final = 49
"""SIGRTMIN+15. A worker that runs our runtime and was READY writes the stacks of all threads and
tasks to its stderr, although its loop is blocked. Send it to that process alone: any other would
be killed by it."""
