"""What a balancing policy is: it picks a member of the rotation for a request.

Owns: what a policy needs of a member, and what the pool may ask of it. Must not know: why a member
is in the rotation or not. The pool says which member comes, goes, enters or leaves the rotation; of
a thousand, several may do so in one turn of the loop, so none of these looks at all members. Nor
does `pick`: it costs about the same with two members and with a thousand. `avoid` names members
that the request has already tried. No I/O, no clock, and randomness is an argument.

What other modules have to know about a policy are attributes of its class: nothing else depends on
its name.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

from penstock_proxy.balancing.member_state import MemberState


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
    orders_by_load: ClassVar[bool] = False
    """It has to be told when a member has fewer requests than before."""
    ignores_slow_start: ClassVar[bool] = False
    """Every member gets its whole share at once."""
    uses_client_address: ClassVar[bool] = False
    """`pick` depends on the client's address. If not, callers may pass an empty string."""

    def __init__(self, members: Sequence[M], random: Callable[[], float]) -> None:
        """A policy for these members. The rotation is empty until one of them enters it.

        `random` returns numbers in [0, 1).
        """
        raise NotImplementedError

    is_rough: bool = False
    """The order of turns is not as even as it could be: another one of its kind would have a better
    one. See `beginning`."""

    def beginning(self, members: Sequence[M]) -> Iterator[None]:
        """Take these members, some in each step; it has none yet, and picks after the last one."""
        for member in members:
            self.add(member)
            yield

    def add(self, member: M) -> None:
        """Add a member, which is not in the rotation yet."""

    def remove(self, member: M) -> None:
        """Remove a member, which is out of the rotation already."""

    def enter(self, member: M) -> None:
        """A member that is not in the rotation may be picked from now on."""
        raise NotImplementedError

    def leave(self, member: M) -> None:
        """A member of the rotation must not be picked any more."""
        raise NotImplementedError

    def present(self) -> Collection[M]:
        """The members of the rotation."""
        raise NotImplementedError

    def state_changed(self, member: M) -> None:
        """The state of a member of the rotation has changed, and it stays there."""

    def set_rotation(self, rotation: Sequence[M]) -> None:
        """Set the members that may be picked, all at once."""
        wanted, before = frozenset(rotation), frozenset(self.present())
        for member in before - wanted:
            self.leave(member)
        for member in rotation:
            if member in before:
                self.state_changed(member)
            else:
                self.enter(member)

    def set_slow_start(self, slow: Collection[M]) -> None:
        """Set the members in slow start: their weight is multiplied by `weight_factor`."""
        raise NotImplementedError

    def lessened(self, member: M) -> None:
        """The member has fewer requests than before. See `orders_by_load`."""

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        """The member for a request of this client address; None if there is none left."""
        raise NotImplementedError
