"""The keys of the configuration that a proxy acts on: types, units, ranges and defaults.

The supervisor makes these frozen models once, from the file, the command line and the
defaults, and sends them to each proxy as JSON. Keys and defaults are defined in the package
of their only reader, so both change together. An unknown key is an error. Once parsed,
durations are seconds, sizes are bytes, and shares are fractions. Must not know: the keys of
the supervisor, which adds its own (`penstock_supervisor.config.model`). No I/O, no clock.
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
    """Read "500ms", "2s" or "1h" as seconds. A number is parsed already, and returned as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", value)
    if match is None:
        raise ValueError('expected a duration with a unit, such as "500ms", "2s" or "1h"')
    return float(match[1]) * _UNITS[match[2]]


def parse_size(value: object) -> object:
    """Read "512B" or "16KiB" as bytes. A number is parsed already, and returned as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+)(B|KiB|MiB|GiB)", value)
    if match is None:
        raise ValueError('expected a size with a unit, such as "16KiB" or "64MiB"')
    return int(match[1]) * _BYTES[match[2]]


def parse_share(value: object) -> object:
    """Read "50%" as 0.5. A number is parsed already, and returned as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]{1,3})%", value)
    if match is None or int(match[1]) > 100:
        raise ValueError('expected a share from "0%" to "100%"')
    return int(match[1]) / 100


def parse_share_or_number(value: object) -> object:
    """Read "50%" as 0.5 and 50 as 50: a share is a float, a number of connections an int."""
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
    """Marks a limit of a whole service: with several proxies, each gets an equal share of it.

    Two values stay as they are: 0 switches the limit off, and a fraction is a share of
    something that is divided already.
    """

    least: int = 0
    """Each proxy gets at least this, however many proxies there are."""


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
RetryKind = Literal["connect", "reset", "timeout", "502", "503", "504"]
Balance = Literal["round_robin", "least_connections", "power_of_two", "client_hash", "random"]


class FrozenModel(BaseModel):
    """A table of the configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Health(FrozenModel):
    """Active health checks."""

    path: Annotated[str, AfterValidator(_path)] | None = None
    """Requested with GET; 2xx and 3xx are good. None: the check is a TCP connect."""
    interval: Positive = 2.0
    timeout: Positive = 1.0
    rise: Count = 2
    """Good checks in a row after which a worker that was down is up again."""
    fall: Count = 3
    """Bad checks in a row after which a worker that is up is down."""
    slow_start: Duration = 0.0
    """A worker that enters the rotation has its whole share only after this time. 0: at once."""


class Ejection(FrozenModel):
    """Outlier detection: a worker whose requests fail is ejected for a time."""

    failures: Annotated[int, Field(ge=0, strict=True)] = 5
    """Connect failures, resets and 5xx in a row that eject a worker; 0: no number does."""
    share: Share = 0.5
    """Share of failed requests in the last ten seconds that ejects a worker, if it is also at
    least twice the share of the others; 0: no share does."""
    requests: Count = 20
    """With fewer requests in that time, the share is not judged."""
    eject_for: Positive = 10.0
    """How long, times the number of its ejections, but at most ten times."""
    max_ejected: Share = 0.5
    panic: Share = 0.25
    """When a smaller share of the living workers is in the rotation, all of them are used.
    Processes of one host fail their checks together, and mostly the cause is overload: the
    load of those that fail would make the others fail too. 0: never."""


class Retries(FrozenModel):
    """When a failed request is tried again with another worker, and how often."""

    attempts: Count = 2
    """Workers that may execute one request: the first, and others after it has failed. A worker
    executes what it may have read. What no worker can have read is not counted."""
    on: tuple[RetryKind, ...] = ("connect", "reset")
    """The failures after which another worker is asked: connecting failed; the connection ended
    before a response or the response is malformed; no response within `timeouts.response`; the
    worker's own answer with that status. Empty: never."""
    budget: Share = 0.2
    """A share of the requests of the last ten seconds."""
    min_per_second: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = 3
    """This many are allowed however few requests there are, averaged over ten seconds."""


class Timeouts(FrozenModel):
    """Every wait of the proxy has a limit. 0 means no limit only where that is said."""

    connect: Positive = 5.0
    head: Positive = 10.0
    body: Positive = 30.0
    response: Positive = 60.0
    total: Duration = 0.0
    """A whole exchange, from the request's head to the response's last byte. 0: no limit."""
    keepalive: Positive = 75.0
    tunnel: Positive = 3600.0
    half_closed: Positive = 60.0
    """A tunnel or TCP connection of which one side has ended, without a byte from the other."""
    handshake: Positive = 10.0
    """Of TLS: from the connection to the first decrypted byte."""
    queue: Duration = 2.0
    """Waiting for a worker when none can take the request. 0: it is rejected at once."""
    start: Positive = 30.0
    """A worker's time to become ready."""
    stop: Positive = 30.0
    """A worker's or proxy's time to finish its requests when it is told to stop."""


