"""The state of a run at one moment, as plain values: the only input of the admin port.

The supervisor makes a `Snapshot`; `/metrics`, `/status`, `/healthz` and `/readyz` are views of
one. It has no references to the supervisor, so a view can be tested without starting anything.
No I/O, no clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

SocketKind = Literal["tcp", "udp", "unix"]
Part = Literal["current", "successor", "draining"]
"""What a process is in its slot: the one that has it, the one that is started to replace it, or
one that finishes what it has."""
StepAction = Literal["replace", "add", "remove", "roll_back"]
ROLLOUT_RESULTS: Final = (
    "succeeded", "refused", "aborted", "rolled_back", "superseded", "cancelled",
)  # fmt: skip


class SocketView(NamedTuple):
    """A listening socket that the supervisor keeps open."""

    service: str
    slot: int | None
    """The worker's or the proxy's slot; None if several processes share the socket."""
    inode: int
    address: str
    kind: SocketKind


class SocketQueue(NamedTuple):
    """The queue of a listening socket. A value is None if this kind of socket does not have it."""

    length: int | None
    """Connections that wait to be accepted."""
    limit: int | None
    overflows: int | None
    """Connections or datagrams that were dropped because the queue was full."""


class TlsView(NamedTuple):
    """The certificates of one service."""

    not_after: Mapping[str, float]
    """When each certificate expires, in seconds since 1970, by the first of its names."""
    reloads: Mapping[str, int]
    """How often changed files were loaded (ok), or could not be used (failed)."""
    current: bool
    """The certificates in use are those on disk."""


class ProcessView(NamedTuple):
    """One process of a slot."""

    part: Part
    state: str
    """A `lifecycle.ProcessState`."""
    pid: int
    address: str
    """Where it listens; empty if not on a port of its own."""
    age_s: float
    connections: int | None
    """Open connections, as it says itself; None: it does not say."""
    member_state: str = ""
    """Of a worker: up if it is in the rotation, else draining, down, ejected, or checking, which
    is before its first good check. Empty for a proxy."""
    number: int = 0
    """Of a worker, as a member of the rotation."""
    series: Mapping[str, Mapping[str, Any]] | None = None
    """What a worker says that it has counted itself: a `penstock_proxy.metrics.Series`."""
    is_silent: bool = False
    """It counts requests, and has not said in time how many: what is known of them is older."""
    socket: str = ""
    """Where proxies connect to it if not at its address: "unix:/path"."""


class UnseenEnd(NamedTuple):
    """The end of a process that counted requests, and whose last numbers nobody has seen."""

    number: int
    """1 for the first one of the run."""
    text: str
    """`proxy/0 was killed by SIGKILL`."""


class ProcessUsage(NamedTuple):
    """What the kernel says of a process. None: it does not say."""

    memory: int | None
    """Resident, in bytes."""
    fds: int | None
    """Open descriptors."""
    connections: int | None
    """Those that were accepted at its own address."""


class StepView(NamedTuple):
    """What a roll-out does to one slot."""

    service: str
    slot: int
    action: StepAction
    state: str
    """waiting, a state of `rollout/replacement_step`, or withdrawn: it begins anew."""
    old_pid: int | None
    new_pid: int | None
    reason: str
    """Why it failed, in a line; empty otherwise."""


class RolloutView(NamedTuple):
    """One roll-out, from its request to its end."""

    number: int
    state: str
    """preparing, applying, rolling, canary, rolling_back or ended."""
    result: str
    """Empty while it runs; then one of ROLLOUT_RESULTS."""
    reason: str
    """Of a result that is not what was asked for: why, in one line."""
    detail: str
    """The same in several lines: the last output of the new process, its traceback, the answer to
    its check."""
    changes: tuple[str, ...]
    """A line for each thing that is changed or left alone."""
    steps: tuple[StepView, ...]
    started_at: float
    """Time of day, seconds since 1970."""
    duration_s: float
    requests: int | None
    """Requests of all services since it began; None: nobody counts them."""
    failed: int | None
    """Those of them, and those connections, that failed; see `observability.request_count`."""
    superseded_by: int | None
    uncounted: tuple[str, ...] = ()
    """Processes whose last numbers are not known: `proxy/0 was killed by SIGKILL`. If there are
    any, `requests` and `failed` are the least that there were."""
    uncounted_services: tuple[str, ...] = ()
    """Those of which nobody counts the requests."""
    verdicts: tuple[str, ...] = ()
    """What was found of each canary that was no worse than the others, or why nothing was."""
    leftover: str = ""
    """Why it cannot be said that one version serves: `web/0 stayed on the new version`."""
    outcome: str = ""
    """Of one that has ended: what is so now, such as `the new version serves`. It has `leftover`,
    if there is something."""


class ReloadRefusal(NamedTuple):
    """A reload that was refused at once."""

    reason: str
    """All problems, in one line."""
    at: float
    """Time of day, seconds since 1970."""


class ReloadAnswer(NamedTuple):
    """What a reload leads to."""

    rollout: int | None
    """The number of the roll-out; None: nothing was begun, it was only asked what would be."""
    joined: bool
    """That roll-out runs already, and does what was asked for."""
    changes: tuple[str, ...]
    """As those of its view."""
    waits: bool = False
    """Something has to end before it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildView:
    """One child: a proxy, or a worker's slot."""

    role: Literal["proxy", "worker"]
    service: str
    """Empty for a proxy, which serves all services."""
    slot: int
    number: int = 0
    """Of its current worker, as a member of the rotation; 0 for a proxy."""
    state: str
    """A `lifecycle.ProcessState`, of the current process."""
    pid: int | None
    address: str
    """Where it listens; empty for a proxy."""
    restarts: Mapping[str, int]
    """Restarts so far by reason: exit, signal, start_timeout, spawn, retire, channel, liveness,
    unhealthy."""
    since_s: float
    """Seconds in this state."""
    last_exit: str
    """"status 1", "SIGKILL", or empty."""
    last_exit_reason: str = ""
    """The same in words, or the program's own reason; also why a process could not be started."""
    crash_loop: bool = False
    """It ended too often, and has not proved since that it can stay ready. So it can be starting
    or ready as well."""
    next_start_s: float | None = None
    """Seconds until it is started again; None: no start is planned."""
    processes: tuple[ProcessView, ...] = ()
    """All of the slot: the current one, then a successor, then those that drain."""
    exits: Mapping[str, int] = field(default_factory=dict)
    """Number of exits of its processes, by exit status ("1") or signal ("SIGKILL")."""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """The last answer of its process to STATS; empty if there was none."""
    fresh: bool = False
    """The process answered the request for this snapshot."""
    scheme: str = ""
    """How it gets connections; empty for a proxy."""
    speaks_protocol: bool = False
    """Its process has sent a message of our protocol, so it answers STATS. A program without our
    code never does."""
    carryover: Mapping[str, Any] = field(default_factory=dict)
    """Counters of other processes of this slot: those that ended, and one that still drains. For
    a worker a `penstock_proxy.metrics.Series`, for a proxy a `counter_carryover.Carryover`."""
    events: Mapping[str, int] = field(default_factory=dict)
    """Number of its events so far, by name."""
    socket: str = ""
    """Where proxies connect to its current process if not at its address: "unix:/path"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    children: tuple[ChildView, ...]
    services: Mapping[str, Mapping[str, Any]]
    """By name: scheme, mode, listen, workers or upstreams (addresses)."""
    uptime_s: float
    ready: bool
    """Every service has a worker in rotation."""
    stopping: bool
    removed: Mapping[str, Any] = field(default_factory=dict)
    """By service: what workers counted whose slots are gone; a `penstock_proxy.metrics.Series`."""
    covered: frozenset[int] = frozenset()
    """Slots of proxies that do not accept at the moment; the others accept for them."""
    silent: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """By service and slot: workers that may hang, and for how many seconds none has answered."""
    listener_fds: int
    channel_fds: int
    """Descriptors of the supervisor itself, by kind."""
    loop_lag: Sequence[float]
    """Of the supervisor's event loop: the counts of a histogram by bucket, and their sum."""
    tasks: int = 0
    """Of the same loop."""
    worker_checks: Mapping[str, Any] = field(default_factory=dict)
    """Health checks by the supervisor, for services without a proxy. It has the form of a proxy's
    answer to STATS."""
    sockets: tuple[SocketView, ...] = ()
    """The listening sockets of all services."""
    tls: Mapping[str, TlsView] = field(default_factory=dict)
    """By service, where the proxy speaks TLS."""
    unseen_ends: tuple[UnseenEnd, ...] = ()
    """The last ones."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By service: connections in the accept queue of a socket when it was closed."""
    log_lines_lost: int = 0
    """Lines for our stdout and stderr that could not be written."""
    rollouts: tuple[RolloutView, ...] = ()
    """The one that runs and the last ones that ended, oldest first."""
    rollout_results: Mapping[str, int] = field(default_factory=dict)
    """Number of roll-outs that ended so far, by result."""
    config_ok: bool = True
    """The last reload has succeeded: it was not refused, and its roll-out ended well."""
    refusal: ReloadRefusal | None = None
    """Of the last reload; None: it was not refused."""
    config_applied_at: float = 0.0
    """When a configuration was applied last, in seconds since 1970: at the start, or by a
    reload."""
