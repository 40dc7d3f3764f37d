"""The head of a request: as the client sent it, and as a worker gets it.

Owns: X-Forwarded-For / -Proto / -Host / -Port, Forwarded, Via and X-Request-ID, what is dropped
from a request head, and the cache of parsed header blocks. Must not know: sockets, framing
beyond what `parser` returns, which worker is next, how forwarding fields are read
(`forwarded`). No I/O.

A client that is not in `trusted_proxies` is not trusted: its forwarding fields are dropped, and
replaced by what we see ourselves. A field name with anything but letters, digits and `-` is
always dropped, as nginx does: CGI programs and the like cannot tell it from the name with `-`,
nor a field `SCRIPT_NAME` from their own variable.

A client on a keep-alive connection sends the same header block with nearly every request, so
parsed blocks are cached by their bytes. The cache is small and bounded; a client that fills it
slows requests down, and does no other harm.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from penstock_proxy.config import Forwarding, ServiceConfig
from penstock_proxy.errors import BAD_REQUEST
from penstock_proxy.http1 import authentication, forwarded, parser
from penstock_proxy.http1.fields import NOT_IN_TRAILERS, NOT_TO_WORKERS, REWRITTEN, keep_trailers
from penstock_proxy.http1.forwarded import FieldValues, ForwardedInfo
from penstock_proxy.http1.parser import Framing, RequestLine
from penstock_worker.net.trusted_proxies import TrustedProxies

_DROPPED: Final = NOT_TO_WORKERS | {b"expect"}
"""The proxy writes what it passes on of Expect itself, as it does with the others."""
_READ_FIELDS: Final = REWRITTEN | authentication.CREDENTIALS | {b"te", b"via"}
_AMBIGUOUS: Final = re.compile(rb"[^a-z0-9-]")
_HTTP_PROTOCOLS: Final = frozenset({b"h2c", b"h2", b"http", b"tls"})
"""Protocols of Upgrade that carry HTTP: h2c, HTTP by its version, HTTP over TLS (RFC 2817)."""
_DEFAULT_FORWARDING: Final = Forwarding()

_MAX_REQUEST_ID: Final = 128
_CACHED_BLOCKS: Final = 256
_MAX_PORTS: Final = 16
"""Ports with caches of their own: a service has a few at most."""
MAX_CACHED_HEAD: Final = 4 << 10


@dataclass(slots=True)
class PreparedRequest:
    """A request's header block, parsed and rewritten for a worker; without the request line."""

    framing: Framing
    host: bytes
    """Empty for HTTP/1.0 without Host."""
    fields: bytes
    """The lines for the worker. `connection_fields` follow, in the middle of a line."""
    client: str
    """The client's address as trusted proxies report it; empty: it is the connection's peer."""
    request_id: bytes
    """From a trusted proxy; empty: make one."""
    close: bool
    keep_alive: bool
    expects_continue: bool
    """The client waits for 100 before it sends its body."""
    authenticates: bool
    """It authenticates the worker's connection, and not only itself."""


@dataclass(slots=True)
class RepeatedHead:
    """A whole request head that its client sends again and again, as it was read before."""

    head: bytes
    config: ServiceConfig
    """By which it was read: with another one it may be refused, or rewritten in another way."""
    line: RequestLine
    prepared: PreparedRequest
    line_to_worker: bytes


