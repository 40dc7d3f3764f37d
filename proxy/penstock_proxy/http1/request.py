"""The head of a request: as the client sent it, and as a worker gets it.

Owns: X-Forwarded-For / -Proto / -Host / -Port, Forwarded, Via and X-Request-ID, what is dropped
from a request head, and the memory of header blocks seen before. Must not know: sockets,
framing beyond what `http1` says of it, which worker is next, which proxies are trusted
(`forwarded`). No I/O.

A client that is not in `trusted_proxies` is not trusted: whatever it says about where a
request came from is dropped and replaced by what we see ourselves. A name with anything but
letters, digits and `-` in it is dropped from everybody, as nginx does: CGI programs and their
like cannot tell it from the one with `-`, nor `SCRIPT_NAME` from their own.

A client on a keep-alive connection sends the same header block with nearly every request,
so what a block means is remembered by its very bytes. The memory is small and bounded; a
stranger who fills it takes away the short cut and nothing else.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from penstock_proxy.config import Forwarding, ServiceConfig
from penstock_proxy.errors import BAD_REQUEST
from penstock_proxy.http1 import forwarded, parser
from penstock_proxy.http1.fields import NO_TRAILERS, NOT_TO_WORKERS, OURS, keep_trailers
from penstock_proxy.http1.forwarded import Claims
from penstock_proxy.http1.parser import Framing, RequestLine
from penstock_worker.net.trusted_proxies import TrustedProxies

_ASKED: Final = OURS | {b"te", b"via"}
_AMBIGUOUS: Final = re.compile(rb"[^a-z0-9-]")
_HTTP_ITSELF: Final = frozenset({b"h2c", b"h2", b"http", b"tls"})
"""Names of protocols: HTTP/2 in the clear, any HTTP by its number, HTTP under TLS (RFC 2817)."""
_USUAL_PORTS: Final = {b"http": b"80", b"ws": b"80", b"https": b"443", b"wss": b"443"}
_AS_USUAL: Final = Forwarding()

_MAX_ID: Final = 128
_REMEMBERED: Final = 256
_REMEMBERED_SIZE: Final = 4 << 10


class PreparedRequest(NamedTuple):
    """What a request's header block comes to, all but its request line."""

    framing: Framing
    host: bytes
    """Empty for HTTP/1.0 without Host."""
    out: bytes
    """The fields for the worker, up to what `of_connection` begins with."""
    client: str
    """Whose request it is, if trusted proxies say so; empty: the connection's own peer's."""
    request_id: bytes
    """A trusted proxy's; empty: make one."""
    close: bool
    keep_alive: bool
    expects: bool
    """The client waits for 100 before it sends its body."""


