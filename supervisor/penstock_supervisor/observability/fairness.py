"""How evenly something is shared: Jain's ratio.

1 when everybody has the same, 1/n when one of n has everything, and in between the share of
those who would do if all that is there were dealt evenly. Like no other measure it is the
same for any unit and any number of sharers. No I/O, no clock.
"""

from collections.abc import Collection


def jain(shares: Collection[float]) -> float | None:
    """(sum of x)² / (n · sum of x²); None when nobody has anything yet."""
    most = max(shares, default=0.0)
    if not most > 0:
        return None
    # Of the largest, so that no square exceeds what a float can hold, or vanishes.
    parts = [share / most for share in shares]
    return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts))
