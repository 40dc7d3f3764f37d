"""What trusted proxies say of a request's way to us, and what others only pretend.

Owns: which fields are such claims, and what is believed of X-Forwarded-For / -Proto / -Host /
-Port or of Forwarded (RFC 7239). Must not know who asks, nor what a worker is told. No I/O.

A list of addresses is read from its end, the nearest proxy's word, as far back as each was
said by a proxy that is trusted: the first one that is not trusted is the client, and what
stands before it is what the client itself has said. Many programs take the first address of
a list for the client's, so that part is not passed on.

Only one of the two languages is believed, the one that the proxies are known to speak. In the
other one they pass on what a stranger has said, as they do with any field that they do not know.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

from penstock_worker.net.trusted_proxies import TrustedProxies

Language = Literal["x-forwarded", "forwarded"]
Said = Mapping[bytes, Sequence[bytes]]
"""By name, the values of its lines in their order."""

CERTIFICATE_FIELDS: Final = frozenset({b"client-cert", b"client-cert-chain"})
"""Who a client has proven to be (RFC 9440), as far as whoever spoke TLS with it says."""
NAMED: Final = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
    }
)
"""Written anew, whatever came in."""
_CLAIMS: Final = NAMED | CERTIFICATE_FIELDS | {
    b"x-forwarded", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"client-ip",
    b"true-client-ip", b"cf-connecting-ip", b"cf-connecting-ipv6", b"fastly-client-ip",
    b"fly-client-ip", b"do-connecting-ip", b"x-appengine-user-ip", b"x-azure-clientip",
    b"x-azure-socketip", b"x-envoy-external-address", b"x-original-forwarded-for",
    b"x-original-host", b"x-original-url", b"x-rewrite-url", b"x-remote-ip", b"x-remote-addr",
    b"x-originating-ip", b"x-proxyuser-ip", b"proxy-client-ip", b"wl-proxy-client-ip",
    b"x-scheme", b"x-url-scheme", b"proxy-end-https",
}  # fmt: skip
"""Fields by which a proxy says where a request came from, or went to, and programs ask so."""
_CLAIMING: Final = (b"x-forwarded-", b"ssl-client-", b"x-ssl-client-")

_MOST_HOPS: Final = 32
"""More proxies than that stand before nobody."""
_NODE: Final = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::\d{1,5})?|(\d[\d.]{6,14})(?::\d{1,5})?")
_PROTO: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{0,15}")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PORT: Final = re.compile(rb"[0-9]{1,5}")
_LAST_PORT: Final = 0xFFFF
_PAIR: Final = re.compile(
    rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)"
    rb'|"((?:[^"\\]|\\.)*+)")[ \t]*([;,]|$)'
)
"""One pair and what ends it (RFC 7239 §4)."""


class Claims(NamedTuple):
    """What is believed; empty where nothing is."""

    hops: tuple[str, ...] = ()
    """The client's address, and those of the proxies between, without the one that asks us."""
    proto: bytes = b""
    """What the client speaks, in lower case."""
    host: bytes = b""
    port: bytes = b""
    """What it connected to."""


NONE: Final = Claims()


def is_claim(name: bytes) -> bool:
    """Does a field of this name claim to know where a request came from, or went to?"""
    return name in _CLAIMS or name.startswith(_CLAIMING)


def believed(said: Said, trusted: TrustedProxies, language: Language) -> Claims:
    """What is believed of what a trusted proxy has said."""
    return _of_forwarded(said, trusted) if language == "forwarded" else _of_x(said, trusted)


def _of_x(said: Said, trusted: TrustedProxies) -> Claims:
    nodes = [node.decode("latin-1") for node in _listed(said, b"x-forwarded-for")]
    host, port = _last(said, b"x-forwarded-host", _HOST), _last(said, b"x-forwarded-port", _PORT)
    return Claims(
        hops=_hops(nodes, trusted),
        proto=_last(said, b"x-forwarded-proto", _PROTO).lower(),
        host=host,
        port=port if port and int(port) <= _LAST_PORT else b"",
    )


def _of_forwarded(said: Said, trusted: TrustedProxies) -> Claims:
    elements = list(_elements(b",".join(said.get(b"forwarded", ()))))
    if not elements:
        return NONE
    nodes = [element.get(b"for", b"").decode("latin-1") for element in elements]
    hops = _hops(nodes, trusted)
    # Written by the proxy that the client connected to; each later one says what it was asked.
    first = elements[-max(1, len(hops))]
    proto, host = first.get(b"proto", b""), first.get(b"host", b"")
    return Claims(
        hops=hops,
        proto=proto.lower() if _PROTO.fullmatch(proto) else b"",
        host=host if _HOST.fullmatch(host) else b"",
    )


def _elements(text: bytes) -> Iterator[dict[bytes, bytes]]:
    """The elements of Forwarded; nothing at all if any of it is malformed."""
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
    """From the client on. It ends at what is no address: there is nobody to believe."""
    hops: list[str] = []
    for node in reversed(nodes[-_MOST_HOPS:]):
        address = _address(node)
        if not address:
            break
        hops.append(address)
        if address not in trusted:
            break
    return tuple(reversed(hops))


def _address(node: str) -> str:
    """The address in a node, which may have a port; empty if there is none."""
    match = _NODE.fullmatch(node)
    text = (match[1] or match[2]) if match else node
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if found.version == 6 else None
    return str(mapped or found)


def _listed(said: Said, name: bytes) -> list[bytes]:
    """The elements of a list that several lines may make up (RFC 9110 §5.6.1)."""
    elements = (one.strip(b" \t") for line in said.get(name, ()) for one in line.split(b","))
    return [element for element in elements if element]


def _last(said: Said, name: bytes, grammar: re.Pattern[bytes]) -> bytes:
    """The nearest proxy's word, if it is one. Others before it may be the client's."""
    elements = _listed(said, name)
    return elements[-1] if elements and grammar.fullmatch(elements[-1]) else b""
