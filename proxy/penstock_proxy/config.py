"""The proxy's share of the configuration: what it may be told, and what is sane.

Frozen models, made once by the supervisor from file, command line and defaults, and sent
to the proxy as JSON. Each part of a service defines its own keys and defaults here, next
to the only code that reads them; an unknown key is an error. Durations are seconds, sizes
are bytes, shares are fractions once they are parsed. No I/O, no clock.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from penstock_proxy.net.address import parse_address
from penstock_worker.net.trusted_proxies import UNIX

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_duration(value: object) -> object:
    """ "500ms", "2s", "1h" as seconds. A number passes: it is already parsed."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", value)
    if match is None:
        raise ValueError('expected a duration with a unit, such as "500ms", "2s" or "1h"')
    return float(match[1]) * _UNITS[match[2]]


def parse_size(value: object) -> object:
    """ "512B", "16KiB", "64MiB" as bytes. A number passes: it is already parsed."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+)(B|KiB|MiB|GiB)", value)
    if match is None:
        raise ValueError('expected a size with a unit, such as "16KiB" or "64MiB"')
    return int(match[1]) * _BYTES[match[2]]


def parse_share(value: object) -> object:
    """ "50%" as 0.5. A number passes: it is already parsed."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]{1,3})%", value)
    if match is None or int(match[1]) > 100:
        raise ValueError('expected a share from "0%" to "100%"')
    return int(match[1]) / 100


def parse_share_or_number(value: object) -> object:
    """ "50%" as 0.5, and 50 as 50: whether it is a share is told by its type."""
    share = parse_share(value)
    if isinstance(share, float) and 0 < share <= 1:
        return share
    if isinstance(share, int) and not isinstance(share, bool) and share >= 0:
        return share
    raise ValueError('expected a share from "1%" to "100%", or a number of connections')


def _address(text: str) -> str:
    return str(parse_address(text))


def _network(text: str) -> str:
    if text == UNIX:
        return text
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise ValueError('expected an address, a network or "unix"') from None


def _path(text: str) -> str:
    if re.fullmatch(r"/[\x21-\x7e]*", text) is None:
        raise ValueError('expected a path that starts with "/" and has no spaces')
    return text


def _server_name(text: str) -> str:
    match = re.fullmatch(r"(?:\*\.)?(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?", text)
    if match is None or len(text) > 255:
        raise ValueError('expected a name as in certificates, such as "a.example" or "*.example"')
    return text.lower().removesuffix(".")


@dataclass(frozen=True, slots=True)
class Divided:
    """Marks a bound that is written for a whole service: of several proxies each gets its share.

    0 is no number of things, and a fraction is one of what is divided already: both stay.
    """

    least: int = 0
    """What each gets, however many there are."""


Duration = Annotated[
    float, BeforeValidator(parse_duration), Field(ge=0, allow_inf_nan=False, strict=True)
]
Positive = Annotated[Duration, Field(gt=0)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0, strict=True)]
Share = Annotated[float, BeforeValidator(parse_share), Field(ge=0, le=1, strict=True)]
PerClient = Annotated[int | float, BeforeValidator(parse_share_or_number)]
AddressText = Annotated[str, AfterValidator(_address)]
ServerName = Annotated[str, AfterValidator(_server_name)]
Network = Annotated[str, AfterValidator(_network)]
Count = Annotated[int, Field(ge=1, strict=True)]
Weight = Annotated[int, Field(ge=1, le=100, strict=True)]
Mode = Literal["http", "tcp", "udp"]
Balance = Literal["round_robin", "least_connections", "power_of_two", "client_hash", "random"]


class Part(BaseModel):
    """A table of the configuration: frozen, and strict about what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Health(Part):
    """Active checks."""

    path: Annotated[str, AfterValidator(_path)] | None = None
    """Asked with GET; 2xx and 3xx are good. None: a TCP connect is the check."""
    interval: Positive = 2.0
    timeout: Positive = 1.0
    rise: Count = 2
    """Good checks in a row before a worker that was down comes back."""
    fall: Count = 3
    """Bad checks in a row before a worker that is up leaves."""
    slow_start: Duration = 0.0
    """One that comes into the rotation has its whole share only after this. 0: at once."""


class Ejection(Part):
    """Passive health: what the traffic itself shows."""

    failures: Annotated[int, Field(ge=0, strict=True)] = 5
    """Connect failures, resets and 5xx in a row; 0: however many."""
    share: Share = 0.5
    """The same of the requests of the last ten seconds, and at least twice what the others
    fail; 0: whatever share."""
    requests: Count = 20
    """With fewer in that time, a share says nothing."""
    eject_for: Positive = 10.0
    """Times the number of ejections, at most ten times."""
    max_ejected: Share = 0.5
    panic: Share = 0.25
    """With fewer of the living in the rotation, all of them are picked. Processes on one
    host fail their checks together, for a common cause, which is overload more often than
    not: what the fallen leave undone would fell the rest. 0: never."""


class Retries(Part):
    """How much a service may try again that a worker may have worked for already."""

    budget: Share = 0.2
    """Of the requests of the last ten seconds."""
    min_per_second: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = 3
    """However few requests there are; over ten seconds."""


class Timeouts(Part):
    """Every wait of the proxy has an end; 0 means none only where it says so."""

    connect: Positive = 5.0
    head: Positive = 10.0
    body: Positive = 30.0
    response: Positive = 60.0
    total: Duration = 0.0
    """A whole exchange, from the request's head to the answer's last byte. 0: no limit."""
    keepalive: Positive = 75.0
    tunnel: Positive = 3600.0
    handshake: Positive = 10.0
    """Of TLS: from the connection to the first byte inside."""
    queue: Duration = 2.0
    """Waiting for a worker when none can take the request. 0: refused at once."""
    start: Positive = 30.0
    """A worker's time to get ready."""
    stop: Positive = 30.0
    """A worker's or proxy's time to finish when it is told to leave."""


