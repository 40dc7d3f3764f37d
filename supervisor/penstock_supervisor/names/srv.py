"""Which SRV records of a service are used, and with which weights (RFC 2782).

Only those of the lowest number of priority are: pools have no members in reserve. A weight of the
DNS goes up to 65535, a member's from 1 to 100. No I/O, no clock.
"""

import re
from collections.abc import Sequence
from typing import Final

from penstock_supervisor.names.answers import MAX_ENDPOINTS, SrvRecord

_MAX_WEIGHT: Final = 100
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]+")
"""A target is written into logs, and into a field of a request. Any byte may be in a name."""


def chosen(records: Sequence[SrvRecord]) -> tuple[SrvRecord, ...]:
    """In an order that does not depend on theirs. A record without a port, or a host as
    its target, is none."""
    usable = {one for one in records if _HOST.fullmatch(one.target) and one.port}
    first = min((one.priority for one in usable), default=0)
    best = sorted(
        (one for one in usable if one.priority == first),
        key=lambda one: (-one.weight, one.target.lower(), one.port),
    )[:MAX_ENDPOINTS]
    return tuple(one._replace(weight=_scaled(one.weight, best[0].weight)) for one in best)


def _scaled(weight: int, largest: int) -> int:
    """As it is, where all of them fit. 0 is "very small": the least that there is."""
    share = weight if largest <= _MAX_WEIGHT else round(weight * _MAX_WEIGHT / largest)
    return max(1, share)
