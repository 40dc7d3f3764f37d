"""Which keys act under which schemes and modes, and with which kind of program.

Owns one table with an entry for every key of a service; a test fails for a key without one. A
key that does nothing is an error, because its author relies on it: many keys are bounds on what
clients may do, and such a bound would not hold. What a value may be is in `model`, and all other
rules between keys are in `rules`. No I/O, no clock.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple, get_args

from penstock_proxy.config import FrozenModel, Mode
from penstock_supervisor.config.diagnostics import Problem
from penstock_supervisor.config.model import Scheme, Service

PROGRAMS: Final = ("app", "command", "upstreams")
SCHEMES: Final[tuple[str, ...]] = get_args(Scheme)
MODES: Final[tuple[str, ...]] = get_args(Mode)


class ServiceTraits(NamedTuple):
    """The facts of a service that decide which of its keys act."""

    scheme: str
    mode: str
    program: str
    given: Collection[str]
    """Keys and tables that have a value which is not empty, false or zero."""


class When(NamedTuple):
    """Conditions under which a key acts; all of them have to hold."""

    schemes: tuple[str, ...] = SCHEMES
    modes: tuple[str, ...] = MODES
    programs: tuple[str, ...] = PROGRAMS
    with_keys: tuple[str, ...] = PROGRAMS
    """At least one of these keys is given as well."""

    def unmet(self, traits: ServiceTraits) -> str:
        """The conditions that do not hold, as TOML in words; empty if all hold."""
        words = []
        if traits.scheme not in self.schemes:
            words.append(f"scheme = {_quoted_list(self.schemes)}")
        if traits.mode not in self.modes:
            words.append(f"mode = {_quoted_list(self.modes)}")
        if traits.program not in self.programs:
            words.append(" or ".join(self.programs))
        if not any(key in traits.given for key in self.with_keys):
            words.append(" or ".join(self.with_keys))
        return " and ".join(words)


class Applicability(NamedTuple):
    """When a key acts, and why it does nothing otherwise."""

    conditions: tuple[When, ...]
    """The key acts if any of these holds."""
    why: str = ""
    off_values: tuple[object, ...] = ()
    """Values that switch the key off. They are allowed everywhere, because they change nothing."""


_EVERYWHERE: Final = Applicability((When(),))
_RUN_BY_US: Final = Applicability(
    (When(programs=("app", "command")),), "upstreams are run by others"
)
_PROXIED: Final = ("ports", "handoff")
_PROXIED_HTTP: Final = When(("ports",), ("http",))
_NO_REQUESTS: Final = "otherwise nothing of ours reads requests"
_KERNEL_CHOOSES: Final = "otherwise the kernel chooses the worker"
_WORKERS_ACCEPT: Final = "otherwise the workers accept"
_RELAYED: Final = Applicability((When(("ports",)),), "no other carries a connection's bytes")
_REQUEST_LIMIT: Final = Applicability((_PROXIED_HTTP,), _NO_REQUESTS)
_REQUEST_LIMIT_OR_ZERO: Final = _REQUEST_LIMIT._replace(off_values=(0,))
_QUEUE: Final = Applicability((When(_PROXIED),), f"{_WORKERS_ACCEPT}, and no client waits for one")

APPLICABILITY: Final[Mapping[str, Applicability]] = {
    **dict.fromkeys(
        (
            *PROGRAMS, "name", "listen", "socket_mode", "scheme", "mode", "trusted_proxies",
            "accept_proxy", "health.path", "health.interval", "health.timeout", "health.rise",
            "health.fall", "timeouts.stop",
        ),
        _EVERYWHERE,
    ),
    "on_uncaught": Applicability(
        (When(programs=("app",)),), "no exception of another program is seen here"
    ),
    **dict.fromkeys(
        ("workers", "env", "directory", "restart", "rollout.surge", "timeouts.start"),
        _RUN_BY_US,
    ),
    **dict.fromkeys(
        ("liveness.timeout", "health.restart_after", "rollout.watch", "rollout.canary"),
        _RUN_BY_US._replace(off_values=("0s",)),
    ),
    **dict.fromkeys(
        ("stop_signal", "stop_to"),
        Applicability(
            (When(programs=("command",)),), "an app gets TERM, and stops what it has started"
        ),
    ),
    "worker_ports": Applicability(
        (When(("ports",), programs=("app", "command")),),
        "no other gives workers ports of their own",
    ),
    "link": Applicability(
        (When(("ports",), programs=("app", "command")),),
        "elsewhere no proxy connects to a worker, and the address of an upstream says it",
        ("auto",),
    ),
    "balance": Applicability((When(_PROXIED),), _KERNEL_CHOOSES),
    "weights": Applicability((When(_PROXIED, programs=("app", "command")),), _KERNEL_CHOOSES),
    "send_proxy": Applicability(
        (When(("ports",)),), "elsewhere a worker has the client's own connection", ("",)
    ),
    "sni": Applicability((When(("ports",)),), "no other looks at what a client sends"),
    "tls": Applicability(
        (When(("ports",)),), "elsewhere the program has the connection, and can speak TLS itself"
    ),
    "forwarding": Applicability((_PROXIED_HTTP,), "no other adds fields to a request"),
    "abort_on_close": Applicability((_PROXIED_HTTP,), _NO_REQUESTS, (False,)),
    "max_connections": Applicability(
        (When(_PROXIED), When(modes=("http", "tcp"), programs=("app",))), _WORKERS_ACCEPT, (0,)
    ),
    "handoff_window": Applicability((When(("handoff",)),), "no other passes connections"),
    **dict.fromkeys(
        ("access_log", "access_log_format", "limits.log_field"),
        Applicability(
            (When(("ports",)), When(modes=("http",), programs=("app",))),
            "otherwise neither proxy nor worker sees what is to be logged",
            ("off",),
        ),
    ),
    "health.slow_start": Applicability((When(_PROXIED),), _KERNEL_CHOOSES, ("0s",)),
    "ejection": Applicability((When(_PROXIED),), "otherwise no proxy sees the traffic"),
    **dict.fromkeys(
        ("retries.on", "retries.budget", "retries.min_per_second"),
        Applicability((When(("ports",)),), "no other asks a worker twice"),
    ),
    "retries.attempts": Applicability(
        (_PROXIED_HTTP,), "no other gives a request to a second worker"
    ),
    "timeouts.connect": Applicability((When(_PROXIED),), _WORKERS_ACCEPT),
    "timeouts.head": Applicability(
        (_PROXIED_HTTP, When(with_keys=("accept_proxy",))), _NO_REQUESTS
    ),
    **dict.fromkeys(("timeouts.body", "timeouts.response"), _REQUEST_LIMIT),
    "timeouts.keepalive": Applicability(
        (_PROXIED_HTTP, When(("handoff", "shared", "reuseport"), ("http", "tcp"), ("app",))),
        _NO_REQUESTS,
    ),
    "timeouts.total": _REQUEST_LIMIT._replace(off_values=("0s",)),
    "timeouts.tunnel": _RELAYED,
    "timeouts.half_closed": _RELAYED,
    "timeouts.handshake": Applicability(
        (When(("ports",), with_keys=("tls", "sni")),), "otherwise no TLS is spoken here"
    ),
    "timeouts.queue": _QUEUE,
    **dict.fromkeys(
        ("limits.head", "limits.headers", "limits.target", "limits.response_head"), _REQUEST_LIMIT
    ),
    **dict.fromkeys(("limits.body", "limits.min_rate", "limits.requests"), _REQUEST_LIMIT_OR_ZERO),
    "limits.handshakes": Applicability(
        (When(("ports",), with_keys=("tls",)),), "otherwise no TLS is spoken here"
    ),
    "limits.connections_per_client": Applicability(
        (When(("ports",)),), "no other knows which client's connections have ended", (0,)
    ),
    "limits.queue": _QUEUE,
    "limits.queue_per_worker": _QUEUE._replace(off_values=(0,)),
    "limits.per_worker": Applicability((When(_PROXIED),), _KERNEL_CHOOSES, (0,)),
    "limits.buffer": _RELAYED,
}  # fmt: skip
"""By key, or by table where all of its keys act under the same conditions."""


def keys() -> Iterator[str]:
    """Every key of a service; a key of a table as `table.key`."""
    for key, field in Service.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, FrozenModel):
            yield from (f"{key}.{inner}" for inner in kind.model_fields)
        else:
            yield key


def inapplicable_keys(traits: ServiceTraits) -> Iterator[str]:
    """The keys and tables that do nothing in such a service."""
    for key, applicability in APPLICABILITY.items():
        if all(condition.unmet(traits) for condition in applicability.conditions):
            yield key


def check_table(table: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys of a table that do nothing, each with the conditions under which it would act."""
    programs = [key for key in PROGRAMS if key in table]
    given = {key for key, value in table.items() if value}
    scheme, mode = table.get("scheme", "ports"), table.get("mode", "http")
    if len(programs) != 1 or scheme not in SCHEMES or mode not in MODES:
        # Another check reports this. Which keys act cannot be known until it is corrected.
        return
    traits = ServiceTraits(scheme, mode, programs[0], given | {programs[0]})
    for key in inapplicable_keys(traits):
        location = tuple(key.split("."))
        applicability = APPLICABILITY[key]
        if _is_given(table, location, applicability.off_values):
            unmet = dict.fromkeys(condition.unmet(traits) for condition in applicability.conditions)
            yield Problem(location, f"only with {', or with '.join(unmet)}: {applicability.why}")


def _is_given(table: Any, location: tuple[str, ...], off_values: tuple[object, ...]) -> bool:
    for name in location:
        if not isinstance(table, Mapping) or name not in table:
            return False
        table = table[name]
    return table not in off_values


def _quoted_list(words: tuple[str, ...]) -> str:
    return " or ".join(f'"{word}"' for word in words)
