"""The balancing policies: each picks a member of the rotation for a request.

Owns: the order in which members are picked. Must not know: why a member is in the rotation or
not. The pool calls `set_rotation` when the rotation changes, which is rare. All the work is done
there, so that `pick` costs each request only a few reads. `avoid` names members that the request
has already tried. No I/O, no clock, and randomness is an argument.

To add a policy, write a class here, give it a row in `POLICIES`, and add its name to
`config.Balance`. What other modules have to know about a policy are attributes of its class:
nothing else depends on its name.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate
from math import log
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.schedule import same_turn, schedule
from penstock_proxy.config import Balance

_MAX_CACHED_CLIENTS: Final = 4096
"""Entries in the cache of `ClientHash`: strangers must not be able to make it grow."""


class Candidate(Protocol):
    """A member, as a policy needs it."""

    number: int
    """The newer one of two has the higher number."""
    slot: int
    """A worker and its successor have the same for a time."""
    address: str
    """Empty: connections are passed to the worker."""
    weight: int
    active: int
    weight_factor: float
    """The part of its weight that counts: less than 1 in slow start. Read only then."""
    is_upstream: bool
    """It is not ours."""
    state: MemberState
    """Not UP, although it is in the rotation: in panic mode."""


M = TypeVar("M", bound=Candidate)


class Policy(Generic[M]):
    """A policy: how the member for a request is picked."""

    __slots__ = ()

    counts_open: ClassVar[bool] = False
    """It compares `active`, so the end of a connection must be counted at once."""
    ignores_slow_start: ClassVar[bool] = False
    """Every member gets its whole share at once."""
    uses_client_address: ClassVar[bool] = False
    """`pick` depends on the client's address. If not, callers may pass an empty string."""

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        """A policy for these members. The rotation is empty until `set_rotation` is called.

        `random` returns numbers in [0, 1).
        """
        raise NotImplementedError

    def add(self, member: M) -> None:
        """Add a member, which is not in the rotation yet."""

    def remove(self, member: M) -> None:
        """Remove a member, which is out of the rotation already."""

    def set_rotation(self, rotation: Sequence[M]) -> None:
        """Set the members that may be picked."""
        raise NotImplementedError

    def set_slow_start(self, slow: Collection[M]) -> None:
        """Set the members in slow start: their weight is multiplied by `weight_factor`."""
        raise NotImplementedError

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        """The member for a request of this client address; None if there is none left."""
        raise NotImplementedError


def policy(balance: Balance, members: Sequence[M], random: Callable[[], float]) -> Policy[M]:
    """Make the policy of that name, for these members; see `Policy`."""
    return POLICIES[balance](members, random)


