"""The forms of a request's target (RFC 9112 §3.2), and the host that it is for.

Owns: origin-form and asterisk-form against absolute-form, the grammar of a host, and what a worker
is asked. Must not know: other fields, and which host belongs to which service. No I/O.

A target in absolute-form and the Host field name the same host, or the request is refused. By
RFC 9112 §3.2.2 the target wins, but whoever was asked before us may have gone by the field. A rule
that it made for one host would be passed by with another.
"""

import re
from typing import Final

from penstock_proxy.errors import BAD_REQUEST, RejectedError

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9.\-_~%!$&'()*+;=]++|\[[0-9A-Fa-f:.]++\])(?::\d{0,5}+)?+")
"""uri-host without a comma, which makes two of it where lists of hosts are read."""
_ABSOLUTE: Final = re.compile(rb"(?i:http(s?))://([^/?@]++)((?:[/?].*+)?+)")
_PORT: Final = re.compile(rb":(\d*)\Z")


def is_absolute(target: bytes) -> bool:
    """Is it in absolute-form, of http or https?"""
    return _ABSOLUTE.fullmatch(target) is not None


def split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """Split an absolute-form target into authority and origin-form (RFC 9112 §3.2.2)."""
    match = _ABSOLUTE.fullmatch(target)
    assert match is not None
    path = match[3]
    return match[2], path if path.startswith(b"/") else b"/" + path


def for_worker(method: bytes, target: bytes) -> bytes:
    """Return the target as a worker gets it: never in absolute-form."""
    if target[:1] in b"/*":
        return target
    match = _ABSOLUTE.fullmatch(target)
    assert match is not None
    if method == b"OPTIONS" and not match[3]:
        # RFC 9112 §3.2.4: this is how a client of a proxy asks about the server as a whole.
        return b"*"
    return split_absolute(target)[1]


def host(target: bytes, field: bytes | None) -> bytes:
    """The host that a request is for; empty if neither its target nor its Host says so.

    `field`: the value of Host, if there is one. Raises RejectedError: 400.
    """
    if field is not None and _HOST.fullmatch(field) is None:
        raise RejectedError(BAD_REQUEST, "malformed Host")
    if target[:1] in b"/*":
        return field or b""
    match = _ABSOLUTE.fullmatch(target)
    assert match is not None
    authority = match[2]
    if _HOST.fullmatch(authority) is None:
        raise RejectedError(BAD_REQUEST, "malformed authority")
    default_port = b"443" if match[1] else b"80"
    if field is not None and _normal(authority, default_port) != _normal(field, default_port):
        raise RejectedError(BAD_REQUEST, "Host disagrees with the target")
    return authority


def _normal(host: bytes, default_port: bytes) -> tuple[bytes, int]:
    """A host and its port as they are compared (RFC 9110 §4.2.3)."""
    match = _PORT.search(host)
    if match is None:
        return host.lower(), int(default_port)
    return host[: match.start()].lower(), int(match[1] or default_port)
