"""The tables of a configuration, as frozen models.

The keys that proxies act on are defined in `penstock_proxy.config`, next to their only reader.
`Service` adds the keys that say what is run and how. The models validate single values. `rules`
checks what several keys must agree on, and `loader` what depends on this machine. No I/O, no
clock.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from penstock_proxy.config import (
    AddressText,
    Count,
    Duration,
    FrozenModel,
    Health,
    Positive,
    ProxySettings,
    Weight,
)
from penstock_proxy.net.address import parse_address
from penstock_worker.contract import SCRUBBED

ADMIN: Final = "127.0.0.1:9464"
MAX_ID: Final = (1 << 32) - 2
"""The largest user or group id. The next number means "no change" to the kernel."""
STOP_SIGNALS: Final = (
    "SIGTERM", "SIGQUIT", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGABRT",
)  # fmt: skip
"""Signals that programs take for a request to end; WINCH is Apache's."""
MIN_LIVENESS_S: Final = 3.0
MAX_WORKERS: Final = 512
"""Of one service."""
MAX_PROXIES: Final = 64
"""Each proxy checks every worker, and with `handoff` has a link to every worker."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
"""A service's name. It is also a metric label, a prefix in logs and a TOML key without quotes."""
_APP: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class PortRange(NamedTuple):
    """The ports that workers may get, both ends included."""

    first: int
    last: int


def parse_app(text: str) -> str:
    """Validate "module:attribute". ValueError suggests what was probably meant."""
    if _APP.fullmatch(text):
        return text
    path, _, attribute = text.partition(":")
    module = path.removesuffix(".py").strip("./").replace("/", ".")
    guess = f"{module}:{attribute or 'app'}"
    hint = f' (did you mean "{guess}"?)' if _APP.fullmatch(guess) else ""
    raise ValueError(f'expected "module:attribute"{hint}')


def _ports(value: object) -> object:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", str(value))
    if match is None or not 1 <= int(match[1]) <= int(match[2]) <= 65535:
        raise ValueError('expected a range of ports, such as "8101-8199"')
    return PortRange(int(match[1]), int(match[2]))


def _workers(value: object) -> object:
    if type(value) is int:
        return value
    raise ValueError('expected a number of workers or "auto"')


def _proxies(value: object) -> object:
    if type(value) is int:
        return value
    raise ValueError('expected a number of proxies or "auto"')