class Limits(Part):
    """What a stranger can make grow, and where it ends. README has one table of all bounds."""

    head: Annotated[Size, Field(ge=1024, le=1 << 20)] = 16 << 10
    """Bytes of a request head, request line and fields together: 431 beyond."""
    headers: Annotated[int, Field(ge=1, le=1000, strict=True)] = 100
    """Fields of a request: 431 beyond."""
    target: Annotated[Size, Field(ge=256, le=1 << 20)] = 8 << 10
    """Bytes of a request's target: 414 beyond."""
    body: Size = 1 << 30
    """Bytes of a request's body: 413 beyond. 0: no limit."""
    min_rate: Size = 500
    """Bytes a second of a request's body, on average once `timeouts.body` has passed: 408
    below. 0: no limit."""
    response_head: Annotated[Size, Field(ge=1024, le=1 << 20)] = 64 << 10
    """Bytes of a worker's response head: 502 beyond."""
    requests: Annotated[int, Field(ge=0, strict=True)] = 10_000
    """Requests on one connection; the last answer says that it is. 0: no limit."""
    handshakes: Annotated[Count, Divided()] = 512
    """Of TLS, unfinished at once: beyond, the oldest makes room."""
    connections_per_client: Annotated[PerClient, Divided()] = 0.5
    """Of one address, or one /64 of IPv6: a share of what the proxy can take, or a number; 429
    beyond. 0: no limit."""
    queue: Annotated[int, Field(ge=0, strict=True), Divided()] = 1024
    """Requests that wait for a worker: 503 beyond."""
    per_worker: Annotated[int, Field(ge=0, strict=True), Divided()] = 0
    """Requests or connections that one worker has at a time; the others wait. 0: no limit."""
    queue_per_worker: Annotated[int, Field(ge=0, strict=True), Divided()] = 0
    """Requests that wait, for each worker in the rotation; 0: `queue` alone counts."""
    buffer: Annotated[Size, Field(ge=16 << 10, le=1 << 30)] = 64 << 10
    """Bytes that wait for one that reads slowly, before the other side is read no further. What
    was read last comes on top: up to four times that much."""
    log_field: Annotated[Size, Field(ge=64, le=64 << 10)] = 1 << 10
    """Bytes of any one field of the access log; what is longer ends in "..."."""


def _pseudonym(text: str) -> str:
    if re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*", text) is None:
        raise ValueError('expected a name without spaces, such as "penstock", or "" for none')
    return text


class Fields(Part):
    """The header fields that tell a worker about the client, and which of them are trusted."""

    x_forwarded: bool = True
    """X-Forwarded-For, -Proto, -Host and -Port."""
    forwarded: bool = False
    """Forwarded, as of RFC 7239."""
    via: Annotated[str, AfterValidator(_pseudonym)] = "penstock"
    """Our name in Via; empty: Via is left alone."""
    trust: Literal["x-forwarded", "forwarded"] = "x-forwarded"
    """Which of both `trusted_proxies` write. The other one is dropped: it may be a client's."""


class Target(Part):
    """One worker as the proxy sees it: a slot and where it listens."""

    slot: int
    address: AddressText | Literal[""]
    """Empty: connections are passed to it over a link."""
    weight: Weight = 1
    joined: bool = False
    """Its process is ready: check it. Upstreams that nobody supervises always are."""
    up: bool = False
    """It was in the rotation before a proxy died; the next one believes that."""


class Traffic(Part):
    """The keys of a service that the proxy acts on; the supervisor's tables add theirs."""

    mode: Mode = "http"
    balance: Balance = "round_robin"
    trusted_proxies: tuple[Network, ...] = ()
    """Whose word on others is believed. "unix": of whoever connects to a unix socket."""
    send_proxy: Literal["", "v1", "v2"] = ""
    """What connections to workers begin with: a PROXY header of this version."""
    accept_proxy: bool = False
    """Every connection begins with a PROXY header, and comes from one of `trusted_proxies`."""
    sni: Mapping[ServerName, str] = Field(default_factory=dict)
    """TLS that is passed through: the service for each name that clients ask for."""
    max_connections: Annotated[int, Field(ge=0, strict=True), Divided()] = 0
    """0: as many as descriptors allow."""
    # With fewer than one of them a worker would get nothing at all.
    handoff_window: Annotated[int, Field(ge=1, le=1024, strict=True), Divided(least=1)] = 64
    """Connections on their way to one worker at a time."""
    access_log: str = "stdout"
    """"stdout", "off" or the path of a file."""
    access_log_format: Literal["json", "combined"] = "json"
    health: Health = Health()
    ejection: Ejection = Ejection()
    retries: Retries = Retries()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    forwarding: Fields = Fields()


class ServiceConfig(Traffic):
    """One service, resolved: inherited listeners in, targets out."""

    name: str
    scheme: Literal["ports", "handoff"] = "ports"
    listeners: tuple[int, ...]
    """Numbers of the inherited descriptors, bound and listening."""
    targets: tuple[Target, ...]
    tls: bool = False
    """Its clients speak TLS. What it shows them comes by an order."""
    verifies: bool = False
    """It asks them for certificates."""


class ProxyConfig(Part):
    """All that a proxy is told."""

    services: tuple[ServiceConfig, ...]