class HeaderRewriter:
    """Turns heads around for one service."""

    def __init__(
        self,
        trusted: Sequence[str],
        max_fields: int,
        scheme: bytes = b"http",
        ours: frozenset[bytes] = frozenset(),
        port: int = 0,
        terms: Forwarding = _AS_USUAL,
    ) -> None:
        """`scheme`: what clients speak with us, http or https; `port`: where, 0 for a unix
        socket. `ours` are fields that we know better than a trusted proxy does."""
        self.trusted = TrustedProxies(trusted)
        self._scheme = scheme
        self._port = port
        self._terms = terms
        self._via = terms.via.encode()
        self._dropped = NOT_TO_WORKERS | ours | ({b"via"} if terms.via else frozenset())
        self._is_usual = terms.x_forwarded and not terms.forwarded
        self._usual_rest = tuple(
            self._of_connection("", 0, b"", trusted=trusted).removeprefix(b"unknown")
            for trusted in (False, True)
        )
        self._max_fields = max_fields
        self._remembered: tuple[dict[bytes, PreparedRequest], dict[bytes, PreparedRequest]] = (
            {},
            {},
        )

    def of_connection(self, address: str, port: int, fields: bytes, *, trusted: bool) -> bytes:
        """What follows `PreparedRequest.out` in each request of a connection; a request id follows.

        `port` is what the client connected to, if a proxy has said it; `fields` are lines that
        this connection has and others have not.
        """
        if self._is_usual and not port and not fields and "%" not in address:
            return (address or "unknown").encode() + self._usual_rest[trusted]
        return self._of_connection(address.partition("%")[0], port, fields, trusted=trusted)

    def _of_connection(self, bare: str, port: int, fields: bytes, *, trusted: bool) -> bytes:
        lines = b""
        if self._terms.x_forwarded:
            lines = (bare or "unknown").encode() + b"\r\n"
            port = 0 if trusted else port or self._port
            if port:
                lines += b"X-Forwarded-Port: %d\r\n" % port
        if self._terms.forwarded:
            lines += b"Forwarded: for=%b;proto=%b\r\n" % (_node(bare), self._scheme)
        return lines + fields + b"X-Request-ID: "

    def trusts(self, client: str) -> bool:
        """Is this address, empty for a unix socket's peer, one of `trusted_proxies`?"""
        return client in self.trusted

    def request(self, line: RequestLine, block: bytes, *, trusted: bool) -> PreparedRequest:
        """Judge a request and say what goes to the worker. Raises RejectedError."""
        memory = self._remembered[trusted]
        usual = line.minor == 1 and line.target.startswith(b"/")
        if usual:
            known = memory.get(block)
            if known is not None:
                return known
        framing = parser.parse_fields(block, BAD_REQUEST, self._max_fields)
        host = parser.check_request(line, framing)
        prepared = self._prepare(line, framing, host, trusted=trusted)
        if usual and len(block) <= _REMEMBERED_SIZE:
            if len(memory) >= _REMEMBERED:
                memory.clear()
            memory[block] = prepared
        return prepared

    def _prepare(
        self, line: RequestLine, framing: Framing, host: bytes, *, trusted: bool
    ) -> PreparedRequest:
        said: dict[bytes, list[bytes]] = {}
        # What Connection names is not passed on; but what proxies say is not unsaid by it.
        ignored = framing.connection & {b"via"}
        for name, value, _ in framing.lines:
            if name in _ASKED and name not in ignored:
                said.setdefault(name, []).append(value)
        told = forwarded.NONE
        if trusted:
            told = forwarded.believed(said, self.trusted, self._terms.trust)
        upgrade = _offers(framing.upgrade) if line.minor else b""
        expects = bool(framing.values.get(b"expect")) and line.minor == 1
        dropped = self._dropped | framing.connection | (frozenset() if expects else {b"expect"})
        out = [b"Host: " + (host or b"localhost")]
        out += [
            raw
            for name, _, raw in framing.lines
            if name not in dropped
            and _AMBIGUOUS.search(name) is None
            and (trusted or not forwarded.is_claim(name))
        ]
        if any(b"trailers" in value.lower() for value in said.get(b"te", ())) and not upgrade:
            out.append(b"TE: trailers\r\nConnection: TE")
        if upgrade:
            out.append(b"Connection: Upgrade\r\nUpgrade: " + upgrade)
        if framing.chunked:
            out.append(b"Transfer-Encoding: chunked")
        request_id = next((one for one in reversed(said.get(b"x-request-id", ())) if one), b"")
        return PreparedRequest(
            framing=framing._replace(lines=[], values={}, upgrade=upgrade),
            host=host,
            out=b"\r\n".join(out) + b"\r\n" + self._way(line, said, told, host, trusted=trusted),
            client=told.hops[0] if told.hops else "",
            request_id=request_id if trusted and len(request_id) <= _MAX_ID else b"",
            close=b"close" in framing.connection,
            keep_alive=b"keep-alive" in framing.connection,
            expects=expects,
        )

    def _way(
        self, line: RequestLine, said: forwarded.Said, told: Claims, host: bytes, *, trusted: bool
    ) -> bytes:
        """The fields that say how the request came to us."""
        lines = b""
        if self._via:
            passed = b"".join(value + b", " for value in said.get(b"via", ()) if value)
            lines = b"Via: %b1.%d %b\r\n" % (passed, line.minor, self._via)
        proto, host = told.proto or self._scheme, told.host or host
        if self._terms.forwarded and told.hops:
            lines += _elements(told, proto, host)
        if not self._terms.x_forwarded:
            return lines
        lines += b"X-Forwarded-Proto: " + proto + b"\r\n"
        if host:
            lines += b"X-Forwarded-Host: " + host + b"\r\n"
        if trusted and (port := self._port_of(told)):
            lines += b"X-Forwarded-Port: " + port + b"\r\n"
        return lines + b"X-Forwarded-For: " + "".join(hop + ", " for hop in told.hops).encode()

    def _port_of(self, told: Claims) -> bytes:
        """A proxy that says what the client speaks, and not where, means the usual place."""
        if told.port:
            return told.port
        return _USUAL_PORTS.get(told.proto, b"") or (b"%d" % self._port if self._port else b"")


def of_service(config: ServiceConfig, port: int) -> HeaderRewriter:
    """By its configuration."""
    return HeaderRewriter(
        config.trusted_proxies,
        config.limits.headers,
        b"https" if config.tls else b"http",
        ours=forwarded.CERTIFICATE_FIELDS if config.verifies else frozenset(),
        port=port,
        terms=config.forwarding,
    )


def _elements(told: Claims, proto: bytes, host: bytes) -> bytes:
    """Forwarded, as those before us said it or would have."""
    first, *others = map(_node, told.hops)
    text = b"Forwarded: for=%b;proto=%b" % (first, proto)
    if host:
        text += b';host="%b"' % host
    return text + b"".join(b", for=" + node for node in others) + b"\r\n"


def _node(address: str) -> bytes:
    """A node of Forwarded: IPv6 in brackets, and therefore quoted (RFC 7239 §6)."""
    return b'"[%b]"' % address.encode() if ":" in address else (address or "unknown").encode()


def _offers(upgrade: bytes) -> bytes:
    """The protocols offered, without those that would carry requests past everything here."""
    offers = (offer.strip(b" \t") for offer in upgrade.split(b","))
    return b", ".join(
        offer for offer in offers if offer and offer.lower().partition(b"/")[0] not in _HTTP_ITSELF
    )


def request_trailers(block: bytes, options: frozenset[bytes]) -> bytes:
    """Keep of a request's trailer block what may be in one; `options` of Connection."""
    dropped = NO_TRAILERS | options
    return keep_trailers(
        block,
        lambda name: (
            name not in dropped and not forwarded.is_claim(name) and not _AMBIGUOUS.search(name)
        ),
    )
