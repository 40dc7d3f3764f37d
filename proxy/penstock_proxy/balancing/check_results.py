"""What the results of its health checks mean for a member.

Owns: its good and bad checks in a row, and how many of them lead to what. Must not know: how a
check is made (`health_check`), and what a rise or fall changes (`pool`). No I/O, no clock.
"""

from penstock_proxy.balancing.member import Member
from penstock_proxy.balancing.member_state import MemberState


def is_proved(member: Member) -> bool:
    """Has it passed as many checks in a row as it needs to come into the rotation?"""
    needed = 1 if member.state is MemberState.CHECKING else member.health.rise
    return member.good_checks >= needed


def rise_after_good(member: Member) -> str:
    """A check was good. Returns why it rises; empty: it does not."""
    member.good_checks, member.bad_checks = member.good_checks + 1, 0
    if member.is_held or not is_proved(member):
        return ""
    first = member.state is MemberState.CHECKING
    return f"passed {'its first check' if first else _checks(member.good_checks)}"


def fall_after_bad(member: Member, reason: str) -> str:
    """A check was bad, for this reason. Returns why it falls; empty: it does not."""
    member.good_checks, member.bad_checks = 0, member.bad_checks + 1
    if member.bad_checks < member.health.fall:
        return ""
    return f"failed {_checks(member.bad_checks)}: {reason}"


def _checks(count: int) -> str:
    return "a check" if count == 1 else f"{count} checks in a row"