class HeaderRewriter:
    """Rewrites request heads for one service."""

    def __init__(
        self,
        trusted: Sequence[str],
        max_fields: int,
        scheme: bytes = b"http",
        own_fields: frozenset[bytes] = frozenset(),
        port: int = 0,
        forwarding: Forwarding = _DEFAULT_FORWARDING,
    ) -> None:
        """`scheme`: http or https, as clients connect to us; `port`: where, 0 for a unix socket.
        `own_fields`: fields that we set ourselves, so that a trusted proxy's are dropped."""
        self.trusted = TrustedProxies(trusted)
        self._terms = (trusted, max_fields, scheme, own_fields)
        self._at_ports: dict[int, HeaderRewriter] = {}
        self._scheme = scheme
        self._port = port
        self._forwarding = forwarding
        self._via = forwarding.via.encode()
        self._dropped = _DROPPED | own_fields | ({b"via"} if forwarding.via else frozenset())
        self._is_default = forwarding.x_forwarded and not forwarding.forwarded
        self._default_rest = tuple(
            self._build_connection_fields("", 0, b"", trusted=trusted).removeprefix(b"unknown")
            for trusted in (False, True)
        )
        self._max_fields = max_fields
        self._cache: tuple[dict[bytes, PreparedRequest], dict[bytes, PreparedRequest]] = (
            {},
            {},
        )

    def at_port(self, port: int) -> "HeaderRewriter":
        """The same for clients that have connected to this port, by the PROXY header of a trusted
        proxy. It matters where that proxy reports no other one in its requests."""
        found = self._at_ports.get(port)
        if found is None:
            found = HeaderRewriter(*self._terms, port, self._forwarding)
            if len(self._at_ports) < _MAX_PORTS:
                self._at_ports[port] = found
        return found

    def connection_fields(self, address: str, port: int, fields: bytes, *, trusted: bool) -> bytes:
        """What each request of a connection has after `PreparedRequest.fields`.

        It begins with the end of X-Forwarded-For, and a request id follows it. `port`: what the
        client connected to, if a proxy has reported it. `fields`: lines for this connection.
        """
        if self._is_default and not port and not fields and "%" not in address:
            return (address or "unknown").encode() + self._default_rest[trusted]
        return self._build_connection_fields(
            address.partition("%")[0], port, fields, trusted=trusted
        )

    def _build_connection_fields(
        self, address_only: str, port: int, fields: bytes, *, trusted: bool
    ) -> bytes:
        lines = b""
        if self._forwarding.x_forwarded:
            lines = (address_only or "unknown").encode() + b"\r\n"
            port = 0 if trusted else port or self._port
            if port:
                lines += b"X-Forwarded-Port: %d\r\n" % port
        if self._forwarding.forwarded:
            lines += b"Forwarded: for=%b;proto=%b\r\n" % (_node(address_only), self._scheme)
        return lines + fields + b"X-Request-ID: "

    def trusts(self, client: str) -> bool:
        """Is this address, empty for a unix socket's peer, one of `trusted_proxies`?"""
        return client in self.trusted

    def prepare(self, line: RequestLine, block: bytes, *, trusted: bool) -> PreparedRequest:
        """Check a request, and make its fields for the worker. Raises RejectedError."""
        cache = self._cache[trusted]
        if line.is_plain:
            cached = cache.get(block)
            if cached is not None:
                return cached
        framing = parser.parse_fields(block, BAD_REQUEST, self._max_fields)
        host = parser.check_request(line, framing)
        prepared = self._prepare_uncached(line, framing, host, trusted=trusted)
        if line.is_plain and len(block) <= MAX_CACHED_HEAD:
            if len(cache) >= _CACHED_BLOCKS:
                cache.clear()
            cache[block] = prepared
        return prepared

    def _prepare_uncached(
        self, line: RequestLine, framing: Framing, host: bytes, *, trusted: bool
    ) -> PreparedRequest:
        received: dict[bytes, list[bytes]] = {}
        # Connection may remove Via, but not the forwarding fields: a client must not be able to
        # remove what proxies have added.
        ignored = framing.connection & {b"via"}
        for name, value, _ in framing.lines:
            if name in _READ_FIELDS and name not in ignored:
                received.setdefault(name, []).append(value)
        info = forwarded.EMPTY
        if trusted:
            info = forwarded.read_trusted(received, self.trusted, self._forwarding.trust)
        upgrade = _allowed_upgrades(framing.upgrade) if line.minor else b""
        expects_continue = line.minor == 1 and any(
            value.strip(b", \t") for value in framing.values.get(b"expect", ())
        )
        dropped = self._dropped | framing.connection
        fields = [b"Host: " + (host or b"localhost")]
        fields += [
            raw
            for name, _, raw in framing.lines
            if name not in dropped
            and _AMBIGUOUS.search(name) is None
            and (trusted or not forwarded.is_forwarding_field(name))
        ]
        if b"te" in received and not upgrade and _takes_trailers(received[b"te"]):
            fields.append(b"TE: trailers\r\nConnection: TE")
        if upgrade:
            fields.append(b"Connection: Upgrade\r\nUpgrade: " + upgrade)
        if framing.chunked:
            fields.append(b"Transfer-Encoding: chunked")
        if expects_continue:
            fields.append(b"Expect: 100-continue")
        fields.append(self._forwarding_fields(line, received, info, host, trusted=trusted))
        request_id = next((one for one in reversed(received.get(b"x-request-id", ())) if one), b"")
        return PreparedRequest(
            framing=replace(framing, lines=[], values={}, upgrade=upgrade),
            host=host,
            fields=b"\r\n".join(fields),
            client=info.hops[0] if info.hops else "",
            request_id=request_id if trusted and len(request_id) <= _MAX_REQUEST_ID else b"",
            close=b"close" in framing.connection,
            keep_alive=b"keep-alive" in framing.connection and b"close" not in framing.connection,
            expects_continue=expects_continue,
            authenticates=any(
                authentication.is_of_connection(value)
                for name in authentication.CREDENTIALS
                for value in received.get(name, ())
            ),
        )

    def _forwarding_fields(
        self,
        line: RequestLine,
        received: FieldValues,
        info: ForwardedInfo,
        host: bytes,
        *,
        trusted: bool,
    ) -> bytes:
        """Via and the forwarding fields for the worker."""
        lines = b""
        if self._via:
            passed = b"".join(value + b", " for value in received.get(b"via", ()) if value)
            lines = b"Via: %b1.%d %b\r\n" % (passed, line.minor, self._via)
        proto, host = info.proto or self._scheme, info.host or host
        if self._forwarding.forwarded and info.hops:
            lines += _elements(info, proto, host)
        if not self._forwarding.x_forwarded:
            return lines
        lines += b"X-Forwarded-Proto: " + proto + b"\r\n"
        if host:
            lines += b"X-Forwarded-Host: " + host + b"\r\n"
        if trusted:
            port = forwarded.client_port(info, host, self._scheme)
            port = port or (b"%d" % self._port if self._port else b"")
            lines += b"X-Forwarded-Port: " + port + b"\r\n" if port else b""
        return lines + b"X-Forwarded-For: " + "".join(hop + ", " for hop in info.hops).encode()


