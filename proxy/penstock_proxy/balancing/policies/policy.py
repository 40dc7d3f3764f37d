"""What a balancing policy is: it picks a member of the rotation for a request.

Owns: what a policy needs of a member, and what the pool may ask of it. Must not know: why a member
is in the rotation or not. The pool calls `set_rotation` when the rotation changes, which is rare,
so work is done there. `pick` costs about the same with two members and with a thousand. `avoid`
names members that the request has already tried. No I/O, no clock, and randomness is an argument.

What other modules have to know about a policy are attributes of its class: nothing else depends on
its name.
"""

from collections.abc import Callable, Collection, Sequence
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

    def lessened(self, member: M) -> None:
        """The member has fewer requests than before. See `orders_by_load`."""

    def pick(self, client: str, avoid: Collection[M] = ()) -> M | None:
        """The member for a request of this client address; None if there is none left."""
        raise NotImplementedError
