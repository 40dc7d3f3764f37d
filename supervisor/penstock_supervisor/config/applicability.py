"""Which keys act where: under which schemes and modes, and with which kind of program.

Owns one table, in which every key of a service has its place; one that is missing there is a
failing test. A key that does nothing is an error, because who wrote it relies on it, and here
it is bounds on strangers that would not hold. What a value may be, and what several keys must
agree on beyond that, is said elsewhere (`model`, `rules`). No I/O, no clock.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple, get_args

from penstock_proxy.config import FrozenModel, Mode
from penstock_supervisor.config.diagnostics import Problem
from penstock_supervisor.config.model import Scheme, Service

PROGRAMS: Final = ("app", "command", "upstreams")
SCHEMES: Final[tuple[str, ...]] = get_args(Scheme)
MODES: Final[tuple[str, ...]] = get_args(Mode)


class Setting(NamedTuple):
    """What decides which keys of a service act."""

    scheme: str
    mode: str
    program: str
    given: Collection[str]
    """Keys and tables that have a value, other than one that says no."""


class Where(NamedTuple):
    """A place where a key acts: all of these hold."""

    schemes: tuple[str, ...] = SCHEMES
    modes: tuple[str, ...] = MODES
    programs: tuple[str, ...] = PROGRAMS
    beside: tuple[str, ...] = PROGRAMS
    """At least one of these keys is there too."""

    def missing(self, setting: Setting) -> str:
        """What would have to be otherwise; empty: nothing."""
        words = []
        if setting.scheme not in self.schemes:
            words.append(f"scheme = {_listed(self.schemes)}")
        if setting.mode not in self.modes:
            words.append(f"mode = {_listed(self.modes)}")
        if setting.program not in self.programs:
            words.append(" or ".join(self.programs))
        if not any(key in setting.given for key in self.beside):
            words.append(" or ".join(self.beside))
        return " and ".join(words)


class Applicability(NamedTuple):
    """Where a key acts, and why nowhere else."""

    places: tuple[Where, ...]
    why: str = ""
    off: tuple[object, ...] = ()
    """Values that say of any place what is so there anyway."""


_EVERYWHERE: Final = Applicability((Where(),))
_RUN: Final = Applicability((Where(programs=("app", "command")),), "upstreams are run by others")
_PROXY: Final = ("ports", "handoff")
_REQUESTS: Final = Where(("ports",), ("http",))
_READ: Final = "otherwise nothing of ours reads requests"
_CHOOSES: Final = "otherwise the kernel chooses the worker"
_ACCEPTS: Final = "otherwise the workers accept"
_CARRIES: Final = Applicability((Where(("ports",)),), "no other carries a connection's bytes")
_BOUND: Final = Applicability((_REQUESTS,), _READ)
_LIMIT: Final = _BOUND._replace(off=(0,))
_WAITS: Final = Applicability((Where(_PROXY),), f"{_ACCEPTS}, and nobody waits for one")

APPLICABILITY: Final[Mapping[str, Applicability]] = {
    **dict.fromkeys(
        (
            *PROGRAMS, "name", "listen", "socket_mode", "scheme", "mode", "trusted_proxies",
            "accept_proxy", "health.path", "health.interval", "health.timeout", "health.rise",
            "health.fall", "timeouts.stop",
        ),
        _EVERYWHERE,
    ),
    **dict.fromkeys(("workers", "env", "directory", "restart", "timeouts.start"), _RUN),
    "worker_ports": Applicability(
        (Where(("ports",), programs=("app", "command")),),
        "no other gives workers ports of their own",
    ),
    "balance": Applicability((Where(_PROXY),), _CHOOSES),
    "weights": Applicability((Where(_PROXY, programs=("app", "command")),), _CHOOSES),
    "send_proxy": Applicability(
        (Where(("ports",)),), "elsewhere a worker has the client's own connection", ("",)
    ),
    "sni": Applicability((Where(("ports",)),), "no other looks at what a client sends"),
    "tls": Applicability(
        (Where(("ports",)),), "elsewhere the program has the connection, and can speak TLS itself"
    ),
    "forwarding": Applicability((_REQUESTS,), "no other adds fields to a request"),
    "max_connections": Applicability(
        (Where(_PROXY), Where(modes=("http", "tcp"), programs=("app",))), _ACCEPTS, (0,)
    ),
    "handoff_window": Applicability((Where(("handoff",)),), "no other passes connections"),
    **dict.fromkeys(
        ("access_log", "access_log_format", "limits.log_field"),
        Applicability(
            (Where(("ports",)), Where(modes=("http",), programs=("app",))),
            "otherwise nobody of us sees what is to be logged",
            ("off",),
        ),
    ),
    "health.slow_start": Applicability((Where(_PROXY),), _CHOOSES, ("0s",)),
    "ejection": Applicability((Where(_PROXY),), "otherwise nobody sees what traffic does"),
    "retries": Applicability((Where(("ports",)),), "no other asks a worker twice"),
    "timeouts.connect": Applicability((Where(_PROXY),), _ACCEPTS),
    "timeouts.head": Applicability((_REQUESTS, Where(beside=("accept_proxy",))), _READ),
    **dict.fromkeys(("timeouts.body", "timeouts.response"), _BOUND),
    "timeouts.keepalive": Applicability(
        (_REQUESTS, Where(("handoff", "shared", "reuseport"), ("http", "tcp"), ("app",))), _READ
    ),
    "timeouts.total": _BOUND._replace(off=("0s",)),
    "timeouts.tunnel": _CARRIES,
    "timeouts.handshake": Applicability(
        (Where(("ports",), beside=("tls", "sni")),), "otherwise nobody of us speaks TLS"
    ),
    "timeouts.queue": _WAITS,
    **dict.fromkeys(
        ("limits.head", "limits.headers", "limits.target", "limits.response_head"), _BOUND
    ),
    **dict.fromkeys(("limits.body", "limits.min_rate", "limits.requests"), _LIMIT),
    "limits.handshakes": Applicability(
        (Where(("ports",), beside=("tls",)),), "otherwise nobody of us speaks TLS"
    ),
    "limits.connections_per_client": Applicability(
        (Where(("ports",)),), "no other knows which client's connections have ended", (0,)
    ),
    "limits.queue": _WAITS,
    "limits.queue_per_worker": _WAITS._replace(off=(0,)),
    "limits.per_worker": Applicability((Where(_PROXY),), _CHOOSES, (0,)),
    "limits.buffer": _CARRIES,
}  # fmt: skip
"""By key, or by table where all of its keys act in the same places."""


def keys() -> Iterator[str]:
    """Every key of a service, those of its tables with the table's name before them."""
    for key, field in Service.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, FrozenModel):
            yield from (f"{key}.{inner}" for inner in kind.model_fields)
        else:
            yield key


