"""The members of one service, and which of them are in the rotation.

Owns: the state of each member. Messages of the supervisor (join, leave, hold), active health
checks and failed requests become events of one table (`member_state`). The policy gets the
rotation and picks one of its members. Must not know: how a check is made, and how a request is
forwarded. No I/O, no clock: `now` is any monotonic clock, in seconds.

Members can be added and removed at any time. A removed member stays ABSENT for ever, so a
request or check of it that ends later changes nothing.

Failed requests can only eject a member for a time; health checks alone make it DOWN. A burst of
5xx is often the fault of a bad request: without limits on ejection, one client could take the
whole service down.

See docs/decisions/0011-traffic-ejects-checks-decide.md.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from penstock_proxy.balancing.check_results import fall_after_bad, is_proved, rise_after_good
from penstock_proxy.balancing.ejections import Ejections
from penstock_proxy.balancing.member import Member, member_of, row_of
from penstock_proxy.balancing.member_state import (
    PROCESS_CHANGES,
    MemberEvent,
    MemberState,
    next_state,
)
from penstock_proxy.balancing.policies.choice import policy
from penstock_proxy.balancing.rotation import Rotation
from penstock_proxy.balancing.slow_start import SlowStart
from penstock_proxy.config import Balance, Ejection, Health, Target

__all__ = ["Member", "Pool"]


class Pool:
    """The members of one service, and the choice of one for each request.

    `random` returns numbers in [0, 1). `on_change(member, reason)` is called after a member has
    entered or left the rotation; it may pick, but must not change states.
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
        on_waiting: Callable[[Member, str], None] = lambda *_: None,
        per_worker: int = 0,
    ) -> None:
        """`per_worker`: how many requests or connections a member may have; 0: no limit.

        `on_panic` is called with True when panic mode begins, because too few members are in
        the rotation, and with False when it ends. `on_waiting(member, reason)` is called when a
        member that has never been in the rotation fails a check, for another reason than before.
        """
        self.members = tuple(member_of(target, health) for target in targets)
        self.in_rotation = 0
        self.available = 0
        """How many eligible members are not full."""
        self._per_worker = per_worker
        self._full: set[Member] = set()
        self._by_number = {member.number: member for member in self.members}
        self._health = health
        self._ejection = ejection
        self._ejections = Ejections(ejection)
        self._on_change = on_change
        self._on_panic = on_panic
        self._on_waiting = on_waiting
        self._random = random
        self._slow_start = SlowStart(0.0)
        self._balance = balance
        self._policy = policy(balance, self.members, random)
        self._rotation = Rotation(self._policy, ejection.panic)
        self._note_policy()
        for member in self.members:
            self._update_rotation(member)

    @property
    def eligible(self) -> Collection[Member]:
        """Members that may be picked: the rotation, or in panic mode all that live."""
        return self._rotation.eligible

    def _exchanging_policy(self, balance: Balance) -> Iterator[None]:
        self._balance = balance
        another = policy(balance, self.members[:0], self._random)
        yield from self._rotation.exchanging(another, lambda: self.members)
        self._policy = self._rotation.policy
        self._note_policy()
        self._policy.set_slow_start(self._slow_start.slow)

    def _note_policy(self) -> None:
        self.counts_open = self._policy.counts_open or self._per_worker > 0
        """`pick` depends on `active`, so the end of a connection must be counted at once."""
        for member in self.members:
            member.is_ordered = self._policy.orders_by_load
        self.uses_client_address = self._policy.uses_client_address
        """`pick` depends on the client's address."""
        window = 0.0 if self._policy.ignores_slow_start else self._health.slow_start
        self._slow_start.configure(window, self.members)

    def configure(
        self, balance: Balance, health: Health, ejection: Ejection, per_worker: int, now: float
    ) -> None:
        """Take other settings; the members and their states stay. `available` may change.

        `health` is for members that are added from now on. See `set_health` for the others.
        """
        for _ in self.configuring(balance, health, ejection, per_worker, now):
            pass

    def configuring(
        self, balance: Balance, health: Health, ejection: Ejection, per_worker: int, now: float
    ) -> Iterator[None]:
        """`configure`; another policy is made in steps, and picks after the last one."""
        changes_slow_start = health.slow_start != self._health.slow_start
        self._health, self._ejection, self._per_worker = health, ejection, per_worker
        self._ejections.configure(ejection)
        for member in self.members:
            member.is_full = 0 < per_worker <= member.active
        self._full = {member for member in self.members if member.is_full}
        self._rotation_changed(self._rotation.configure(ejection.panic))
        if balance != self._balance:
            yield from self._exchanging_policy(balance)
            changes_slow_start = True
        else:
            self._note_policy()
        if changes_slow_start and self._slow_start.window:
            self._update_slow_start(now)

    def set_weights(self, weights: Mapping[int, int]) -> None:
        """Members get other shares from now on, by number."""
        for _ in self.setting_weights(weights):
            pass

    def setting_weights(self, weights: Mapping[int, int]) -> Iterator[None]:
        """`set_weights`, in steps; requests are shared by them after the last one."""
        changed = [
            (self._by_number[number], weight)
            for number, weight in weights.items()
            if number in self._by_number and self._by_number[number].weight != weight
        ]
        for member, weight in changed:
            member.weight = weight
        if changed:
            yield from self._exchanging_policy(self._balance)

    def set_name(self, number: int, name: str) -> None:
        """This name leads to the member's address now."""
        self._by_number[number].name = name

    def set_health(self, number: int, health: Health) -> None:
        """The member's checks are judged by this from now on."""
        self._by_number[number].health = health

    def add(self, target: Target, *, tells_rotation: bool = True) -> Member:
        """Add a member. It is picked after its first good check, unless `target.up` is set.

        `tells_rotation`: `on_change` is called for one that is up. ValueError: its number is taken.
        """
        if target.member in self._by_number:
            raise ValueError(f"member {target.member} is there already")
        member = member_of(target, self._health)
        self._ejections.inherit(member)
        self._by_number[member.number] = member
        self.members = (*self.members, member)
        member.is_ordered = self._policy.orders_by_load
        self._rotation.add(member)
        if member.state is MemberState.UP:
            self._update_rotation(member)
            if tells_rotation:
                self._on_change(member, member.reason)
        return member

    def remove(self, number: int) -> Member:
        """Remove a member for good. What it has in flight may end at any time later.

        KeyError: there is no such member.
        """
        member = self._by_number[number]
        self._apply(member, MemberEvent.LEAVE, "was removed")
        del self._by_number[number]
        self.members = tuple(self._by_number.values())
        self._ejections.leave(member, self.members)
        self._rotation.remove(member)
        self._full.discard(member)
        member.is_full = False
        if self._slow_start.discard(member):
            self._policy.set_slow_start(self._slow_start.slow)
        return member

    def pick(self, client: str, avoid: Collection[Member] = ()) -> Member | None:
        """The member for a request of this client address, or None when there is none.

        `avoid`: members that this request has tried already. The caller increments the
        member's `active`, or calls `released`.
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
        self.reserve(member)
        return member

    def reserve(self, member: Member) -> None:
        """This member, which is not full, gets a request: nobody has picked it for that, or this
        pool has. The caller increments its `active`."""
        if 0 < self._per_worker <= member.active + 1 and not member.is_full:
            member.is_full = True
            self._full.add(member)
            self.available -= member in self._rotation.eligible

    def released(self, member: Member) -> bool:
        """A member that was full or is ordered by its load has one request less. Returns True if
        it was full and can take another."""
        if member.is_ordered:
            self._policy.lessened(member)
        if not member.is_full or member.active >= self._per_worker:
            return False
        member.is_full = False
        self._full.discard(member)
        self.available += member in self._rotation.eligible
        return True

    def join(self, number: int, address: str | None = None) -> None:
        """The member's process is ready; it is picked after its first good check.

        `address`: where it listens, if the address has changed.
        """
        member = self._by_number[number]
        if address is not None:
            member.address = address
        member.is_held = False
        self._apply(member, MemberEvent.JOIN, "waits for its first good check")

    def drain(self, number: int) -> None:
        """The member's process is about to leave: from now on it is not picked."""
        self._apply(self._by_number[number], MemberEvent.DRAIN, "is about to leave")

    def member(self, number: int) -> Member:
        """The member with this number. KeyError: there is none."""
        return self._by_number[number]

    def has(self, number: int) -> bool:
        """Is there a member with this number?"""
        return number in self._by_number

    def leave(self, number: int) -> None:
        """The member's process is gone."""
        member = self._by_number[number]
        member.is_held = False
        self._apply(member, MemberEvent.LEAVE, "process is gone")

    def hold(self, number: int, reason: str) -> None:
        """The member's process may hang: it leaves the rotation until `release`."""
        member = self._by_number[number]
        member.is_held = True
        self._apply(member, MemberEvent.HOLD, reason)

    def release(self, number: int, now: float) -> None:
        """Nobody holds the member any more. From now on its health checks decide."""
        member = self._by_number[number]
        if member.is_held:
            member.is_held = False
            if is_proved(member):
                self._apply(member, MemberEvent.RISE, "no longer held", now)

    def checked(
        self, member: Member, *, ok: bool, now: float, reason: str, is_listening: bool = True
    ) -> None:
        """Record the result of a health check. `reason`: what was wrong, if it has failed.
        `is_listening`: whether a process listens at the member's address."""
        if member.is_listening != is_listening:
            member.is_listening = is_listening
            self._update_rotation(member)
        if ok:
            if why := rise_after_good(member):
                self._apply(member, MemberEvent.RISE, why, now)
            return
        waits = f"no good check yet: {reason}"
        if member.state is MemberState.CHECKING and member.reason != waits:
            # Whoever waits for it can say what for.
            member.reason = waits
            self._on_waiting(member, waits)
        if why := fall_after_bad(member, reason):
            self._apply(member, MemberEvent.FALL, why)

    def failed(self, member: Member, now: float) -> None:
        """Record a failed request (connect failed, reset, 5xx); it may eject the member."""
        if member.state is not MemberState.UP:
            return
        member.consecutive_failures += 1
        member.total_failures += 1
        needed = self._ejection.failures
        if needed and member.consecutive_failures >= needed:
            row = "a failure" if needed == 1 else f"{member.consecutive_failures} failures in a row"
            self.eject(member, now, row)

    def eject(self, member: Member, now: float, reason: str) -> None:
        """Take a member out of the rotation for a time, unless too many are ejected already."""
        if not self._ejections.may_eject(self.in_rotation):
            return
        duration = self._ejections.begin(member, now)
        self._apply(member, MemberEvent.EJECT, f"for {duration:g} s, after {reason}")

    def succeeded(self, member: Member) -> None:
        """Record a successful request: it ends a row of failures."""
        member.consecutive_failures = 0

    def tick(self, now: float) -> None:
        """Do all that is due."""
        for _ in self.ticking(now):
            pass

    def ticking(self, now: float) -> Iterator[None]:
        """Four times a second, in steps: end ejections, advance slow starts, even out the turns."""
        if self._slow_start.slow:
            self._update_slow_start(now)
        for member in tuple(self._ejections.present):
            if member.ejected_until <= now and member.state is MemberState.EJECTED:
                self._apply(
                    member, MemberEvent.UNEJECT, "its ejection is over", member.ejected_until
                )
                yield
        if self._policy.is_rough:
            yield from self._exchanging_policy(self._balance)

    def ejection_ends(self) -> Iterator[float]:
        """When each present ejection ends."""
        return (member.ejected_until for member in self._ejections.present)

    def snapshot(self) -> list[dict[str, Any]]:
        """The members as plain values, for the status page and the metrics."""
        return [row_of(member) for member in self.members]

    def _apply(self, member: Member, event: MemberEvent, reason: str, now: float = 0.0) -> None:
        before = member.state
        to = next_state(before, event, member.number)
        if to is before:
            return
        member.state, member.reason = to, reason
        self._ejections.note(member)
        if event in PROCESS_CHANGES:
            # Another process: the failures of the last one do not count for it.
            member.generation += 1
            member.is_listening = True
            member.consecutive_failures = member.good_checks = member.bad_checks = 0
            member.ejection_multiplier = 0
        if to is MemberState.UP:
            member.consecutive_failures, member.up_since = 0, now
            if self._slow_start.window:
                self._slow_start.begin(member, self.members, now)
                self._update_slow_start(now)
        elif before is not MemberState.UP:
            self._update_rotation(member)
            if before is MemberState.EJECTED and to is MemberState.DOWN:
                # It is not its traffic alone that is bad: the supervisor acts on that.
                self._on_change(member, reason)
            return
        self._update_rotation(member)
        self._on_change(member, reason)
        if not self.in_rotation:
            self._uneject_all()

    def _uneject_all(self) -> None:
        """End all ejections: the rotation is empty."""
        for member in tuple(self._ejections.present):
            if member.state is MemberState.EJECTED:
                self._apply(
                    member, MemberEvent.UNEJECT, "nobody else is left", member.ejected_until
                )

    def _update_slow_start(self, now: float) -> None:
        self._slow_start.update(self.members, now)
        self._policy.set_slow_start(self._slow_start.slow)

    def _update_rotation(self, member: Member) -> None:
        self._rotation_changed(self._rotation.update(member))

    def _rotation_changed(self, panic_changed: bool) -> None:
        self.in_rotation = self._rotation.size
        eligible = self._rotation.eligible
        self.available = len(eligible)
        self.available -= sum(member in eligible for member in self._full)
        if panic_changed:
            self._on_panic(self._rotation.is_in_panic_mode)
