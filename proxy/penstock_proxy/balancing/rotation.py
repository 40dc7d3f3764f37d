"""Who of a pool may be picked, and the policy that picks: both change while requests are served.

Owns: which members are in the rotation, whether panic mode is on, and the exchange of one policy
for another. A member that enters or leaves is one change of the policy, however many others there
are. A new policy gets the members one after the other; the old one picks until it has all of them.
Must not know: why the state of a member changes (`pool`). No I/O, no clock.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from penstock_proxy.balancing.member import Member
from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.balancing.policies.policy import Policy

_UNHEALTHY: Final = (MemberState.DOWN, MemberState.EJECTED)
"""Out of the rotation, but the process may still serve."""


class _Members:
    """Some members, and how many slots they are of."""

    __slots__ = ("all", "slots")

    def __init__(self) -> None:
        self.all: dict[Member, None] = {}
        self.slots: dict[int, int] = {}
        """How many of them are of each slot."""

    def put(self, member: Member, is_in: bool) -> None:
        """The member is one of them, or is not."""
        if is_in == (member in self.all):
            return
        slot = member.slot
        count = self.slots.get(slot, 0)
        if is_in:
            self.all[member] = None
            self.slots[slot] = count + 1
        else:
            del self.all[member]
            if count > 1:
                self.slots[slot] = count - 1
            else:
                del self.slots[slot]


class Rotation:
    """The rotation of one pool. `panic`: when a smaller share of the living is up, all of these may
    be picked."""

    __slots__ = (
        "_coming", "_living", "_not_entered", "_panic", "_up", "eligible",
        "is_in_panic_mode", "policy",
    )  # fmt: skip

    def __init__(self, policy: Policy[Member], panic: float) -> None:
        self.policy = policy
        self._panic = panic
        self.is_in_panic_mode = False
        self._up = _Members()
        self._living = _Members()
        """In the rotation, or out of it and listening."""
        self.eligible = self._up.all
        """Members that may be picked: the rotation, or in panic mode all that live."""
        self._coming: Policy[Member] | None = None
        """The policy that takes over when it has all members."""
        self._not_entered: dict[Member, None] = {}
        """Members that may be picked, and that it was not told of yet."""

    @property
    def size(self) -> int:
        """How many are in the rotation."""
        return len(self._up.all)

    def configure(self, panic: float) -> bool:
        """Act on this share from now on. Returns as `update`."""
        self._panic = panic
        return self._update_panic()

    # -- members

    def add(self, member: Member) -> None:
        """There is one more, which is not in the rotation."""
        self.policy.add(member)
        if self._coming is not None:
            self._coming.add(member)

    def remove(self, member: Member) -> None:
        """It is gone, and was out of the rotation before."""
        self.policy.remove(member)
        if self._coming is not None:
            self._coming.remove(member)

    def update(self, member: Member) -> bool:
        """The state of this member has changed, or whether it listens. True: panic mode has begun
        or ended, and others may be picked from now on."""
        was_eligible = member in self.eligible
        is_up = member.state is MemberState.UP
        self._up.put(member, is_up)
        self._living.put(member, is_up or (member.state in _UNHEALTHY and member.is_listening))
        if self._update_panic():
            return True
        is_eligible = member in self.eligible
        if was_eligible or is_eligible:
            _tell(self.policy, member, was_eligible, is_eligible)
            if self._coming is not None:
                if member not in self._not_entered:
                    _tell(self._coming, member, was_eligible, is_eligible)
                elif not is_eligible:
                    del self._not_entered[member]
        return False

    def _update_panic(self) -> bool:
        # A worker and its successor count once: a bad successor takes nothing from the service.
        # Rounded down a little: 0.29 * 100 is 28.999… in binary.
        in_panic = len(self._up.slots) < self._panic * len(self._living.slots) - 1e-9
        if in_panic == self.is_in_panic_mode:
            return False
        self.is_in_panic_mode = in_panic
        self.eligible = (self._living if in_panic else self._up).all
        self.policy.set_rotation(tuple(self.eligible))
        if self._coming is not None:
            self._coming.set_rotation(tuple(self.eligible))
            self._not_entered.clear()
        return True

    # -- the policy

    def exchanging(
        self, policy: Policy[Member], members: Callable[[], Sequence[Member]]
    ) -> Iterator[None]:
        """Give all members to another policy, in steps. After the last one it picks. `members`:
        those that there are when it is called."""
        begun = members()
        yield from policy.beginning(begun)
        # Some have come or gone meanwhile. From now on it is told of these.
        present = members()
        for member in set(begun).difference(present):
            policy.remove(member)
        for member in set(present).difference(begun):
            policy.add(member)
        self._coming = policy
        not_entered = self._not_entered = dict.fromkeys(self.eligible)
        while not_entered and self._coming is policy:
            member = next(iter(not_entered))
            del not_entered[member]
            policy.enter(member)
            yield
        if self._coming is policy:
            for member in self.eligible:
                # It may have got less to do since the policy was told of it.
                policy.lessened(member)
            self.policy, self._coming = policy, None


def _tell(policy: Policy[Member], member: Member, was: bool, is_: bool) -> None:
    if not was:
        policy.enter(member)
    elif not is_:
        policy.leave(member)
    else:
        policy.state_changed(member)
