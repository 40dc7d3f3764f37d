"""Which connections are ended to make room for clients that wait.

Owns: the order. A connection that serves a request is never ended for others. What has no
complete request is, in this order, and in each of the four the longest first:

    of an address with more than its share   kept alive between two requests
                                             no request yet, or only a part of one
    of any other                             kept alive between two requests
                                             no request yet, or only a part of one

An address's share is what each would have if all places were divided equally. So no number of
connections that one address holds costs another address its own, and who has just come always
finds somebody who has more. A connection that is kept alive is ended before one whose first
request may be on its way; the latter has at least `GRACE_S`, or a client far away would never
be served. Must not know: how a connection is ended, or why there is no room. No I/O, no clock.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from penstock_proxy.errors import Fault

GRACE_S: Final = 1.0
"""What a client has for its first request, or the rest of one, whoever waits."""
MAX_LOOKS: Final = 512
"""Connections that are looked at in one turn of the loop, those of all services together: to look
at them and to put them in order takes half a millisecond."""
MAX_ROUNDS: Final = 8
"""In so many turns of one tick others are looked at, until as many were found as are wanted."""
MAX_ENDED: Final = 512
"""Connections that are ended in a tick."""

Holder = tuple[Any, str | bytes]
"""Who has a connection: its service, and the client's address or network; empty: a trusted proxy,
whose connections are not counted."""


class Endable(Protocol):
    """A connection that may be ended for others; see `http.open_clients.ClientHandle`."""

    @property
    def counted_address(self) -> str: ...

    @property
    def idle_since(self) -> float: ...

    @property
    def is_kept_alive(self) -> bool: ...

    def end_idle(self, fault: Fault) -> bool: ...


class Candidate(NamedTuple):
    """A connection that may be ended, at one moment."""

    connection: Endable
    since: float
    """When its last request ended, or it was accepted; up to a tick later than that."""
    is_kept_alive: bool
    holder: Holder


def candidates(
    connections: Iterable[Endable],
    now: float,
    min_idle_s: float,
    holder_of: Callable[[str], Holder],
) -> Iterator[Candidate]:
    """Those that may be ended. `min_idle_s`: for those that are kept alive between requests."""
    for connection in connections:
        since = connection.idle_since
        if since <= now:
            is_kept_alive = connection.is_kept_alive
            if since + (min_idle_s if is_kept_alive else GRACE_S) <= now:
                holder = holder_of(connection.counted_address)
                yield Candidate(connection, since, is_kept_alive, holder)


def choose(
    found: Iterable[Candidate], wanted: int, count_of: Callable[[Holder], int], share: int
) -> list[Candidate]:
    """The `wanted` ones to end, in order; fewer, if there are fewer.

    `count_of`: how many connections a holder has, whatever they do; 0 if they are not counted.
    `share`: how many it may have and not lose any before the others do.
    """
    above: dict[Holder, int] = {}
    """By how many a holder is above its share."""
    chosen: list[Candidate] = []
    others: list[Candidate] = []
    for one in sorted(found, key=_order):
        holder = one.holder
        surplus = above.get(holder)
        if surplus is None:
            surplus = count_of(holder) - share
        if surplus > 0 and len(chosen) < wanted:
            surplus -= 1
            chosen.append(one)
        else:
            others.append(one)
        above[holder] = surplus
    return chosen + others[: wanted - len(chosen)]


def _order(one: Candidate) -> tuple[bool, float]:
    return not one.is_kept_alive, one.since


def equal_share(capacity: int, holders: int) -> int:
    """What each holder may have; one more is expected: who waits is most likely another."""
    return max(1, capacity // (holders + 1))
