"""A client keeps its slot. A worker that leaves the rotation moves only its own clients.

Owns: the ring, and who is next for a client. Each slot has points on a ring of 2^64, in number by
its weight. A client has PROBES places on the same ring, and goes to the slot whose point comes
next after one of them with the shortest way (multi-probe consistent hashing, Appleton and O'Reilly
2015). With one probe a ring is even only with hundreds of points for each slot; with eight it
is with thirty-two. A look-up costs a digest and eight binary searches, with two slots and with a
thousand.

The points are those of the slot, so that a client stays where it is when a worker is replaced,
at whatever address. While a slot has two workers, the newer one gets its clients if it is up. An
upstream has no slot of its own but its address, so that a reordered list moves no client. Python's
hash() would differ between processes, and each proxy must pick the same worker for a client.

See docs/decisions/0024-client-hash.md.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence
from hashlib import blake2b
from struct import unpack
from typing import Final

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.policies.policy import M, Policy

_POINTS: Final = 32
"""Of a slot, for each unit of its weight."""
_MAX_POINTS: Final = 1 << 17
"""Of all together. Where weights are so large, all have half as many points, or a quarter."""
_FEW: Final = 16
"""Changed slots whose points are put into the ring one by one; for more it is sorted anew."""
_PROBES: Final = "<8Q"
_DIGEST_SIZE: Final = 64
_RING: Final = (1 << 64) - 1
_MAX_CACHED_CLIENTS: Final = 4096
"""Strangers must not be able to make the cache grow."""

Name = int | str
"""Of a slot: its number, or an upstream's address."""


class ClientHash(Policy[M]):
    """The ring of the slots in the rotation."""

    __slots__ = ("_cached", "_owners", "_points", "_ring", "_slots", "_weights")
    ignores_slow_start = True
    uses_client_address = True

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._slots: dict[Name, list[M]] = {}
        """The members of each slot, whose turn it is first."""
        self._weights: dict[Name, int] = {}
        self._points = _POINTS
        self._ring: list[int] = []
        self._owners: dict[int, Name] = {}
        """By point."""
        self._cached: dict[str, M] = {}

    def set_rotation(self, rotation: Sequence[M]) -> None:
        slots: dict[Name, list[M]] = {}
        weights: dict[Name, int] = {}
        shared: set[Name] = set()
        for member in rotation:
            name: Name = member.address if member.is_upstream else member.slot
            if name in slots:
                slots[name].append(member)
                weights[name] = max(weights[name], member.weight)
                shared.add(name)
            else:
                slots[name] = [member]
                weights[name] = member.weight
        for name in shared:
            slots[name].sort(key=_precedence, reverse=True)
        self._slots = slots
        self._cached.clear()
        if weights != self._weights:
            self._update_ring(weights)

    def _update_ring(self, weights: dict[Name, int]) -> None:
        points = _POINTS
        while points > 1 and points * sum(weights.values()) > _MAX_POINTS:
            points //= 2
        before = self._weights
        changed = [
            name for name in before.keys() | weights.keys() if before.get(name) != weights.get(name)
        ]
        if points != self._points or len(changed) > _FEW:
            self._owners = {
                point: name
                for name, weight in weights.items()
                for point in _points(name, weight * points)
            }
            self._ring = sorted(self._owners)
        else:
            for name in changed:
                self._remove(_points(name, before.get(name, 0) * points))
                self._insert(name, _points(name, weights.get(name, 0) * points))
        self._weights, self._points = weights, points

    def _remove(self, points: Iterable[int]) -> None:
        ring = self._ring
        for point in points:
            del ring[bisect_left(ring, point)]
            del self._owners[point]

    def _insert(self, name: Name, points: Iterable[int]) -> None:
        for point in points:
            insort(self._ring, point)
            self._owners[point] = name

    def set_slow_start(self, slow: Collection[M]) -> None:
        """Does nothing: a client that got another worker for a time would lose its own."""

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        member = self._cached.get(client)
        if member is None:
            member = self._nearest(client)
            if member is None:
                return None
            if len(self._cached) >= _MAX_CACHED_CLIENTS:
                self._cached.clear()
            self._cached[client] = member
        if avoid and member in avoid:
            return self._nearest_of_others(client, avoid)
        return member

    def _nearest(self, client: str) -> M | None:
        """Where a client is at home; None: there is nobody."""
        ring = self._ring
        if not ring:
            return None
        size = len(ring)
        nearest, shortest = 0, _RING + 1
        for probe in unpack(_PROBES, _digest(client)):
            at = bisect_left(ring, probe)
            point = ring[at if at < size else 0]
            way = (point - probe) & _RING
            if way < shortest:
                nearest, shortest = point, way
        return self._slots[self._owners[nearest]][0]

    def _nearest_of_others(self, client: str, avoid: Collection[M]) -> M | None:
        """Where it is at home while those are away."""
        ring = self._ring
        size = len(ring)
        nearest, shortest = None, _RING + 1
        for probe in unpack(_PROBES, _digest(client)):
            at = bisect_left(ring, probe)
            for step in range(size):
                point = ring[(at + step) % size]
                way = (point - probe) & _RING
                if way >= shortest:
                    break
                members = self._slots[self._owners[point]]
                member = next((one for one in members if one not in avoid), None)
                if member is not None:
                    nearest, shortest = member, way
                    break
        return nearest


def _precedence(member: M) -> tuple[bool, int]:
    return member.state is MemberState.UP, member.number


def _digest(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogateescape"), digest_size=_DIGEST_SIZE).digest()


def _points(name: Name, count: int) -> Iterable[int]:
    """Points of a slot on the ring; of fewer ones, the first of these."""
    points: list[int] = []
    while len(points) < count:
        points.extend(unpack(_PROBES, _digest(f"{len(points)} {name}")))
    return points[:count]
