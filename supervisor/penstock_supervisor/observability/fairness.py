"""How evenly something is shared: Jain's fairness index.

It is 1 if all shares are equal, and 1/n if one of n has everything. If k of n have equal shares
and the others have nothing, it is k/n. It does not depend on the unit, and it can be compared
between different numbers of sharers. No I/O, no clock.
"""

from collections.abc import Collection


def jain(shares: Collection[float]) -> float | None:
    """(sum of x)² / (n · sum of x²). None if all shares are 0, or if there is none."""
    largest = max(shares, default=0.0)
    if not largest > 0:
        return None
    # Relative to the largest share, so that no square overflows or underflows.
    parts = [share / largest for share in shares]
    return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts))