def rewriter_for(config: ServiceConfig, port: int) -> HeaderRewriter:
    """The rewriter of a service, by its configuration."""
    return HeaderRewriter(
        config.trusted_proxies,
        config.limits.headers,
        b"https" if config.tls else b"http",
        own_fields=forwarded.CERTIFICATE_FIELDS if config.verifies else frozenset(),
        port=port,
        forwarding=config.forwarding,
    )


def _elements(info: ForwardedInfo, proto: bytes, host: bytes) -> bytes:
    """The elements of Forwarded for the hops in front of us."""
    first, *others = map(_node, info.hops)
    text = b"Forwarded: for=%b;proto=%b" % (first, proto)
    if host:
        text += b';host="%b"' % host
    return text + b"".join(b", for=" + node for node in others) + b"\r\n"


def _node(address: str) -> bytes:
    """A node of Forwarded: IPv6 in brackets, and therefore quoted (RFC 7239 §6)."""
    return b'"[%b]"' % address.encode() if ":" in address else (address or "unknown").encode()


def _takes_trailers(values: Sequence[bytes]) -> bool:
    """Is `trailers` one of the members of TE? (RFC 9110 §10.1.4)"""
    return any(
        member.strip(b" \t") == b"trailers" for member in b",".join(values).lower().split(b",")
    )


def _allowed_upgrades(upgrade: bytes) -> bytes:
    """The offered protocols without those that carry HTTP: their requests would be unchecked."""
    offers = (offer.strip(b" \t") for offer in upgrade.split(b","))
    return b", ".join(
        offer
        for offer in offers
        if offer and offer.lower().partition(b"/")[0] not in _HTTP_PROTOCOLS
    )


def request_trailers(block: bytes, options: frozenset[bytes]) -> bytes:
    """The fields of a request's trailer block that are allowed; `options`: of Connection."""
    dropped = NOT_IN_TRAILERS | options
    return keep_trailers(
        block,
        lambda name: (
            name not in dropped
            and not forwarded.is_forwarding_field(name)
            and not _AMBIGUOUS.search(name)
        ),
    )
