"""Formats numbers for people: three significant digits and a unit.

Owns how quantities are written in the table, on the page and in sentences. All values of a row
have the same unit, because 850 µs and 1.2 ms are hard to compare. Must not know figures and
schemes. No I/O, no clock.
"""

from collections.abc import Iterable
from math import isfinite
from statistics import median
from typing import Final, Literal, NamedTuple

Quantity = Literal["rate", "time", "cpu", "memory", "number", "ratio"]
"""Per second; seconds; microseconds of CPU time; bytes; a plain number; between 0 and 1."""


class Scale(NamedTuple):
    """The unit of a row or an axis."""

    suffix: str
    """Follows the number, without a space; "" for none."""
    factor: float
    """From the measured value to this unit."""
    decimals: int
    thousands: str = ""
    """"k" or "M". `factor` includes it."""

    def number(self, value: float) -> str:
        if not isfinite(value):
            return "never"
        text = f"{value * self.factor:,.{self.decimals}f}"
        return f"{text}{self.thousands}"

    def text(self, value: float) -> str:
        """With the unit."""
        suffix = self.suffix if isfinite(value) else ""
        return f"{self.number(value)} {suffix}".strip()


_TIMES: Final = ((1.0, "s", 1.0), (1e-3, "ms", 1e3), (0.0, "µs", 1e6))
_SIZES: Final = ((2.0**20, "MiB", 2.0**-20), (2.0**10, "KiB", 2.0**-10), (0.0, "B", 1.0))
_COUNTS: Final = ((1e6, "M", 1e-6), (1e4, "k", 1e-3), (0.0, "", 1.0))


def scale(quantity: Quantity, values: Iterable[float]) -> Scale:
    """The unit and the decimals that fit all these values best."""
    sizes = [abs(value) for value in values if value and isfinite(value)]
    typical = median(sizes) if sizes else 0.0
    match quantity:
        case "time":
            # If all values are zero, they are shown as 0 s.
            suffix, factor = _fitting(_TIMES, typical or 1.0)
        case "memory":
            suffix, factor = _fitting(_SIZES, typical or 2.0**10)
        case "cpu":
            return Scale("µs", 1.0, 0 if typical >= 100 else 1)
        case "rate":
            suffix, factor = _fitting(_COUNTS, max(sizes, default=0.0))
            return Scale("", factor, _decimals(max(sizes) * factor) if suffix else 0, suffix)
        case "ratio":
            return Scale("", 1.0, 3)
        case "number":
            whole = all(float(size).is_integer() for size in sizes)
            return Scale("", 1.0, 0 if whole else min(2, _decimals(typical)))
    return Scale(suffix, factor, _decimals(typical * factor))


def format_value(quantity: Quantity, value: float) -> str:
    """One value with its unit, for a sentence."""
    return scale(quantity, (value,)).text(value)


def format_share(part: float) -> str:
    """A share of one in whole per cent. A share above zero is never shown as 0 %."""
    return "<1 %" if 0 < part < 0.005 else f"{part * 100:.0f} %"


def format_times(ratio: float) -> str:
    """A factor: "1.8 times"."""
    digits = f"{ratio:.{1 if ratio < 9.95 else 0}f}"
    return f"{digits.removesuffix('.0')} times"


def _fitting(steps: tuple[tuple[float, str, float], ...], typical: float) -> tuple[str, float]:
    return next((suffix, factor) for lowest, suffix, factor in steps if typical >= lowest)


def _decimals(typical: float) -> int:
    """For three significant digits."""
    return 0 if typical >= 99.95 or not typical else 1 if typical >= 9.995 else 2
