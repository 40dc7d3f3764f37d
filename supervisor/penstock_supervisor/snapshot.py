"""What the supervisor knows at one moment, as plain values: the admin port's only input.

The supervisor makes a `Snapshot`; `/metrics`, `/status`, `/healthz` and `/readyz` are all
views of one. Nothing here can reach back into the supervisor, so a page can be tested without
starting anything. No I/O, no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

SocketKind = Literal["tcp", "udp", "unix"]


class SocketView(NamedTuple):
    """A listening socket that the supervisor keeps open."""

    service: str
    slot: int | None
    """The slot that it belongs to; None when all accept from it, or the proxy does."""
    inode: int
    address: str
    kind: SocketKind


class SocketQueue(NamedTuple):
    """Of a listening socket; None is what its kind does not have."""

    length: int | None
    """Connections that wait to be accepted."""
    limit: int | None
    overflows: int | None
    """Connections, or datagrams, for which there was no room."""


class TlsView(NamedTuple):
    """The certificates of one service."""

    not_after: Mapping[str, float]
    """Seconds since 1970 until each is good, by the first of its names."""
    reloads: Mapping[str, int]
    """How often changed files were taken (ok), or could not be used (failed)."""
    current: bool
    """What is on disk is what is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildView:
    """One child: a proxy, or a worker's slot."""

    role: Literal["proxy", "worker"]
    service: str
    """Empty for a proxy, which serves all of them."""
    slot: int
    state: str
    """`lifecycle.State` by name, lower case."""
    pid: int | None
    address: str
    """Where it listens; empty for a proxy."""
    restarts: Mapping[str, int]
    """Restarts so far by reason: exit, signal, start_timeout, spawn, retire, channel."""
    since_s: float
    """Seconds in this state."""
    last_exit: str
    """"status 1", "SIGKILL", or empty."""
    exits: Mapping[str, int] = field(default_factory=dict)
    """Every end of its processes, by exit status ("1") or signal ("SIGKILL")."""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """Its process' last answer to STATS; empty if that never gave one."""
    fresh: bool = False
    """It answered this time."""
    scheme: str = ""
    """How connections reach it; empty for a proxy."""
    speaks_protocol: bool = False
    """It says of itself what it knows: its answers to STATS count. A program that was merely
    started never does."""
    carryover: Mapping[str, Any] = field(default_factory=dict)
    """What other processes of this slot counted: those that ended, and one that leaves while
    this one took over. Of a worker `penstock_proxy.metrics.Series`, of a proxy
    `carried.Carryover`."""
    events: Mapping[str, int] = field(default_factory=dict)
    """What happened to it so far, by name of the event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    children: tuple[ChildView, ...]
    services: Mapping[str, Mapping[str, Any]]
    """By name: scheme, mode, listen, workers or upstreams (addresses)."""
    uptime_s: float
    ready: bool
    """Every service has a worker in rotation."""
    stopping: bool
    away: frozenset[int] = frozenset()
    """Slots of proxies that others accept for."""
    listener_fds: int
    channel_fds: int
    """Descriptors of the supervisor itself, by kind."""
    loop_lag_s: float
    tasks: int = 0
    """Of the supervisor's event loop."""
    unproxied: Mapping[str, Any] = field(default_factory=dict)
    """What is checked here, of services without a proxy; shaped as a proxy's answer to STATS."""
    sockets: tuple[SocketView, ...] = ()
    """The listening sockets of all services."""
    tls: Mapping[str, TlsView] = field(default_factory=dict)
    """By service, where the proxy speaks TLS."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By service: connections that waited on a socket when it was shut."""
