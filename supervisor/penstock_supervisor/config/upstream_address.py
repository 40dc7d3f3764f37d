"""Where an upstream is, as people write it: an address, or a name that stands for addresses.

    127.0.0.1:9000, [::1]:9000, unix:/path   fixed
    app.internal:9000                        a name: one member, whose address follows it
    dns:app.internal:9000                    every address of the name is a member
    dns+srv:_http._tcp.app.internal          so is every record of a service (RFC 2782)

Owns the grammar. Must not know how a name is looked up (`names`). No I/O.
"""

import re
from enum import StrEnum
from ipaddress import ip_address
from typing import Final, NamedTuple

from penstock_proxy.net.address import Address, parse_address

_ALL: Final = "dns:"
_SRV: Final = "dns+srv:"
_MAX_NAME: Final = 253
_MAX_LABEL: Final = 63


class Kind(StrEnum):
    """What an upstream's address is."""

    FIXED = "fixed"
    NAME = "name"
    ALL = "all"
    SRV = "srv"


class UpstreamAddress(NamedTuple):
    kind: Kind
    address: Address
    """Of FIXED. Of a name: the name as the host, and its port; SRV has none."""


def parse_upstream(text: str) -> UpstreamAddress:
    """ValueError says what was expected."""
    if text.startswith(_SRV):
        return UpstreamAddress(Kind.SRV, Address(_name(text.removeprefix(_SRV))))
    # Without a second colon it is a host of that name, and its port.
    if text.startswith(_ALL) and ":" in text.removeprefix(_ALL):
        address = parse_address(text.removeprefix(_ALL))
        if address.path or is_literal(address.host):
            raise ValueError('expected a name after dns:, such as "dns:app.internal:9000"')
        kind = Kind.ALL
    else:
        address = parse_address(text)
        is_fixed = address.path or is_literal(address.host)
        kind = Kind.FIXED if is_fixed else Kind.NAME
    if not address.path and not address.port:
        raise ValueError("expected a port to connect to")
    return UpstreamAddress(kind, address)


def is_literal(host: str) -> bool:
    """Is it an address, and no name?"""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _name(text: str) -> str:
    labels = text.removesuffix(".").split(".")
    is_good = len(text) <= _MAX_NAME and all(
        re.fullmatch(r"[A-Za-z0-9_-]+", label) and len(label) <= _MAX_LABEL for label in labels
    )
    if not is_good:
        raise ValueError(
            'expected a name after dns+srv:, such as "dns+srv:_http._tcp.app.internal": '
            "the port is in the records"
        )
    return text