def _account(value: object) -> object:
    """A user or group: a name, or a number, which may be quoted."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or "\0" in value or value.startswith("-"):
        raise ValueError("expected a name or a number")
    if value.isdecimal() and int(value) > MAX_ID:
        raise ValueError(f"expected a name or a number up to {MAX_ID}")
    return value


def _socket_mode(text: str) -> str:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError('expected a mode in octal, such as "0660"')
    return text


def _reachable(text: str) -> str:
    address = parse_address(text)
    if not address.path and not address.port:
        raise ValueError("expected a port to connect to")
    return text


def _admin(text: str) -> str:
    return str(parse_address(text)) if text else ""


def _access_log(text: str) -> str:
    # A word without a slash is more often a typo ("sdtout") than a file name.
    if text in ("stdout", "off"):
        return text
    if "/" not in text or text.endswith("/") or "\0" in text:
        raise ValueError('expected "stdout", "off" or a path, such as "./access.log"')
    return text


def _variable(name: str) -> str:
    if name in SCRUBBED:
        raise ValueError("expected a variable that penstock does not set itself")
    if not re.fullmatch(r"[^\W\d]\w*", name, re.ASCII):
        raise ValueError("expected the name of a variable")
    return name


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("expected at most 63 letters, digits, - and _")
    return text


def _signal(value: object) -> object:
    """The name of a signal, in capital letters and with SIG."""
    name = f"SIG{value.upper().removeprefix('SIG')}" if isinstance(value, str) else ""
    if name not in STOP_SIGNALS:
        names = ", ".join(f'"{one.removeprefix("SIG")}"' for one in STOP_SIGNALS)
        raise ValueError(f"expected one of {names}")
    return name


def _liveness_timeout(seconds: float) -> float:
    # Less is a busy core or a collection of garbage, and no process that hangs.
    if 0 < seconds < MIN_LIVENESS_S:
        raise ValueError(f'expected "0s" (off), or at least "{MIN_LIVENESS_S:g}s"')
    return seconds


def _text(value: str) -> str:
    # For the kernel a zero byte ends the string.
    if "\0" in value:
        raise ValueError("expected no zero byte")
    return value


def _command(words: tuple[str, ...]) -> tuple[str, ...]:
    # The program must not be empty; an argument may be.
    if not words or not words[0]:
        raise ValueError('expected a program and its arguments, such as ["node", "server.js"]')
    return words


Scheme = Literal["ports", "handoff", "shared", "reuseport"]
Account = Annotated[str, BeforeValidator(_account)]
Text = Annotated[str, AfterValidator(_text)]
Variable = Annotated[str, AfterValidator(_variable)]


class CertificateFiles(FrozenModel):
    """A certificate and its key, PEM both."""

    cert: Annotated[Text, Field(examples=["/etc/ssl/web.pem"])]
    """The certificate, followed by its intermediate certificates."""
    key: Annotated[Text, Field(examples=["/etc/ssl/web.key"])]


class Tls(FrozenModel):
    """TLS with clients: the certificates that the proxy sends, and what it asks of clients."""

    cert: Text | None = None
    key: Text | None = None
    certificates: tuple[CertificateFiles, ...] = ()
    """Several instead of one, chosen by the names in them. The first is for all other names."""
    client_ca: Text | None = None
    client_certificates: Literal["off", "optional", "required"] = "off"
    min_version: Literal["1.2", "1.3"] = "1.2"

    @property
    def files(self) -> tuple[tuple[tuple[str | int, ...], CertificateFiles], ...]:
        """All certificate files, each with its place in this table; empty: no TLS."""
        if self.cert is not None and self.key is not None:
            return (((), CertificateFiles(cert=self.cert, key=self.key)),)
        return tuple((("certificates", at), one) for at, one in enumerate(self.certificates))


class Restart(FrozenModel):
    """When a worker that ended is started again."""

    max_restarts: Count = 5
    """After more exits than this `within` the time below, it is in a crash loop (giveup)."""
    within: Positive = 60.0
    backoff: Positive = 0.1
    """Before the first restart; doubled each time."""
    backoff_max: Positive = 10.0
    """The longest; a worker that was ready for so long has left its crash loop."""
    retry_after: Duration = 30.0
    """Between two starts in a crash loop; 0: none."""


class Liveness(FrozenModel):
    """When a worker that does not answer is replaced."""

    timeout: Annotated[Duration, AfterValidator(_liveness_timeout)] = 30.0
    """After so long without an answer. It gets nothing new after a few seconds. 0: never, and
    nobody asks."""


class Rollout(FrozenModel):
    """How workers are replaced when a new version is rolled out."""

    surge: Annotated[Count, Field(le=MAX_WORKERS)] = 1
    """So many workers of the service are replaced at a time, each beside its old process."""
    watch: Duration = 5.0
    """A new worker has to stay in the rotation for so long, beside the old one, before the old
    one leaves, and has to pass a check at the end of it. One that falls in this time, or does not
    pass that check within `timeouts.start`, ends the roll-out. 0: nobody watches."""
    canary: Duration = 0.0
    """After the first replacement the roll-out waits for so long, and goes on only if the new
    worker fails no more and is no slower than the others. 0: it does not wait."""


class WorkerHealth(Health):
    """Health checks: those of the proxies, and what follows from them here."""

    restart_after: Duration = 60.0
    """A worker that has not been healthy for so long is replaced. 0: never."""


class Upstream(FrozenModel):
    """A server that somebody else runs."""

    address: Annotated[AddressText, AfterValidator(_reachable)]
    weight: Weight = 1

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if isinstance(value, Mapping):
            return value
        match = re.fullmatch(r"(\S+)(?:\s+weight=(\d{1,9}))?", str(value).strip())
        if match is None or not isinstance(value, str):
            raise ValueError('expected "host:port" or "host:port weight=3"')
        return {"address": match[1], "weight": int(match[2] or 1)}


class Service(ProxySettings):
    """One address that is served, and the program behind it."""

    name: Annotated[str, AfterValidator(_name)]
    """The key of its table."""
    listen: Annotated[AddressText, Field(examples=["127.0.0.1:8000"])]
    socket_mode: Annotated[str, AfterValidator(_socket_mode)] | None = None
    """Who may connect to a unix socket; None: as the umask says."""
    scheme: Scheme = "ports"
    app: Annotated[str, AfterValidator(parse_app)] | None = None
    command: Annotated[tuple[Text, ...], AfterValidator(_command)] | None = None
    upstreams: tuple[Upstream, ...] = ()
    workers: Annotated[int, BeforeValidator(_workers), Field(ge=1, le=MAX_WORKERS)] = 2
    weights: tuple[Weight, ...] = ()
    """By slot."""
    worker_ports: Annotated[PortRange, BeforeValidator(_ports)] | None = None
    """None: any free ports. A slot keeps its port."""
    link: Literal["auto", "tcp", "unix"] = "auto"
    """How proxies reach the workers: over their ports, or over a unix socket beside each. auto:
    unix for an `app`, tcp for a `command`, which has to be written for a socket."""
    env: Mapping[Variable, Text] = Field(default_factory=dict)
    directory: Text | None = None
    """Working directory of the program; None: the supervisor's own."""
    stop_signal: Annotated[str, BeforeValidator(_signal)] = "SIGTERM"
    """What asks a `command` to end."""
    stop_to: Literal["leader", "group"] = "group"
    """Who gets it: the process that was started, or all of its process group. An `app`'s children
    are its own: it alone gets TERM."""
    access_log: Annotated[str, AfterValidator(_access_log)] = "stdout"
    restart: Restart = Restart()
    on_uncaught: Literal["log", "retire"] = "log"
    """What an exception that no code of the program caught leads to, beside a line in the log."""
    liveness: Liveness = Liveness()
    rollout: Rollout = Rollout()
    health: WorkerHealth = WorkerHealth()
    tls: Tls = Tls()

    @property
    def has_proxy(self) -> bool:
        """Does a proxy accept this service's connections? Otherwise its workers do."""
        return self.scheme in ("ports", "handoff")

    @property
    def has_program(self) -> bool:
        """Is there a program to run? Otherwise there are only upstreams."""
        return self.app is not None or self.command is not None

    @property
    def has_ports(self) -> bool:
        """Does each of its workers listen on a port of its own?"""
        return self.scheme == "ports" and self.has_program

    @property
    def wants_sockets(self) -> bool:
        """Is each of its workers to be reached over a unix socket?"""
        return self.has_ports and (
            self.link == "unix" or (self.link == "auto" and self.app is not None)
        )


class Config(FrozenModel):
    """The whole configuration of one `penstock run`."""

    admin: Annotated[str, AfterValidator(_admin)] = ADMIN
    """Empty: no admin port."""
    proxies: Annotated[int, BeforeValidator(_proxies), Field(ge=1, le=MAX_PROXIES)] = 1
    """Number of proxy processes, each of which serves every service."""
    run_dir: Text | None = None
    """Directory of the control socket; empty: no socket; None: a private directory of the user."""
    user: Account | None = None
    """The user that proxies and workers run as; None: the supervisor's own."""
    group: Account | None = None
    """None: the user's own."""
    no_new_privileges: bool = True
    """Programs that a worker executes gain no privileges, so sudo does not work there."""
    services: tuple[Service, ...]
