"""What the supervisor tells a front, and what a front tells back.

One JSON object a line on the channel (`penstock_worker.channel`); `cmd` names it. The
supervisor owns *does the process live*, the front owns *is it in the rotation*; these
messages are the whole of what they know of each other. No I/O, no clock.

supervisor → front
    CONFIGURE  config=FrontConfig (as JSON)     first, once; listeners are inherited
    ACCEPT                                      the listeners listen: accept from now on
    JOIN       service, slot                    the slot's process is ready: check it
    LEAVE      service, slot                    the slot's process is gone
    STATS      seq                              answered: seq, metrics, pools
    REOPEN                                      open log files anew
    DRAIN                                       accept no more, finish, exit 0
front → supervisor
    READY                                       configured; waits for ACCEPT
    FAILED     reason                           cannot start; then exit 78
    ROTATION   service, slot, state, reason     a worker entered or left the rotation
    STATS      seq, metrics, pools
"""

from typing import Final

from penstock_worker.contract import FAILED, READY, STATS

__all__ = [
    "ACCEPT",
    "CONFIGURE",
    "DRAIN",
    "FAILED",
    "JOIN",
    "LEAVE",
    "READY",
    "REOPEN",
    "ROTATION",
    "STATS",
]

ACCEPT: Final = "accept"
CONFIGURE: Final = "configure"
JOIN: Final = "join"
LEAVE: Final = "leave"
REOPEN: Final = "reopen"
DRAIN: Final = "drain"
ROTATION: Final = "rotation"
