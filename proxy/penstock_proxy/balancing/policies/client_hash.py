"""A client keeps its slot. A worker that leaves the rotation moves only its own clients.

Owns: the ring, and who is next for a client. Each slot has points on a ring of 2^64, in number by
its weight. A client has PROBES places on the same ring, and goes to the slot whose point comes next
after one of them with the shortest way (multi-probe consistent hashing, Appleton and O'Reilly
2015). With one probe a ring is even only with hundreds of points for each slot; with eight it
is with thirty-two. A look-up costs a digest and eight binary searches, with two slots and with a
thousand. Points of slots that are out of the rotation stay, and are passed over: who leaves or
comes back changes no ring.

The points are those of the slot, so that a client stays where it is when a worker is replaced,
at whatever address. While a slot has two workers, the newer one gets its clients if it is up. An
upstream has no slot of its own but its address, so that a reordered list moves no client. Python's
hash() would differ between processes, and each proxy must pick the same worker for a client.

See docs/decisions/0024-client-hash.md.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from struct import unpack
from typing import Final

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.policies.policy import Candidate, M, Policy

_POINTS: Final = 32
"""Of a slot, for each unit of its weight."""
_MAX_POINTS: Final = 1 << 17
"""Of all together. Where weights are so large, all have half as many points, or a quarter."""
_SMALL: Final = 1 << 12
"""A ring with no more points is changed at once, whatever changes."""
_AT_ONCE: Final = 64
"""Points that come into a larger one at once, or leave it. If more should, it `is_rough` until the
pool has had another one made in steps."""
_PARTS: Final = 256
_PART: Final = (1 << 64) // _PARTS
"""Such a part of a ring is put in order in one step."""
_PROBES: Final = "<8Q"
_DIGEST_SIZE: Final = 64
_POINTS_OF_DIGEST: Final = 8
_RING: Final = (1 << 64) - 1
_MAX_CACHED_CLIENTS: Final = 4096
"""Strangers must not be able to make the cache grow."""

Name = int | str
"""Of a slot: its number, or an upstream's address."""


