"""One worker as a pool sees it: a plain record.

The pool alone writes its fields, but for the two that say so. Must not know: the other members, and
what follows from a state. No I/O, no clock.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from penstock_proxy.balancing.member_state import MemberState
from penstock_proxy.config import Health, Target

NEVER: Final = float("-inf")
"""A time before all others."""


@dataclass(slots=True, eq=False)
class Member:
    """One worker. Only the pool writes its fields, except `active` and `retried_elsewhere`."""

    number: int
    """Unique in its pool, also among members that were removed."""
    slot: int
    """Its place in the service. A worker and its successor have the same for a time."""
    address: str
    weight: int
    state: MemberState
    health: Health = field(default_factory=Health)
    """How it is checked. A process that is about to be replaced keeps what it was added with."""
    active: int = 0
    """Exchanges or connections in flight. The module that forwards them writes it."""
    consecutive_failures: int = 0
    """Failed requests in a row."""
    ejections: int = 0
    """Since it was added; the last member that was removed from its slot leaves its own to it."""
    total_failures: int = 0
    """Failed requests while it was in the rotation; since it was added."""
    retried_elsewhere: int = 0
    """Requests that it failed and that were retried: no counter has them under its slot."""
    generation: int = 0
    """How often it joined or left. The result of a check of another generation is ignored."""
    reason: str = ""
    """Why its state has last changed, for people."""
    good_checks: int = 0
    """Good checks in a row."""
    bad_checks: int = 0
    """Bad checks in a row."""
    ejection_multiplier: int = 0
    """The next ejection lasts `eject_for` times one more than this. It decays with time."""
    ejected_until: float = 0.0
    """When the ejection ends."""
    up_since: float = 0.0
    """When it last came into the rotation."""
    weight_factor: float = 1.0
    """The part of its weight that counts: less than 1 in slow start."""
    slow_start_since: float = NEVER
    """When its slow start began."""
    is_listening: bool = True
    """A process listens at its address: its last check was not refused."""
    is_held: bool = False
    """Its process does not answer the supervisor. No good check brings it back meanwhile: the
    kernel accepts connections for a process that is stopped."""
    is_full: bool = False
    """It has as many requests or connections as `per_worker` allows."""
    is_upstream: bool = False
    """It is not ours, and its slot is only its place in a list."""


def member_of(target: Target, health: Health) -> Member:
    """The member at the start, or when it is added. `health`: that of its service."""
    if not target.joined:
        state, reason = MemberState.ABSENT, "not started yet"
    elif target.up:
        state, reason = MemberState.UP, "was up before the proxy was restarted"
    else:
        state, reason = MemberState.CHECKING, "waits for its first good check"
    return Member(
        target.member,
        target.slot,
        target.address,
        target.weight,
        state,
        target.health or health,
        reason=reason,
        is_upstream=target.upstream,
    )


def row_of(member: Member) -> dict[str, Any]:
    """The member as plain values, for the status page and the metrics."""
    return {
        "member": member.number,
        "slot": member.slot,
        "address": member.address,
        "weight": member.weight,
        "health": member.state.value,
        "active": member.active,
        "failures": member.consecutive_failures,
        "ejections": member.ejections,
        "reason": member.reason,
    }
