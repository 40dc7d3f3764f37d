"""The members of one service, and which of them are in the rotation.

The pool is the only owner of a member's standing. The supervisor's word (join, leave),
active checks and the traffic's own failures all end here as events of one table (`standing`);
`balance` is told the outcome and chooses among those that are UP. It must not know how a
check is made or a request delivered. No I/O, no clock: `now` is any clock that does not
jump, in seconds.

Members come and go at any time. One that was removed stays ABSENT for whoever still holds
it: what is then said of its requests and checks changes nothing.

Why the traffic may only eject, for a time, and checks alone say DOWN: a burst of 5xx is
often a bad request's fault, and ejecting on it without limits would let one client take
the whole service down.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from penstock_proxy.balance import policy
from penstock_proxy.config import Balance, Ejection, Health, Target
from penstock_proxy.standing import ANOTHER, Event, Standing, after

NEVER: Final = float("-inf")
"""Long ago: of what was so before we came."""
COLDEST: Final = 0.1
"""The part of its share that a member begins with: with less it would not warm up."""
_FALLEN: Final = (Standing.DOWN, Standing.EJECTED)
"""Standings of those that were in the rotation, and whose process is still there."""
MAX_TIMES: Final = 10
"""Ejections grow with their number, up to this many times `eject_for`."""


@dataclass(slots=True, eq=False)
class Member:
    """One worker as the pool sees it. Only the pool writes it, but for `active` and `elsewhere`."""

    slot: int
    address: str
    weight: int
    standing: Standing
    active: int = 0
    """Exchanges or connections in flight; written by the delivery."""
    failures: int = 0
    """Of the traffic, in a row."""
    ejections: int = 0
    """Since it was added."""
    failed: int = 0
    """Of the traffic, while it was in the rotation; since the start."""
    elsewhere: int = 0
    """Requests that it failed and that were tried elsewhere: no counter has them under its slot."""
    generation: int = 0
    """How often it joined or left: a check that began in another one is void."""
    reason: str = ""
    """Of the last change, for people."""
    passes: int = 0
    """Good checks in a row."""
    fails: int = 0
    """Bad checks in a row."""
    penalty: int = 0
    """Ejections that are not forgotten yet."""
    until: float = 0.0
    """End of the ejection."""
    since: float = 0.0
    """When it last came into the rotation."""
    ramp: float = 1.0
    """What it takes of its weight's share."""
    warming_since: float = NEVER
    """When it began to warm up."""
    is_there: bool = True
    """Something listens where it should: its last check was not refused."""
    full: bool = False
    """It has as much as it may have at a time."""


