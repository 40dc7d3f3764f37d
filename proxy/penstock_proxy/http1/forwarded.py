"""Forwarding fields: what trusted proxies report about a request's client and its way here.

Owns: which fields are forwarding fields, and what is trusted of X-Forwarded-For / -Proto / -Host /
-Port or of Forwarded (RFC 7239). Must not know: which client sent the fields, and what a worker
gets. No I/O.

A list of addresses is read from its end, where the nearest proxy has appended. It is trusted as
long as each address was appended by a trusted proxy. The first address that is not a trusted
proxy's is the client; all before it was sent by the client itself. Many programs take the first
address of a list for the client's, so that part is not forwarded.

Only one of the two headers is trusted: the one that the proxies are known to write. The other
one they forward as the client sent it, like any field that they do not know.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

from penstock_worker.net.trusted_proxies import TrustedProxies

TrustedHeader = Literal["x-forwarded", "forwarded"]
FieldValues = Mapping[bytes, Sequence[bytes]]
"""The values of fields in their order, by lower-case name."""

CERTIFICATE_FIELDS: Final = frozenset({b"client-cert", b"client-cert-chain"})
"""The client's certificate (RFC 9440), as reported by the proxy that terminated its TLS."""
STANDARD_FIELDS: Final[frozenset[bytes]] = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
    }
)
"""The proxy writes these itself, whatever was received."""
_FORWARDING_FIELDS: Final = STANDARD_FIELDS | CERTIFICATE_FIELDS | {
    b"x-forwarded", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"client-ip",
    b"true-client-ip", b"cf-connecting-ip", b"cf-connecting-ipv6", b"fastly-client-ip",
    b"fly-client-ip", b"do-connecting-ip", b"x-appengine-user-ip", b"x-azure-clientip",
    b"x-azure-socketip", b"x-envoy-external-address", b"x-original-forwarded-for",
    b"x-original-host", b"x-original-url", b"x-rewrite-url", b"x-remote-ip", b"x-remote-addr",
    b"x-originating-ip", b"x-proxyuser-ip", b"proxy-client-ip", b"wl-proxy-client-ip",
    b"x-scheme", b"x-url-scheme", b"front-end-https",
}  # fmt: skip
"""Fields by which proxies report where a request came from or was sent to. Programs read them."""
_FORWARDING_PREFIXES: Final = (b"x-forwarded-", b"ssl-client-", b"x-ssl-client-")

_MAX_HOPS: Final = 32
"""No honest request passes more proxies than this."""
_NODE: Final = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::\d{1,5})?|(\d[\d.]{6,14})(?::\d{1,5})?")
_PROTO: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{0,15}")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PORT: Final = re.compile(rb"[0-9]{1,5}")
_PORT_OF_HOST: Final = re.compile(rb":([0-9]{1,5})\Z")
_MAX_PORT: Final = 0xFFFF
_DEFAULT_PORTS: Final = {b"http": b"80", b"ws": b"80", b"https": b"443", b"wss": b"443"}
_PAIR: Final = re.compile(
    rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)"
    rb'|"((?:[^"\\]|\\.)*+)")[ \t]*([;,]|$)'
)
"""One pair and what ends it (RFC 7239 §4)."""


class ForwardedInfo(NamedTuple):
    """What trusted proxies have reported; empty values: nothing."""

    hops: tuple[str, ...] = ()
    """The addresses of the client and of the proxies after it, without the one that is
    connected to us."""
    proto: bytes = b""
    """The client's protocol, in lower case."""
    host: bytes = b""
    port: bytes = b""
    """The host and port that the client connected to."""


EMPTY: Final = ForwardedInfo()


def is_forwarding_field(name: bytes) -> bool:
    """Does a field of this name report where a request came from, or was sent to?"""
    return name in _FORWARDING_FIELDS or name.startswith(_FORWARDING_PREFIXES)


def read_trusted(
    received: FieldValues, trusted: TrustedProxies, header: TrustedHeader
) -> ForwardedInfo:
    """Read what is trusted of the fields that a trusted proxy has sent."""
    return (
        _from_forwarded(received, trusted)
        if header == "forwarded"
        else _from_x_forwarded(received, trusted)
    )


