"""The first picture of a comparison: what each subject costs, as bars of which shorter is better.

Owns which figures are in it. All of them are costs, so there is one rule to read it by. Subjects
are in the order of what they cost, and the best stand out, if it is sure who that is. The terminal
and the page draw it in their own ways. No I/O, no clock.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Final, NamedTuple

from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import Cell
from penstock_supervisor.compare.report.result import Comparison
from penstock_supervisor.compare.report.units import Scale, format_value, scale

RULE: Final = "Shorter is better."
_KEYS: Final = (
    "keepalive.cpu", "connect.cpu", "rate.p99", "held.fds", "held.memory", "kill.failed",
)  # fmt: skip
_LEFT_OUT: Final = ("held.memory", "connect.cpu", "kill.failed", "held.fds", "rate.p99")
"""Where there is no space, in this order."""


class Bar(NamedTuple):
    length: float
    """A share of the longest one."""
    text: str
    best: bool
    parts: tuple[tuple[str, float], ...]
    """The roles that it is made of, as shares of the bar."""


class Column(NamedTuple):
    """One cost."""

    key: str
    title: str
    unit: str
    bars: tuple[Bar | None, ...]
    """In the order of `Picture.columns`; None: not measured."""


class Picture(NamedTuple):
    columns: tuple[Column, ...]
    order: tuple[int, ...]
    """The subjects, those that cost least first."""


def picture(comparison: Comparison, rows: Sequence[evaluation.FigureRow]) -> Picture:
    by_key = {row.figure.key: row for row in rows}
    order = evaluation.order(comparison, rows)
    titles = _titles(comparison)
    columns = [
        _column(key, titles[key], by_key[key], _parts(by_key, key), order)
        for key in _KEYS
        if key in by_key and any(cell and cell.value for cell in by_key[key].cells)
    ]
    return Picture(tuple(columns), tuple(order))


def fitting(
    columns: Sequence[Column], width: Callable[[Column], int], available: int
) -> tuple[Column, ...]:
    """As many columns as there is space for, at least one. `width` includes the gap."""
    chosen = list(columns)
    for key in _LEFT_OUT:
        if sum(map(width, chosen)) <= available or len(chosen) == 1:
            break
        chosen = [one for one in chosen if one.key != key] or chosen
    return tuple(chosen)


def _titles(comparison: Comparison) -> dict[str, str]:
    rates = [one.loads["rate"].rate for one in comparison.subjects if "rate" in one.loads]
    at = f" at {format_value('rate', rates[0])}/s" if rates else ""
    return {
        "keepalive.cpu": "CPU a request",
        "rate.p99": f"p99{at}",
        "held.fds": "descriptors a connection",
        "connect.cpu": "CPU a connection",
        "kill.failed": "lost when a worker dies",
        "held.memory": "memory a connection",
    }


def _parts(by_key: dict[str, evaluation.FigureRow], key: str) -> dict[str, tuple[Cell | None, ...]]:
    return {
        row.figure.role: row.cells
        for name, row in by_key.items()
        if name.startswith(f"{key}.") and row.figure.role not in ("", "kernel")
    }


def _column(
    key: str,
    title: str,
    row: evaluation.FigureRow,
    parts: dict[str, tuple[Cell | None, ...]],
    order: Sequence[int],
) -> Column:
    unit = scale(row.figure.quantity, [cell.value for cell in row.cells if cell])
    longest = max((cell.value for cell in row.cells if cell and isfinite(cell.value)), default=0.0)
    bars = [
        _bar(row.cells[n], unit, longest, n in row.best,
             {role: cells[n] for role, cells in parts.items()})
        for n in order
    ]  # fmt: skip
    return Column(key, title, unit.suffix, tuple(bars))


def _bar(
    cell: Cell | None, unit: Scale, longest: float, best: bool, parts: dict[str, Cell | None]
) -> Bar | None:
    if cell is None:
        return None
    text = unit.number(cell.value)
    if cell.doubt == "errors":
        text += "!"
    total = sum(part.value for part in parts.values() if part)
    shares = tuple((role, part.value / total) for role, part in parts.items() if part and total)
    length = min(1.0, cell.value / longest) if longest else 0.0
    return Bar(length, text, best, shares)