class RoundRobin(Policy[M]):
    """Exact turns, by weight.

    The schedule holds all members, and the cursor is a place in it. Members that are out of the
    rotation are skipped, so a member that enters or leaves the rotation changes no other member's
    turn. (A cursor into the list of the rotation would jump with each change.) A member that is
    removed takes its places with it, which changes no other turn either. A member that is added
    may change the order of the others if weights differ; the next member stays the next.
    """

    __slots__ = ("_at", "_credit", "_members", "_next", "_present", "_schedule")

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._credit: dict[M, float] = {}
        """By member in slow start: the part of a turn that it has saved up."""
        self._members = list(members)
        self._present: set[M] = set()
        self._schedule = _scheduled(self._members)
        self._at = 0
        self._next: list[tuple[M, int]] = []
        """For each place in the schedule: the member whose turn it is, and the place after it."""

    def add(self, member: M) -> None:
        self._members.append(member)
        before, self._schedule = self._schedule, _scheduled(self._members)
        if before:
            at = (self._next[self._at][1] - 1) % len(before) if self._next else self._at
            self._at = same_turn(before, at, self._schedule)
        self._update_next()

    def remove(self, member: M) -> None:
        self._members.remove(member)
        self._credit.pop(member, None)
        self._at -= self._schedule[: self._at].count(member)
        self._schedule = [one for one in self._schedule if one is not member]
        if self._at == len(self._schedule):
            self._at = 0
        self._update_next()

    def set_rotation(self, rotation: Sequence[M]) -> None:
        self._present = set(rotation)
        self._update_next()

    def _update_next(self) -> None:
        """Compute for each place in the schedule whose turn it is."""
        present, places = self._present, len(self._schedule)
        turns = [
            (member, (place + 1) % places)
            for place, member in enumerate(self._schedule)
            if member in present
        ]
        self._next = []
        if not turns:
            return
        following = turns[0]
        for member in reversed(self._schedule):
            if member in present:
                following = turns.pop()
            self._next.append(following)
        self._next.reverse()

    def set_slow_start(self, slow: Collection[M]) -> None:
        self._credit = {member: self._credit.get(member, 0.0) for member in slow}

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        turns = self._next
        if not turns:
            return None
        member, after = turns[self._at]
        if self._credit:
            return self._pick_in_slow_start(avoid)
        if avoid:
            # Avoided members lose this turn, as if they were out of the rotation. If the
            # cursor did not move, the member after a dead worker would get the dead one's
            # turns in addition to its own.
            for _ in turns:
                if member not in avoid:
                    break
                member, after = turns[after]
            else:
                return None
        self._at = after
        return member

    def _pick_in_slow_start(self, avoid: Collection[M]) -> M | None:
        """Pick, and skip a member in slow start, as if avoided, until it has saved up a turn."""
        turns, credit = self._next, self._credit
        otherwise: tuple[M, int] | None = None
        after = self._at
        for _ in turns:
            member, after = turns[after]
            if member in avoid:
                continue
            if member in credit:
                credit[member] += member.weight_factor
                # Rounded a little: ten times 0.1 is 0.999… in binary.
                if credit[member] < 1 - 1e-9:
                    otherwise = otherwise or (member, after)
                    continue
                credit[member] -= 1
            self._at = after
            return member
        if otherwise is None:
            return None
        # Only members in slow start are left: they share as if they were not in it.
        member, self._at = otherwise
        return member


class LeastConnections(Policy[M]):
    """The member with the fewest requests for its weight; equal ones take exact turns."""

    __slots__ = ("_has_slow_start", "_rotation", "_turns")
    counts_open = True

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._turns = RoundRobin(members, random)
        self._rotation: tuple[M, ...] = ()
        self._has_slow_start = False

    def add(self, member: M) -> None:
        self._turns.add(member)

    def remove(self, member: M) -> None:
        self._turns.remove(member)

    def set_rotation(self, rotation: Sequence[M]) -> None:
        self._rotation = tuple(rotation)
        self._turns.set_rotation(rotation)

    def set_slow_start(self, slow: Collection[M]) -> None:
        self._has_slow_start = bool(slow)
        self._turns.set_slow_start(slow)

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        members: Sequence[M] = self._rotation
        if avoid:
            members = [member for member in members if member not in avoid]
        if not members:
            return None
        if self._has_slow_start:
            loads = [member.active / (member.weight * member.weight_factor) for member in members]
        else:
            loads = [member.active / member.weight for member in members]
        least = min(loads)
        if loads.count(least) == 1:
            return members[loads.index(least)]
        idle = {member for member, load in zip(members, loads, strict=True) if load == least}
        return self._turns.pick(client, [m for m in self._rotation if m not in idle])


class PowerOfTwo(Policy[M]):
    """Two members at random, and of these the one with fewer requests for its weight.

    It is nearly as even as a comparison of all members, and its cost does not grow with their
    number. Several proxies, which do not know each other's requests, do not all pick the same
    idle worker.
    """

    __slots__ = ("_has_slow_start", "_random", "_rotation")
    counts_open = True

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._random = random
        self._rotation: tuple[M, ...] = ()
        self._has_slow_start = False

    def set_rotation(self, rotation: Sequence[M]) -> None:
        self._rotation = tuple(rotation)

    def set_slow_start(self, slow: Collection[M]) -> None:
        self._has_slow_start = bool(slow)

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        members: Sequence[M] = self._rotation
        if avoid:
            members = [member for member in members if member not in avoid]
        count = len(members)
        if count < 2:
            return members[0] if count else None
        first = int(self._random() * count)
        # One of the others: counted from the one after the first.
        second = (first + 1 + int(self._random() * (count - 1))) % count
        one, other = members[first], members[second]
        weight = float(one.weight)
        others = float(other.weight)
        if self._has_slow_start:
            weight, others = weight * one.weight_factor, others * other.weight_factor
        # a/b < c/d without the division.
        difference = one.active * others - other.active * weight
        if difference == 0 and weight != others:
            # Otherwise idle workers would share equally, whatever their weights.
            mine = self._random() * (weight + others) < weight
            return one if mine else other
        return one if difference <= 0 else other