def client_port(info: ForwardedInfo, host: bytes, scheme: bytes) -> bytes:
    """The port that the client connected to, as far as trusted proxies say; empty: they do not.

    `host`: the request's Host, `scheme`: what we see ourselves, where they have reported none.
    The port in their host counts first, so that no two fields contradict each other, and then the
    port that they report. A host without a port means the usual one of the protocol. If they report
    neither, Host says nothing of the client's side.
    """
    reported = _port_of(info.host) or info.port
    if reported or not (info.host or info.proto):
        return reported
    return _port_of(info.host or host) or _DEFAULT_PORTS.get(info.proto or scheme, b"")


def _port_of(host: bytes) -> bytes:
    match = _PORT_OF_HOST.search(host)
    return _port(match[1]) if match else b""


def _host(value: bytes) -> bytes:
    """A host as a proxy reports it; empty if it is none, or its port is none."""
    if _HOST.fullmatch(value) is None:
        return b""
    return b"" if _PORT_OF_HOST.search(value) and not _port_of(value) else value


def _port(digits: bytes) -> bytes:
    """A port without leading zeros; empty if there is none such."""
    port = int(digits or b"0")
    return b"%d" % port if 0 < port <= _MAX_PORT else b""


def _from_x_forwarded(received: FieldValues, trusted: TrustedProxies) -> ForwardedInfo:
    nodes = [node.decode("latin-1") for node in _list_elements(received, b"x-forwarded-for")]
    return ForwardedInfo(
        hops=_hops(nodes, trusted),
        proto=_last_element(received, b"x-forwarded-proto", _PROTO).lower(),
        host=_host(_last_element(received, b"x-forwarded-host", _HOST)),
        port=_port(_last_element(received, b"x-forwarded-port", _PORT)),
    )


def _from_forwarded(received: FieldValues, trusted: TrustedProxies) -> ForwardedInfo:
    elements = list(_elements(b",".join(received.get(b"forwarded", ()))))
    if not elements:
        return EMPTY
    nodes = [element.get(b"for", b"").decode("latin-1") for element in elements]
    hops = _hops(nodes, trusted)
    # Written by the proxy that the client connected to. Each later element is of another hop.
    first = elements[-max(1, len(hops))]
    proto, host = first.get(b"proto", b""), first.get(b"host", b"")
    return ForwardedInfo(
        hops=hops,
        proto=proto.lower() if _PROTO.fullmatch(proto) else b"",
        host=_host(host),
    )


def _elements(text: bytes) -> Iterator[dict[bytes, bytes]]:
    """The elements of Forwarded; none if any of it is malformed."""
    found: list[dict[bytes, bytes]] = [{}]
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            return
        name, token, quoted, end = pair.groups()
        value = token if token is not None else re.sub(rb"\\(.)", rb"\1", quoted)
        if name.lower() in found[-1]:
            return
        found[-1][name.lower()] = value
        if end == b",":
            found.append({})
        at = pair.end()
    if found[-1]:
        yield from found


def _hops(nodes: Sequence[str], trusted: TrustedProxies) -> tuple[str, ...]:
    """The trusted addresses, the client's first. What is no address ends the list: no proxy
    that could be trusted has appended what comes before it."""
    hops: list[str] = []
    for node in reversed(nodes[-_MAX_HOPS:]):
        address = _address(node)
        if not address:
            break
        hops.append(address)
        if address not in trusted:
            break
    return tuple(reversed(hops))


def _address(node: str) -> str:
    """The address in a node, which may have a port; empty if it has no address."""
    match = _NODE.fullmatch(node)
    text = (match[1] or match[2]) if match else node
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if found.version == 6 else None
    return str(mapped or found)


def _list_elements(received: FieldValues, name: bytes) -> list[bytes]:
    """The elements of a list, which may be spread over several lines (RFC 9110 §5.6.1)."""
    elements = (one.strip(b" \t") for line in received.get(name, ()) for one in line.split(b","))
    return [element for element in elements if element]


def _last_element(received: FieldValues, name: bytes, grammar: re.Pattern[bytes]) -> bytes:
    """The nearest proxy's element, if it is well formed. Those before it may be the client's."""
    elements = _list_elements(received, name)
    return elements[-1] if elements and grammar.fullmatch(elements[-1]) else b""
