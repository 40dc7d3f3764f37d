"""The messages between the supervisor and a proxy.

One JSON object a line on the channel (`penstock_worker.channel.channel`); `cmd` names it. The
supervisor owns *does the process live*, the proxy owns *is it in the rotation*; neither knows
more of the other than these messages say. Both are always of one version, so no name here has
to stay. No I/O, no clock.

A message about a member that a proxy does not know (any more) is ignored.

supervisor → proxy
    TARGETS       targets                       some members of what comes next, SERVICE or
                                                UPSTREAMS. One message of all could be longer than
                                                the channel takes, and would keep the loop
    SERVICE       service=ServiceConfig         one service of what comes next, CONFIGURE or
                                                RECONFIGURE. Its targets have come before. Nothing
                                                follows from it alone
    CONFIGURE                                   first, once: these are the services; listeners are
                                                inherited
    RECONFIGURE   seq, finish                   all settings as they are to be from now on: these
                                                are the services;
                                                answered RECONFIGURED. New services are made,
                                                without listeners; those that are missing are
                                                drained, cut after their seconds in `finish` (by
                                                name; else `timeouts.stop`), and removed. Targets:
                                                upstreams are added, removed and changed by
                                                `member`; of workers only the weight and
                                                the checks are changed: `health`, if it is
                                                there, else the service's. One that is up is
                                                checked in the new way when its next check is
                                                due. One that drains only ends in time what it has
    UPSTREAMS     service                       its upstreams are the targets that have come, as if
                                                by RECONFIGURE: a name has got other addresses
    ACCEPT                                      the listeners listen: accept from now on
    LISTEN        service                       with a listening socket: accept from it as well
    UNLISTEN      service, keep                 close the listeners but the newest `keep`, also
                                                those of proxies that are away. What waits in
                                                their queues is accepted first, so the supervisor
                                                has closed its own copies before
    COVER         service, proxy                with that proxy's listener: it is away, so
                                                accept from there too
    UNCOVER       proxy                         it is back
    ADD_MEMBER    service, member, slot, weight, address, health   a worker that may join later.
                                                Its number is its own in the whole run: a worker
                                                and its successor in the same slot are two members.
                                                Without `health` it is checked as its service says.
                                                The address is empty under handoff
    REMOVE_MEMBER service, member               it is gone for good
    LINK          service, member, link, end    with a socket: one end of the link to a process
                                                of that member, "proxy" or "worker"
    UNLINK        service, link                 that process is gone: take back what it left;
                                                answered UNLINKED
    JOIN          service, member, address | link, held   its process is ready: check it. It
                                                listens there, or is at that link's end. `held`,
                                                if it is there: as by HOLD, for this reason
    DRAIN_WORKER  service, member, seq, finish  pick it no more; answered WORKER_DRAINED. What it
                                                still has is cut after `finish` seconds
    LEAVE         service, member               its process is gone
    HOLD          service, member, reason       its process may hang: pick it no more, and give
                                                to others what is on its way to it
    RELEASE       service, member               nobody holds it any more
    CONFIRM       service, member, seq          check it now, and then as always; answered CONFIRMED
    TLS           service, terms, of            a set of so many certificates follows:
    CERTIFICATE   service, names, kind, chain, key   one of them, as PEM; after the last the
                                                set is used for new connections. The key comes
                                                last: a message that is logged is cut. TLS that
                                                RECONFIGURE asks for begins when both are there
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
    RECONFIGURED  seq, error                    empty: it is carried out. Else nothing was changed
    WORKER_DRAINED  seq                         it will not be picked any more. It may still
                                                have requests: it finishes these by itself
    UNLINKED      link                          what it left is taken back
    ROTATION      service, member, state,       a worker entered or left the rotation. recent: of
                  reason, recent                one that is ejected, [member, failures, requests]
                                                of it and all others since it came, at most of
                                                ten seconds
    CONFIRMED     service, member, seq, reason  empty: a check that began since then was good, and
                                                it is in the rotation. Until then each bad check is
                                                answered, with what was wrong
    CHECKED       service, member, answered     a health check got no answer at all, or got one
                                                again. An error status is an answer
    STATS_PART    seq, service, series, rows    a part of the answer of that number. Parts of one
                                                service are added up; the last message is STATS
    STATS         seq, metrics, pools           also unasked, before it exits; seq is null then
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
    "ADD_MEMBER",
    "CERTIFICATE",
    "CHECKED",
    "CONFIGURE",
    "CONFIRM",
    "CONFIRMED",
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
    "LISTEN",
    "PING",
    "PONG",
    "READY",
    "RECONFIGURE",
    "RECONFIGURED",
    "RELEASE",
    "REMOVE_MEMBER",
    "REOPEN",
    "ROTATION",
    "SERVICE",
    "STATS",
    "STATS_PART",
    "TARGETS",
    "TLS",
    "UNCOVER",
    "UNLINK",
    "UNLINKED",
    "UNLISTEN",
    "UPSTREAMS",
    "WORKER_DRAINED",
]

ACCEPT: Final = "accept"
TARGETS: Final = "targets"
SERVICE: Final = "service"
CONFIGURE: Final = "configure"
RECONFIGURE: Final = "reconfigure"
RECONFIGURED: Final = "reconfigured"
UPSTREAMS: Final = "upstreams"
LISTEN: Final = "listen"
UNLISTEN: Final = "unlisten"
COVER: Final = "cover"
UNCOVER: Final = "uncover"
ADD_MEMBER: Final = "add_member"
REMOVE_MEMBER: Final = "remove_member"
LINK: Final = "link"
UNLINK: Final = "unlink"
UNLINKED: Final = "unlinked"
JOIN: Final = "join"
DRAIN_WORKER: Final = "drain_worker"
WORKER_DRAINED: Final = "worker_drained"
LEAVE: Final = "leave"
HOLD: Final = "hold"
RELEASE: Final = "release"
CONFIRM: Final = "confirm"
CONFIRMED: Final = "confirmed"
CHECKED: Final = "checked"
CROWDED: Final = "crowded"
REOPEN: Final = "reopen"
TLS: Final = "tls"
CERTIFICATE: Final = "certificate"
DRAIN: Final = "drain"
ROTATION: Final = "rotation"
STATS_PART: Final = "stats_part"
