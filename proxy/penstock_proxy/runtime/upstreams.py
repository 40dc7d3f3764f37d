"""The upstreams of a service, and the weights of its workers, as a new configuration has them.

Owns: which members a service gets and loses when its list of upstreams changes. Workers come and
go by messages of their own. Must not know: what else has changed (`services`).

An upstream that is removed is picked no more as soon as another one is in the rotation: until the
new ones have passed their first check nobody else could serve. What it has in flight is finished,
and cut when the service's time to stop is over.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.pool import Member
from penstock_proxy.config import Target
from penstock_proxy.runtime.cuts import Cuts
from penstock_proxy.runtime.service import Service

_WAIT_FOR_OTHERS_S: Final = 10.0
"""How long a removed upstream serves while no other does."""


class Upstreams:
    """The upstreams of one service."""

    __slots__ = ("_cuts", "_leaving", "_service")

    def __init__(self, service: Service, cuts: Cuts) -> None:
        self._service = service
        self._cuts = cuts
        self._leaving: dict[int, float] = {}
        """By number: when it is removed at the latest."""

    def updating(self, targets: Sequence[Target], now: float) -> Iterator[None]:
        """Bring the pool in line with the targets, by number, one in each step. An upstream keeps
        its state, and the slot by which it is counted."""
        pool = self._service.pool
        weights: dict[int, int] = {}
        for target in targets:
            if not target.upstream:
                if pool.has(target.member):
                    pool.set_name(target.member, "")
                    weights[target.member] = target.weight
            elif self._has(target):
                self._leaving.pop(target.member, None)
                pool.set_name(target.member, target.name)
                weights[target.member] = target.weight
            else:
                self._service.add_member(target)
            yield
        yield from pool.setting_weights(weights)
        yield
        wanted = {target.member for target in targets}
        for member in pool.members:
            if member.is_upstream and member.number not in wanted:
                self._leaving.setdefault(member.number, now + _WAIT_FOR_OTHERS_S)
        yield from self.ticking(now)

    def _has(self, target: Target) -> bool:
        """Is it there? One with another address is another server: the old one leaves at once."""
        pool = self._service.pool
        if not pool.has(target.member):
            return False
        if pool.member(target.member).address == target.address:
            return True
        self._leaving.pop(target.member, None)
        self._remove(pool.member(target.member))
        return False

    def ticking(self, now: float) -> Iterator[None]:
        """Remove those that are not needed any more, one in each step."""
        if not self._leaving:
            return
        pool, leaving = self._service.pool, self._leaving
        others = (one for one in pool.members if one.number not in leaving)
        others_serve = any(one.state is MemberState.UP for one in others)
        for number, at_latest in tuple(leaving.items()):
            # It may have come back meanwhile, or have been removed for another.
            if (others_serve or at_latest <= now) and leaving.pop(number, None) is not None:
                self._remove(pool.member(number))
                yield

    def _remove(self, member: Member) -> None:
        service = self._service
        self._cuts.cut_worker(service, member.number, service.timeouts.stop)
        service.remove_member(member.number)