class Limits(FrozenModel):
    """Limits on what clients can make grow. README.md has one table of all of them."""

    head: Annotated[Size, Field(ge=1024, le=1 << 20)] = 16 << 10
    """Bytes of a request head, request line and header fields together: 431 beyond."""
    headers: Annotated[int, Field(ge=1, le=1000, strict=True)] = 100
    """Header fields of a request: 431 beyond."""
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
    """Requests on one connection; the last response has `Connection: close`. 0: no limit."""
    handshakes: Annotated[Count, Divided()] = 512
    """TLS handshakes in progress at a time: beyond, the oldest is closed."""
    connections_per_client: Annotated[PerClient, Divided()] = 0.5
    """Of one address, or one /64 of IPv6: a share of the connections that the proxy can have, or
    a number; 429 beyond. 0: no limit."""
    queue: Annotated[int, Field(ge=0, strict=True), Divided()] = 1024
    """Requests that wait for a worker: 503 beyond."""
    per_worker: Annotated[int, Field(ge=0, strict=True), Divided()] = 0
    """Requests or connections of one worker at a time; more of them wait. 0: no limit."""
    queue_per_worker: Annotated[int, Field(ge=0, strict=True), Divided()] = 0
    """Requests that wait, for each worker in the rotation; 0: only `queue` limits them."""
    buffer: Annotated[Size, Field(ge=16 << 10, le=1 << 30)] = 64 << 10
    """Bytes that wait for a client or worker that reads slowly. With more, the other side is not
    read. The last read comes on top: up to four times as much."""
    log_field: Annotated[Size, Field(ge=64, le=64 << 10)] = 1 << 10
    """Bytes of one field of the access log; a longer one is cut and ends in "..."."""


def _pseudonym(text: str) -> str:
    if re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*", text) is None:
        raise ValueError('expected a name without spaces, such as "penstock", or "" for none')
    return text


class Forwarding(FrozenModel):
    """The header fields that tell a worker about the client, and which of them are trusted."""

    x_forwarded: bool = True
    """X-Forwarded-For, -Proto, -Host and -Port."""
    forwarded: bool = False
    """Forwarded (RFC 7239)."""
    via: Annotated[str, AfterValidator(_pseudonym)] = "penstock"
    """Our name in Via; empty: Via is not changed."""
    trust: Literal["x-forwarded", "forwarded"] = "x-forwarded"
    """Which of both `trusted_proxies` write. The other one is dropped: it may be a client's."""


class Target(FrozenModel):
    """A worker, as the proxy is told of it: a member of its service's pool."""

    member: int
    """Its number. A worker and its successor in the same slot are two members."""
    slot: int
    """Its place in the service: what people, metrics and `client_hash` know it by."""
    address: AddressText | Literal[""]
    """Empty: connections are handed over to it by a link."""
    name: str = ""
    """The name that has this address, with the port: what a check sends as Host. Empty: it was
    given as an address."""
    weight: Weight = 1
    joined: bool = False
    """Its process is ready, so it is checked. Upstreams are not ours, and always joined."""
    up: bool = False
    """It was in the rotation of the proxy before this one, and starts there."""
    upstream: bool = False
    """It is not ours. `client_hash` knows it by its address: its place in the list may change."""
    health: Health | None = None
    """How it is checked, if it is not as its service says."""


class ProxySettings(FrozenModel):
    """The keys of a service that the proxy acts on. The supervisor adds its own to them."""

    mode: Mode = "http"
    balance: Balance = "round_robin"
    trusted_proxies: tuple[Network, ...] = ()
    """Peers that may say who the client is. "unix": all that connect to a unix socket."""
    send_proxy: Literal["", "v1", "v2"] = ""
    """Connections to workers begin with a PROXY header of this version. Empty: with none."""
    accept_proxy: bool = False
    """Every connection begins with a PROXY header, and comes from one of `trusted_proxies`."""
    sni: Mapping[ServerName, str] = Field(default_factory=dict)
    """TLS passthrough: the service for each server name that a client asks for."""
    max_connections: Annotated[int, Field(ge=0, strict=True), Divided()] = 0
    """Of clients. 0: as many as the descriptors allow."""
    # With fewer than one of them a worker would get nothing at all.
    handoff_window: Annotated[int, Field(ge=1, le=1024, strict=True), Divided(least=1)] = 64
    """Connections that were sent to one worker and are not accepted yet."""
    abort_on_close: bool = False
    """A client that ends its side of the connection after its request has left, and its request
    is aborted. False: it is answered, unless it turns out to be gone."""
    access_log: str = "stdout"
    """"stdout", "off" or the path of a file."""
    access_log_format: Literal["json", "combined"] = "json"
    health: Health = Health()
    ejection: Ejection = Ejection()
    retries: Retries = Retries()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    forwarding: Forwarding = Forwarding()


class ServiceConfig(ProxySettings):
    """A service as one proxy is told it: inherited listeners, and the workers behind them."""

    name: str
    scheme: Literal["ports", "handoff"] = "ports"
    listeners: tuple[int, ...]
    """Descriptor numbers of the inherited listening sockets."""
    targets: tuple[Target, ...]
    tls: bool = False
    """Its clients speak TLS. The certificates come in messages of their own."""
    verifies: bool = False
    """It asks clients for certificates."""


class ProxyConfig(FrozenModel):
    """All that a proxy is configured with."""

    services: tuple[ServiceConfig, ...]
