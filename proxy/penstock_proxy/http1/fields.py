"""Header fields that are not passed on: those that end at each hop, those that we write
ourselves, and those that may come in no trailer.

Owns: the names (RFC 9110 §7.6.1 and §6.5.1) and the filter of trailers. Both directions use
them; what else is dropped or added is for `request` and `response` to say. No I/O.
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
OURS: Final = forwarded.NAMED | {b"host", b"x-request-id"}
"""Written anew for a worker, whatever came in."""
NOT_TO_WORKERS: Final = HOP_BY_HOP | OURS | {b"proxy"}
"""`Proxy` becomes HTTP_PROXY in a CGI program (httpoxy, CVE-2016-5385)."""
NO_TRAILERS: Final = NOT_TO_WORKERS | {
    b"content-length",
    b"content-encoding",
    b"content-type",
    b"content-range",
    b"host",
    b"trailer",
    b"via",
    b"authorization",
    b"cookie",
    b"set-cookie",
    b"cache-control",
    b"expect",
}
"""RFC 9110 §6.5.1: framing, routing, authentication and the like come in no trailer."""


def keep_trailers(block: bytes, keeps: Callable[[bytes], bool]) -> bytes:
    """The lines of a trailer block whose names, in lower case, `keeps` wants."""
    return b"".join(
        line + b"\r\n"
        for line in block.split(b"\r\n")
        if line and keeps(line.partition(b":")[0].lower())
    )
