"""What a look-up of an upstream's name says.

Owns the types that look-ups, and those who decide on their answers, have in common. Must not know
who is asked, nor what follows. No I/O, no clock.
"""

from typing import Final, Literal, NamedTuple

from penstock_proxy.net.address import Address

MAX_ENDPOINTS: Final = 256
"""Of one name. An answer may have thousands; nobody balances over so many."""

Family = Literal[4, 6]
"""Of addresses: A records, or AAAA."""

RESULTS: Final = ("found", "not_found", "timeout", "failed")
"""Of a look-up: there is something; there is nothing; nobody has answered in time; who has answered
could not say, or what was said cannot be read."""


class Endpoint(NamedTuple):
    """A server that an upstream stands for."""

    address: Address
    """Numeric, or a unix socket."""
    weight: int = 1
    name: str = ""
    """The name that has this address, and the port: `app.internal:9000`. Empty: it was given as an
    address."""


class Found(NamedTuple):
    """What a name stands for now."""

    endpoints: tuple[Endpoint, ...]
    ttl_s: float
    """How long that may be believed."""
    unanswered: frozenset[tuple[str, Family]] = frozenset()
    """Names of endpoints about whose addresses, of one family, nothing was heard."""


class SrvRecord(NamedTuple):
    """One server of a service (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str
    """Without the dot at its end; empty: there is no such service here."""


class LookupFailedError(Exception):
    """Nothing is known by this look-up. The text says why, in a line. `result`: of RESULTS."""

    result = "failed"


class LookupTimeoutError(LookupFailedError):
    """Nobody has answered in time."""

    result = "timeout"


class NotFoundError(LookupFailedError):
    """Those who know say that there is nothing of this name."""

    result = "not_found"


def family_of(address: Address) -> Family:
    return 6 if ":" in address.host else 4