class ClientHash(Policy[M]):
    """The ring of all slots, and who of them is in the rotation."""

    __slots__ = (
        "_cached", "_members", "_on_ring", "_owners", "_points", "_ring", "_slots", "_total",
        "_weights", "is_rough",
    )  # fmt: skip
    ignores_slow_start = True
    uses_client_address = True

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._members: dict[Name, list[M]] = {}
        """All members of each slot."""
        self._weights: dict[Name, int] = {}
        """The largest weight of them."""
        self._on_ring: dict[Name, int] = {}
        """How many points each slot has."""
        self._slots: dict[Name, list[M]] = {}
        """Those of them that are in the rotation, whose turn it is first. None is empty."""
        self._total = 0
        """The weights of all slots."""
        self._points = _POINTS
        self.is_rough = False
        self._ring: list[int] = []
        self._owners: dict[int, Name] = {}
        """By point."""
        self._cached: dict[str, M] = {}
        for member in members:
            self._note(member)
        for name, slot in self._members.items():
            self._weights[name] = _weight(slot)
        self._total = sum(self._weights.values())
        self._make_ring()

    # -- members

    def beginning(self, members: Sequence[M]) -> Iterator[None]:
        for member in members:
            self._note(member)
        for name, slot in self._members.items():
            self._weights[name] = _weight(slot)
        self._total = sum(self._weights.values())
        self._points = _points_of(self._total)
        parts: list[list[int]] = [[] for _ in range(_PARTS)]
        for name, weight in self._weights.items():
            self._on_ring[name] = wanted = weight * self._points
            for first in range(0, wanted, _AT_ONCE):
                for point in _points(name, first, min(first + _AT_ONCE, wanted)):
                    self._owners[point] = name
                    parts[point // _PART].append(point)
                yield
        for part in parts:
            part.sort()
            self._ring += part
            yield

    def add(self, member: M) -> None:
        self._note(member)
        self._resize(_name(member))

    def remove(self, member: M) -> None:
        name = _name(member)
        members = self._members[name]
        members.remove(member)
        if not members:
            del self._members[name]
        self._resize(name)

    def _note(self, member: M) -> None:
        name = _name(member)
        members = self._members.get(name)
        if members is None:
            self._members[name] = [member]
        else:
            members.append(member)

    def _resize(self, name: Name) -> None:
        """A slot may have another weight now."""
        weight = _weight(self._members.get(name, ()))
        self._total += weight - self._weights.pop(name, 0)
        if weight:
            self._weights[name] = weight
        if _points_of(self._total) != self._points and len(self._ring) <= _SMALL:
            self._make_ring()
        else:
            self._put_points(name, weight * self._points)
        self._cached = {}

    def _put_points(self, name: Name, wanted: int) -> None:
        """A slot is to have so many points; in a large ring that may have to wait for another."""
        have = count = self._on_ring.pop(name, 0)
        if len(self._ring) + wanted <= _SMALL:
            count = wanted
        else:
            count = max(have - _AT_ONCE, min(wanted, have + _AT_ONCE))
            if count != wanted or _points_of(self._total) != self._points:
                self.is_rough = True
        for point in _points(name, have, count):
            insort(self._ring, point)
            self._owners[point] = name
        for point in _points(name, count, have):
            del self._ring[bisect_left(self._ring, point)]
            del self._owners[point]
        if count:
            self._on_ring[name] = count

    def _make_ring(self) -> None:
        points = self._points = _points_of(self._total)
        self._on_ring = {name: weight * points for name, weight in self._weights.items()}
        self._owners = {
            point: name
            for name, count in self._on_ring.items()
            for point in _points(name, 0, count)
        }
        self._ring = sorted(self._owners)

    # -- the rotation

    def enter(self, member: M) -> None:
        name = _name(member)
        members = self._slots.get(name)
        if members is None:
            self._slots[name] = [member]
        else:
            members.append(member)
            members.sort(key=_precedence, reverse=True)
        self._cached = {}

    def leave(self, member: M) -> None:
        name = _name(member)
        members = self._slots[name]
        members.remove(member)
        if not members:
            del self._slots[name]
        self._cached = {}

    def present(self) -> Collection[M]:
        return [member for members in self._slots.values() for member in members]

    def state_changed(self, member: M) -> None:
        members = self._slots[_name(member)]
        if len(members) > 1:
            members.sort(key=_precedence, reverse=True)
            self._cached = {}

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
        if not self._slots:
            return None
        size = len(ring)
        nearest, shortest = 0, _RING + 1
        for probe in unpack(_PROBES, _digest(client)):
            at = bisect_left(ring, probe)
            point = ring[at if at < size else 0]
            way = (point - probe) & _RING
            if way < shortest:
                nearest, shortest = point, way
        members = self._slots.get(self._owners[nearest])
        return self._nearest_of_others(client, ()) if members is None else members[0]

    def _nearest_of_others(self, client: str, avoid: Collection[M]) -> M | None:
        """Where it is at home while those are away, and those that are out of the rotation."""
        ring, slots, owners = self._ring, self._slots, self._owners
        size = len(ring)
        if len(avoid) >= len(slots) and all(one in avoid for one in self.present()):
            return None
        nearest, shortest = None, _RING + 1
        for probe in unpack(_PROBES, _digest(client)):
            at = bisect_left(ring, probe)
            for step in range(size):
                point = ring[(at + step) % size]
                way = (point - probe) & _RING
                if way >= shortest:
                    break
                members = slots.get(owners[point])
                if members is None:
                    continue
                member = next((one for one in members if one not in avoid), None)
                if member is not None:
                    nearest, shortest = member, way
                    break
        return nearest


def _precedence(member: M) -> tuple[bool, int]:
    return member.state is MemberState.UP, member.number


def _digest(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogateescape"), digest_size=_DIGEST_SIZE).digest()


def _name(member: Candidate) -> Name:
    return member.address if member.is_upstream else member.slot


def _points_of(weights: int) -> int:
    """For a unit of weight, of so many in all."""
    points = _POINTS
    while points > 1 and points * weights > _MAX_POINTS:
        points //= 2
    return points


def _weight(members: Sequence[M]) -> int:
    """Of a slot that has these members."""
    if len(members) == 1:
        return members[0].weight
    return max((member.weight for member in members), default=0)


def _points(name: Name, first: int, end: int) -> Iterable[int]:
    """Points of a slot on the ring, of all that it could have."""
    if first >= end:
        return ()
    points: list[int] = []
    begin = first - first % _POINTS_OF_DIGEST
    while begin + len(points) < end:
        points.extend(unpack(_PROBES, _digest(f"{begin + len(points)} {name}")))
    return points[first - begin : end - begin]
