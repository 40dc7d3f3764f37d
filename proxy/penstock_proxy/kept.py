"""Connections to workers that are kept for the next request.

Owns: the idle connections of one service, and whether one of them may carry a request. Must
not know: who is picked (`pool`), what becomes of a request whose connection ends
(`retrying`).

A worker closes what has been idle too long for it, perhaps just when a request is sent. For
a request that can be repeated that is no harm: it is sent again. One that must not be is
sent only where no end is due: the worker's own word (Keep-Alive: timeout), or else the
shortest idle time after which it has lately closed a connection, with a second to spare; and
the kernel is asked whether the connection still stands. The last word is `receipts`'.
"""

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from penstock_proxy import receipts
from penstock_proxy.forwarding import IDLE_S
from penstock_proxy.pool import Member
from penstock_proxy.standing import Standing

if TYPE_CHECKING:
    from penstock_proxy.exchange import Exchange
    from penstock_proxy.upstream import WorkerConnection

REPLAYED: Final = 64 << 10
"""Bytes of a request's body that are kept until its worker answers, to be sent again. One
that is known to be longer gets a connection of its own."""
MAX_IDLE: Final = 1024
"""Idle connections kept for one worker."""
_SPARE_S: Final = 1.0
"""Before a worker is expected to close. More than both sides' event loops are ever late in
good order; whoever closes after less than this gets such requests on new connections."""
_REMEMBERED_S: Final = 60.0
_UP: Final = Standing.UP
"""Python 3.11 takes longer to find a member of an enum than to compare it."""


class Kept:
    """Of one service."""

    __slots__ = ("_idle", "_most", "_patience", "stopping")

    def __init__(self, slots: Iterable[int], most: int = MAX_IDLE) -> None:
        """`most`: how many are kept for one worker."""
        self._most = most
        self._idle: dict[int, deque[WorkerConnection]] = {slot: deque() for slot in slots}
        """The one that was used last is at the right."""
        self._patience: dict[int, tuple[float, float]] = {}
        """By slot: after how long it closed an idle connection, and until when that counts."""
        self.stopping = False

    def take(self, member: Member) -> "WorkerConnection | None":
        """One for a request that can be sent again if it fails."""
        idle = self._idle[member.slot]
        while idle:
            link = idle.pop()
            if not link.transport.is_closing():
                return link
        return None

    def take_for(
        self, member: Member, exchange: "Exchange", now: float
    ) -> "WorkerConnection | None":
        """One whose end would not be the end of this request, if there is one."""
        framing = exchange.prepared.framing
        if framing.length > REPLAYED:
            return None
        if exchange.is_idempotent and not framing.chunked:
            return self.take(member)
        return self.take_safe(member, now)

    def take_safe(self, member: Member, now: float) -> "WorkerConnection | None":
        """One for a request that must not be sent twice."""
        patience, until = self._patience.get(member.slot, (IDLE_S, 0.0))
        if until < now:
            patience = IDLE_S
        while (link := self.take(member)) is not None:
            if now - link.idle_since >= min(patience, link.keep_s) - _SPARE_S:
                # The others have been idle for longer.
                self._idle[member.slot].append(link)
                return None
            link.acked = receipts.acknowledged(link.transport)
            if link.acked != receipts.ENDED:
                return link
            self.ended(link, now)
            link.transport.close()
        return None

    def keep(self, link: "WorkerConnection", now: float) -> None:
        """Put one back for the next request."""
        member = link.member
        idle = self._idle[member.slot]
        transport = link.transport
        if len(idle) >= self._most or self.stopping or member.standing is not _UP:
            transport.abort()
            return
        transport.resume_reading()
        link.idle_since = now
        idle.append(link)

    def ended(self, link: "WorkerConnection", now: float) -> None:
        """Its worker closed it while it was idle, or at least before it read on."""
        patience = now - link.idle_since
        before, until = self._patience.get(link.member.slot, (IDLE_S, 0.0))
        if until >= now:
            patience = min(patience, before)
        self._patience[link.member.slot] = (patience, now + _REMEMBERED_S)

    def lost(self, link: "WorkerConnection") -> None:
        """It is gone."""
        idle = self._idle[link.member.slot]
        if link in idle:
            idle.remove(link)

    def drop(self, slot: int) -> None:
        """Nobody picks its worker any more, or another process has taken the slot over."""
        self._patience.pop(slot, None)
        idle = self._idle[slot]
        while idle:
            idle.pop().transport.close()

    def end_oldest(self, count: int) -> None:
        """Their descriptors are needed: close so many, of each worker those idle for longest."""
        for idle in self._idle.values():
            while idle and count > 0:
                count -= 1
                idle.popleft().transport.close()

    def tick(self, now: float) -> None:
        """Close what has been idle for long enough, or nearly too long for its worker."""
        for idle in self._idle.values():
            while idle and idle[0].idle_since + idle[0].keep_s < now:
                idle.popleft().transport.close()
