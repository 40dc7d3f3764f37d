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

from penstock_proxy.balancing.policies.policy import M
from penstock_proxy.balancing.policies.turns import TurnPolicy


class LeastConnections(TurnPolicy[M]):
    """The order by load, and the turns of those that are equal."""

    __slots__ = ("_bits", "_buckets", "_credit", "_known", "_load", "_loads", "_slow")
    counts_open = True
    orders_by_load = True

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._bits: dict[M, int] = {}
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
        self._begin(members)
        self._reordered()

    # -- members

    def _appended(self, member: M, count: int) -> None:
        self._bits[member] = ((1 << count) - 1) << self._places[member][0]

    def _removed(self, member: M) -> None:
        self._credit.pop(member, None)
        self._slow -= {member}
        del self._bits[member]
        if len(self._loads) > len(self._buckets):
            # Of loads that nobody has any more nothing is kept for ever.
            self._loads = sorted(self._buckets)
            self._known = set(self._loads)

    def _reordered(self) -> None:
        """All have other bits."""
        self._bits = {}
        for member, places in self._places.items():
            bits = 0
            for place in places:
                bits |= 1 << place
            self._bits[member] = bits
        present = tuple(self._load)
        self._load, self._buckets, self._loads, self._known = {}, {}, [], set()
        for member in present:
            self.enter(member)

    # -- the rotation

    def enter(self, member: M) -> None:
        self._put(member, self._load_of(member))

    def leave(self, member: M) -> None:
        self._take_out(member)

    def present(self) -> Collection[M]:
        return self._load.keys()

    def set_slow_start(self, slow: Collection[M]) -> None:
        changed = self._slow.union(slow)
        self._slow = frozenset(slow)
        self._credit = {member: self._credit.get(member, 0.0) for member in slow}
        for member in changed:
            self.lessened(member)

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
        left = self._buckets[load] ^ self._bits[member]
        if left:
            self._buckets[load] = left
        else:
            del self._buckets[load]

    def _put(self, member: M, load: float) -> None:
        if load not in self._known:
            self._known.add(load)
            heappush(self._loads, load)
        self._buckets[load] = self._buckets.get(load, 0) | self._bits[member]
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
        self._at = otherwise + 1
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