def unfit(setting: Setting) -> Iterator[str]:
    """The keys and tables that do nothing there."""
    for key, reach in APPLICABILITY.items():
        if all(place.missing(setting) for place in reach.places):
            yield key


def of_table(table: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys of a file that do nothing where they stand, with what would make them act."""
    programs = [key for key in PROGRAMS if key in table]
    given = {key for key, value in table.items() if value}
    scheme, mode = table.get("scheme", "ports"), table.get("mode", "http")
    if len(programs) != 1 or scheme not in SCHEMES or mode not in MODES:
        # That is told already, and what follows from it would be guessed.
        return
    setting = Setting(scheme, mode, programs[0], given | {programs[0]})
    for key in unfit(setting):
        where = tuple(key.split("."))
        reach = APPLICABILITY[key]
        if _is_given(table, where, reach.off):
            missing = dict.fromkeys(place.missing(setting) for place in reach.places)
            yield Problem(where, f"only with {', or with '.join(missing)}: {reach.why}")


def _is_given(table: Any, where: tuple[str, ...], off: tuple[object, ...]) -> bool:
    for name in where:
        if not isinstance(table, Mapping) or name not in table:
            return False
        table = table[name]
    return table not in off


def _listed(words: tuple[str, ...]) -> str:
    return " or ".join(f'"{word}"' for word in words)
