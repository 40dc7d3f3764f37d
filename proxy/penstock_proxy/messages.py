"""The messages between the supervisor and a proxy.

One JSON object a line on the channel (`penstock_worker.channel.channel`); `cmd` names it. The
supervisor owns *does the process live*, the proxy owns *is it in the rotation*; neither knows
more of the other than these messages say. Both are always of one version, so no name here has
to stay. No I/O, no clock.

supervisor → proxy
    CONFIGURE     config=ProxyConfig (as JSON)  first, once; listeners are inherited
    ACCEPT                                      the listeners listen: accept from now on
    COVER         service, proxy                with that proxy's listener: it is away, so
                                                accept from there too
    UNCOVER       proxy                         it is back
    LINK          service, slot, link, end      with a socket: one end of the link to a process
                                                in that slot, "proxy" or "worker"
    UNLINK        service, link                 that process is gone: take back what it left;
                                                answered UNLINKED
    JOIN          service, slot, address | link the slot's process is ready: check it. It
                                                listens there, or is at that link's end
    DRAIN_WORKER  service, slot, seq, finish    pick it no more; answered WORKER_DRAINED. What it
                                                still has is cut after `finish` seconds
    LEAVE         service, slot                 the slot's process is gone
    HOLD          service, slot, reason         the slot's process may hang: pick it no more, and
                                                give to others what is on its way to it
    RELEASE       service, slot                 it answers again
    TLS           service, terms, of            a set of so many certificates follows:
    CERTIFICATE   service, names, kind, chain, key   one of them, as PEM; after the last the
                                                set is used for new connections. The key comes
                                                last: a message that is logged is cut
    STATS         seq                           answered: seq, metrics, pools
    PING                                        answered PONG: is it stuck?
    REOPEN                                      open log files anew
    DRAIN         finish, within                accept no more, finish, exit 0. What a service
                                                still has after its seconds in `finish` (by
                                                name) is cut, and after `within` seconds the
                                                process exits. Said again: the earlier end
                                                holds
proxy → supervisor
    READY                                       configured; waits for ACCEPT
    FAILED        reason                        cannot start; then exit 78
    WORKER_DRAINED  seq                         it will not be picked any more. It may still
                                                have requests: it finishes these by itself
    UNLINKED      link                          what it left is taken back
    ROTATION      service, slot, state, reason  a worker entered or left the rotation
    CHECKED       service, slot, answered       a health check got no answer at all, or got one
                                                again. An error status is an answer
    STATS         seq, metrics, pools
    PONG
    CROWDED       service, count                under handoff: so many wait for a place, and the
                                                workers have the clients that could make room.
                                                At most once a tick, as long as somebody waits
    CUT           count                         so many requests and connections were cut, because
                                                their time to finish was over
"""

from typing import Final

from penstock_worker.contract import CUT, FAILED, PING, PONG, READY, STATS

__all__ = [
    "ACCEPT",
    "CERTIFICATE",
    "CHECKED",
    "CONFIGURE",
    "COVER",
    "CROWDED",
    "CUT",
    "DRAIN",
    "DRAIN_WORKER",
    "FAILED",
    "HOLD",
    "JOIN",
    "LEAVE",
    "LINK",
    "PING",
    "PONG",
    "READY",
    "RELEASE",
    "REOPEN",
    "ROTATION",
    "STATS",
    "TLS",
    "UNCOVER",
    "UNLINK",
    "UNLINKED",
    "WORKER_DRAINED",
]

ACCEPT: Final = "accept"
CONFIGURE: Final = "configure"
COVER: Final = "cover"
UNCOVER: Final = "uncover"
LINK: Final = "link"
UNLINK: Final = "unlink"
UNLINKED: Final = "unlinked"
JOIN: Final = "join"
DRAIN_WORKER: Final = "drain_worker"
WORKER_DRAINED: Final = "worker_drained"
LEAVE: Final = "leave"
HOLD: Final = "hold"
RELEASE: Final = "release"
CHECKED: Final = "checked"
CROWDED: Final = "crowded"
REOPEN: Final = "reopen"
TLS: Final = "tls"
CERTIFICATE: Final = "certificate"
DRAIN: Final = "drain"
ROTATION: Final = "rotation"
