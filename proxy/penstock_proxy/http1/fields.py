"""Header fields that are not forwarded: hop-by-hop fields, those that the proxy writes itself,
and those that are not allowed in trailers.

Owns: the names (RFC 9110 §7.6.1 and §6.5.1) and the filter of trailers, for both directions.
`request` and `response` own what else is dropped or added. No I/O.
"""

from collections.abc import Callable
from typing import Final

from penstock_proxy.http1 import forwarded

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
REWRITTEN: Final = forwarded.STANDARD_FIELDS | {b"host", b"x-request-id"}
"""The proxy writes these for a worker itself, whatever was received."""
NOT_TO_WORKERS: Final = HOP_BY_HOP | REWRITTEN | {b"proxy"}
"""`Proxy` becomes HTTP_PROXY in a CGI program (httpoxy, CVE-2016-5385)."""
NOT_IN_TRAILERS: Final = NOT_TO_WORKERS | {
    # framing and routing
    b"content-length", b"max-forwards", b"via",
    # how the content is read
    b"content-encoding", b"content-type", b"content-range", b"trailer",
    # authentication
    b"authorization", b"cookie", b"set-cookie", b"www-authenticate",
    # request modifiers
    b"cache-control", b"expect", b"pragma", b"range", b"if-match", b"if-none-match",
    b"if-modified-since", b"if-unmodified-since", b"if-range",
    # control data of a response
    b"age", b"date", b"expires", b"location", b"retry-after", b"vary", b"warning",
}  # fmt: skip
"""RFC 9110 §6.5.1 does not allow them in trailers, by these kinds. `Authentication-Info` and `ETag`
are allowed there (§11.6.3, §8.8.3)."""


def keep_trailers(block: bytes, is_kept: Callable[[bytes], bool]) -> bytes:
    """The lines of a trailer block for whose names, in lower case, `is_kept` is true."""
    return b"".join(
        line + b"\r\n"
        for line in block.split(b"\r\n")
        if line and is_kept(line.partition(b":")[0].lower())
    )