class Pool:
    """Who may be picked, and who is.

    `random` returns numbers in [0, 1). `on_change(member, reason)` is called after each
    entry into the rotation and each exit; it may pick, but must not change standings.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        balance: Balance,
        health: Health,
        ejection: Ejection,
        random: Callable[[], float],
        on_change: Callable[[Member, str], None],
        on_panic: Callable[[bool], None] = lambda _: None,
        per_worker: int = 0,
    ) -> None:
        """`per_worker`: how much a member may have at a time; 0: no limit.

        `on_panic` is called when so few are in the rotation that all are picked again, and
        when that is over.
        """
        self.members = tuple(_member(target) for target in targets)
        self.in_rotation = 0
        self.picked: tuple[Member, ...] = ()
        """Who may be picked: the rotation, or in a panic all that live."""
        self.free = 0
        """Members that can be picked now."""
        self._per_worker = per_worker
        self._full: set[Member] = set()
        self._by_slot = {member.slot: member for member in self.members}
        self._health = health
        self._ejection = ejection
        self._on_change = on_change
        self._on_panic = on_panic
        self._is_panicking = False
        self._policy = policy(balance, self.members, random)
        self.counts_open = self._policy.counts_open or per_worker > 0
        """Who is picked depends on what is open: whoever closes has to say so at once."""
        self.uses_client_address = self._policy.uses_client_address
        self._slow_start = 0.0 if self._policy.ignores_slow_start else health.slow_start
        self._slow: tuple[Member, ...] = ()
        self._rotate()

    def add(self, target: Target) -> Member:
        """Take in a new member. Unless it is said to be up, its first good check comes first.

        ValueError: its slot is taken.
        """
        if target.slot in self._by_slot:
            raise ValueError(f"slot {target.slot} is taken")
        member = _member(target)
        self._by_slot[member.slot] = member
        self.members = (*self.members, member)
        self._policy.add(member)
        if member.standing is Standing.UP:
            self._rotate()
            self._on_change(member, member.reason)
        return member

    def remove(self, slot: int) -> Member:
        """Take a member out for good; what it has in flight may end whenever it does.

        KeyError: there is no such slot. It may be added again at once.
        """
        member = self._by_slot[slot]
        self._step(member, Event.LEAVE, "was removed")
        del self._by_slot[slot]
        self.members = tuple(self._by_slot.values())
        self._policy.remove(member)
        self._full.discard(member)
        member.full = False
        if member in self._slow:
            self._slow = tuple(one for one in self._slow if one is not member)
            self._policy.spare(self._slow)
        return member

    def pick(self, client: str, avoid: Collection[Member] = ()) -> Member | None:
        """The member for a request of this client address, or None when there is none.

        `avoid` holds the members that this request has tried already. Whoever asks counts
        it as `active`, or says that it has `left`.
        """
        if self._per_worker:
            return self._pick_limited(client, avoid)
        return self._policy.pick(client, avoid)

    def _pick_limited(self, client: str, avoid: Collection[Member]) -> Member | None:
        if self._full:
            avoid = self._full.union(avoid)
        member = self._policy.pick(client, avoid)
        if member is None or member in avoid:
            return None
        if member.active + 1 >= self._per_worker:
            member.full = True
            self._full.add(member)
            self.free -= 1
        return member

    def left(self, member: Member) -> bool:
        """A member that was full has less to do: is there room again?"""
        if not member.full or member.active >= self._per_worker:
            return False
        member.full = False
        self._full.discard(member)
        self._count_free()
        return True

    def _count_free(self) -> None:
        self.free = sum(not member.full for member in self.picked)

    def join(self, slot: int, address: str | None = None) -> None:
        """The slot's process is ready; it is picked after its first good check.

        `address`: where it listens, if it is not where the one before did.
        """
        member = self._by_slot[slot]
        if address is not None:
            member.address = address
        self._step(member, Event.JOIN, "waits for its first good check")

    def hold(self, slot: int) -> None:
        """The slot's process is about to leave: from now on it is not picked."""
        self._step(self._by_slot[slot], Event.HOLD, "is about to leave")

    def member(self, slot: int) -> Member:
        """The member in this slot. KeyError: there is no such slot."""
        return self._by_slot[slot]

    def leave(self, slot: int) -> None:
        """The slot's process is gone."""
        self._step(self._by_slot[slot], Event.LEAVE, "process is gone")

    def checked(
        self, member: Member, *, ok: bool, now: float, why: str, is_there: bool = True
    ) -> None:
        """Note the result of an active check; `why` says what was wrong with a bad one, and
        `is_there` whether anything listens there at all."""
        if member.is_there != is_there:
            member.is_there = is_there
            self._rotate()
        first = member.standing is Standing.CHECKING
        if ok:
            member.passes, member.fails = member.passes + 1, 0
            if first or member.passes >= self._health.rise:
                passed = "its first check" if first else _checks(member.passes)
                self._step(member, Event.GOOD, f"passed {passed}", now)
            return
        member.passes, member.fails = 0, member.fails + 1
        if first:
            member.reason = f"no good check yet: {why}"
        if member.fails >= self._health.fall:
            self._step(member, Event.BAD, f"failed {_checks(member.fails)}: {why}")

    def failed(self, member: Member, now: float) -> None:
        """Note a failure of the traffic (connect failed, reset, 5xx); it may eject."""
        if member.standing is not Standing.UP:
            return
        member.failures += 1
        member.failed += 1
        needed = self._ejection.failures
        if needed and member.failures >= needed:
            row = "a failure" if needed == 1 else f"{member.failures} failures in a row"
            self.eject(member, now, row)

    def eject(self, member: Member, now: float, why: str) -> None:
        """Leave one that is in the rotation alone for a time, if it may be done without."""
        if not self._may_eject():
            return
        self._forget(member, now)
        member.penalty = min(member.penalty + 1, MAX_TIMES)
        duration = self._ejection.eject_for * member.penalty
        member.until = now + duration
        member.ejections += 1
        self._step(member, Event.EJECT, f"for {duration:g} s, after {why}")

    def succeeded(self, member: Member) -> None:
        """Note a success of the traffic: it ends a row of failures."""
        member.failures = 0

    def tick(self, now: float) -> None:
        """End the ejections that are over, and warm up; call it about every 100 ms."""
        if self._slow:
            self._warm_up(now)
        for member in self.members:
            if member.standing is Standing.EJECTED and member.until <= now:
                self._step(member, Event.RETURN, "its ejection is over", member.until)

    def returns(self) -> Iterator[float]:
        """When those that are ejected come back."""
        return (member.until for member in self.members if member.standing is Standing.EJECTED)

    def rows(self) -> list[dict[str, Any]]:
        """The members as plain values, for the status page and the metrics."""
        return [
            {
                "slot": member.slot,
                "address": member.address,
                "weight": member.weight,
                "standing": member.standing.value,
                "active": member.active,
                "failures": member.failures,
                "ejections": member.ejections,
                "reason": member.reason,
            }
            for member in self.members
        ]

    def _may_eject(self) -> bool:
        """Never the last one, and never more than the share of those whose checks pass."""
        if self.in_rotation < 2:
            return False
        ejected = sum(member.standing is Standing.EJECTED for member in self.members)
        # A little more than exact: 0.29 * 100 is 28.999… in binary.
        allowed = self._ejection.max_ejected * (self.in_rotation + ejected) + 1e-9
        return ejected + 1 <= allowed

    def _forget(self, member: Member, now: float) -> None:
        """Healthy for as long as its last ejection took: one ejection is forgotten."""
        healthy = now - member.since
        while member.penalty and healthy >= (took := self._ejection.eject_for * member.penalty):
            healthy -= took
            member.penalty -= 1

    def _step(self, member: Member, event: Event, reason: str, now: float = 0.0) -> None:
        before = member.standing
        to = after(before, event, member.slot)
        if to is before:
            return
        member.standing, member.reason = to, reason
        if event in ANOTHER:
            # Another process: what the last one did is not held against it.
            member.generation += 1
            member.is_there = True
            member.failures = member.passes = member.fails = member.penalty = 0
        if to is Standing.UP:
            member.failures, member.since = 0, now
            self._cool(member, now)
        elif before is not Standing.UP:
            self._rotate()
            return
        self._rotate()
        self._on_change(member, reason)
        if not self.in_rotation:
            self._recall()

    def _recall(self) -> None:
        """An ejected member is better than none at all."""
        for member in self.members:
            if member.standing is Standing.EJECTED:
                self._step(member, Event.RETURN, "nobody else is left", member.until)

    def _cool(self, member: Member, now: float) -> None:
        """It has come into the rotation and begins with little, if others can do the rest."""
        if not self._slow_start:
            return
        others = [m for m in self.members if m.standing is Standing.UP and m is not member]
        member.warming_since = now
        if others and not any(now - m.warming_since >= self._slow_start for m in others):
            # Nobody is warm, so there is nobody to spare it: as at a start, when all join.
            member.warming_since = max(m.warming_since for m in others)
        self._warm_up(now)

    def _warm_up(self, now: float) -> None:
        """Each has a share that grows in time; that of the warmest is a whole one."""
        rotation = [m for m in self.members if m.standing is Standing.UP]
        warmth = {
            m: max(COLDEST, min(1.0, (now - m.warming_since) / self._slow_start)) for m in rotation
        }
        most = max(warmth.values(), default=1.0)
        for member in self.members:
            member.ramp = warmth.get(member, most) / most
        self._slow = tuple(member for member in rotation if member.ramp < 1)
        self._policy.spare(self._slow)

    def _rotate(self) -> None:
        rotation = [member for member in self.members if member.standing is Standing.UP]
        self.in_rotation = len(rotation)
        living = [
            m
            for m in self.members
            if m.standing is Standing.UP or (m.standing in _FALLEN and m.is_there)
        ]
        # A little less than exact: 0.29 * 100 is 28.999… in binary.
        panics = len(rotation) < self._ejection.panic * len(living) - 1e-9
        self.picked = tuple(living if panics else rotation)
        self._policy.rotate(self.picked)
        self._count_free()
        if panics != self._is_panicking:
            self._is_panicking = panics
            self._on_panic(panics)


def _checks(count: int) -> str:
    return "a check" if count == 1 else f"{count} checks in a row"


def _member(target: Target) -> Member:
    if not target.joined:
        standing, reason = Standing.ABSENT, "not started yet"
    elif target.up:
        standing, reason = Standing.UP, "was up before the front was restarted"
    else:
        standing, reason = Standing.CHECKING, "waits for its first good check"
    return Member(target.slot, target.address, target.weight, standing, reason=reason)
