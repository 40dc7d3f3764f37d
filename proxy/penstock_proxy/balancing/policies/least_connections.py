"""The member with the fewest requests for its weight; equal ones take exact turns.

Owns: an order by load that costs no look at every member. Members of one load are a bucket, which
is a number: bit `n` is set if the member whose turn is at place `n` of the schedule has that load.
So the next of many equal ones is found by shifting, in the order of turns and whatever their
weights. No I/O, no clock.

Who forwards requests changes `active` itself, and says so only when it becomes less
(`Policy.lessened`): a member's bucket may be too low, never too high. One that is found in the
lowest bucket and has more by now goes to its own, and the next one is looked at. So each request
costs one or two such moves, with two members and with a thousand.
"""

from collections.abc import Callable, Collection, Sequence
from heapq import heappop, heappush

from penstock_proxy.balancing.policies.policy import M, Policy
from penstock_proxy.balancing.policies.round_robin import scheduled
from penstock_proxy.balancing.policies.schedule import same_turn


class LeastConnections(Policy[M]):
    """The order by load, and the turns of those that are equal."""

    __slots__ = (
        "_at", "_buckets", "_credit", "_known", "_load", "_loads", "_members", "_places",
        "_rotation", "_schedule", "_slow",
    )  # fmt: skip
    counts_open = True
    orders_by_load = True

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._members = list(members)
        self._rotation: tuple[M, ...] = ()
        self._schedule: list[M] = scheduled(self._members)
        self._at = 0
        """The place in the schedule where the next one of equals is looked for."""
        self._places: dict[M, int] = {}
        """By member, the bits of its places in the schedule."""
        self._load: dict[M, float] = {}
        """Of each in the rotation, the bucket that it is in."""
        self._buckets: dict[float, int] = {}
        """By load, the bits of the members in it. None is 0."""
        self._loads: list[float] = []
        """A heap of these loads, and of some whose bucket is gone; each once."""
        self._known: set[float] = set()
        """The loads in the heap."""
        self._slow: frozenset[M] = frozenset()
        self._credit: dict[M, float] = {}
        """By member in slow start: the part of a turn that it has saved up."""
        self._rebuild()

    # -- members

    def add(self, member: M) -> None:
        self._members.append(member)
        before, self._schedule = self._schedule, scheduled(self._members)
        if before:
            self._at = same_turn(before, self._at, self._schedule)
        self._rebuild()

    def remove(self, member: M) -> None:
        self._members.remove(member)
        self._credit.pop(member, None)
        self._slow -= {member}
        self._rotation = tuple(one for one in self._rotation if one is not member)
        self._at -= self._schedule[: self._at].count(member)
        self._schedule = [one for one in self._schedule if one is not member]
        if self._at == len(self._schedule):
            self._at = 0
        self._rebuild()

    def set_rotation(self, rotation: Sequence[M]) -> None:
        self._rotation = tuple(rotation)
        self._rotate()

    def set_slow_start(self, slow: Collection[M]) -> None:
        changed = self._slow.union(slow)
        self._slow = frozenset(slow)
        self._credit = {member: self._credit.get(member, 0.0) for member in slow}
        for member in changed:
            self.lessened(member)

    def _rebuild(self) -> None:
        """The schedule has changed, and with it the bits of all."""
        places: dict[M, int] = {}
        for place, member in enumerate(self._schedule):
            places[member] = places.get(member, 0) | 1 << place
        self._places = places
        self._load, self._buckets, self._loads, self._known = {}, {}, [], set()
        self._rotate()

    def _rotate(self) -> None:
        """Bring the buckets to the rotation, which most often differs by one member."""
        present = frozenset(self._rotation)
        for member in tuple(self._load):
            if member not in present:
                self._take_out(member)
        for member in self._rotation:
            if member in self._load:
                self.lessened(member)
            else:
                self._put(member, self._load_of(member))

    def _load_of(self, member: M) -> float:
        if member in self._slow:
            return member.active / (member.weight * member.weight_factor)
        return member.active / member.weight

    def lessened(self, member: M) -> None:
        before = self._load.get(member)
        if before is not None:
            load = self._load_of(member)
            if load < before:
                self._move(member, load)

    def _move(self, member: M, load: float) -> None:
        self._take_out(member)
        self._put(member, load)

    def _take_out(self, member: M) -> None:
        load = self._load.pop(member)
        left = self._buckets[load] ^ self._places[member]
        if left:
            self._buckets[load] = left
        else:
            del self._buckets[load]

    def _put(self, member: M, load: float) -> None:
        if load not in self._known:
            self._known.add(load)
            heappush(self._loads, load)
        self._buckets[load] = self._buckets.get(load, 0) | self._places[member]
        self._load[member] = load

    # -- the choice

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        loads, buckets = self._loads, self._buckets
        passed: list[float] = []
        """Loads whose members are all to be avoided."""
        picked: M | None = None
        while loads:
            load = loads[0]
            if load in buckets:
                picked = self._pick_of(load, avoid)
                if picked is not None:
                    break
            if load == loads[0]:
                heappop(loads)
                if load in buckets:
                    passed.append(load)
                else:
                    self._known.discard(load)
        for load in passed:
            heappush(loads, load)
        return picked

    def _pick_of(self, load: float, avoid: Collection[M]) -> M | None:
        """The next of this load, in turn; None: there is none, or all are to be avoided."""
        schedule, at = self._schedule, self._at
        bits = self._buckets[load]
        otherwise = -1
        while bits:
            place = _next_place(bits, at)
            bits ^= 1 << place
            member = schedule[place]
            present = self._load_of(member)
            if present > load:
                # With its first place it has left this bucket; the others may still be in `bits`.
                if self._load[member] == load:
                    self._move(member, present)
            elif avoid and member in avoid:
                continue
            elif member in self._credit and not self._has_saved_a_turn(member):
                otherwise = place if otherwise < 0 else otherwise
            else:
                otherwise = place
                break
        if otherwise < 0:
            return None
        # If only members in slow start are left, they share as if they were not in it.
        self._at = otherwise + 1 if otherwise + 1 < len(schedule) else 0
        return schedule[otherwise]

    def _has_saved_a_turn(self, member: M) -> bool:
        credit = self._credit[member] + member.weight_factor
        # Rounded a little: ten times 0.1 is 0.999… in binary.
        saved = credit >= 1 - 1e-9
        self._credit[member] = credit - 1 if saved else credit
        return saved


def _next_place(bits: int, at: int) -> int:
    """The first place of these from `at` on, or else the first one."""
    ahead = bits >> at
    if ahead:
        return at + (ahead & -ahead).bit_length() - 1
    return (bits & -bits).bit_length() - 1