class ClientHash(Policy[M]):
    """A client keeps its slot. A worker that leaves the rotation moves only its own clients.

    Rendezvous hashing: each pair of client and member has a score, and the highest score wins.
    A ring needs hundreds of points for each member to be about even, and approximates weights.
    This is even and exact. It costs one digest for each member, and only once for each client
    while the rotation stays the same. The score depends on the slot, so that a client stays where
    it is when a worker is replaced, at whatever address. While a slot has two workers, the newer
    one gets its clients if it is up. An upstream has no slot of its own but its address, so that a
    reordered list of upstreams moves no client.
    """

    __slots__ = ("_cached", "_rotation")
    ignores_slow_start = True
    uses_client_address = True

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._rotation: tuple[M, ...] = ()
        self._cached: dict[str, M] = {}

    def set_rotation(self, rotation: Sequence[M]) -> None:
        self._rotation = tuple(rotation)
        self._cached.clear()

    def set_slow_start(self, slow: Collection[M]) -> None:
        """Does nothing: a client that got another worker for a time would lose its own."""

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        member = self._cached.get(client)
        if member is None:
            if not self._rotation:
                return None
            if len(self._cached) >= _MAX_CACHED_CLIENTS:
                self._cached.clear()
            member = self._cached[client] = _highest_score(client, self._rotation)
        if avoid and member in avoid:
            others = [other for other in self._rotation if other not in avoid]
            return _highest_score(client, others) if others else None
        return member


class WeightedRandom(Policy[M]):
    """A random member, by weight."""

    __slots__ = ("_has_slow_start", "_random", "_tickets")

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        self._random = random
        self._tickets: tuple[M, ...] = ()
        self._has_slow_start = False

    def set_rotation(self, rotation: Sequence[M]) -> None:
        self._tickets = tuple(member for member in rotation for _ in range(member.weight))

    def set_slow_start(self, slow: Collection[M]) -> None:
        self._has_slow_start = bool(slow)

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        tickets: Sequence[M] = self._tickets
        if avoid:
            tickets = [ticket for ticket in tickets if ticket not in avoid]
        if self._has_slow_start and tickets:
            ends = list(accumulate(ticket.weight_factor for ticket in tickets))
            return tickets[bisect_right(ends, self._random() * ends[-1])]
        return tickets[int(self._random() * len(tickets))] if tickets else None


POLICIES: Final[Mapping[Balance, type[Policy[Any]]]] = {
    "round_robin": RoundRobin,
    "least_connections": LeastConnections,
    "power_of_two": PowerOfTwo,
    "client_hash": ClientHash,
    "random": WeightedRandom,
}
"""By their names in the configuration."""


def _scheduled(members: Sequence[M]) -> list[M]:
    return [members[index] for index in schedule([member.weight for member in members])]


def _highest_score(client: str, members: Sequence[M]) -> M:
    """The member with the highest score for this client.

    A worker and its successor have the same score: the newer one is taken, if it is up.
    """

    def score(member: M) -> tuple[float, bool, int]:
        # Not Python's hash(): it differs between processes, and each proxy must pick the same
        # worker for a client.
        name = member.address if member.is_upstream else member.slot
        pair = f"{name} {client}".encode(errors="surrogateescape")
        digest = blake2b(pair, digest_size=6).digest()
        share = (int.from_bytes(digest, "big") + 0.5) / (1 << 48)
        # Weighted rendezvous (Schindelhauer and Schomaker 2005): the maximum of ln(u)/w
        # over uniform u falls on each member with probability w / sum(w).
        return log(share) / member.weight, member.state is MemberState.UP, member.number

    return max(members, key=score)
