"""Evaluates the figures: who is better than whom, who is best, and whether more rounds are needed.

Nothing here knows what a scheme is supposed to be good at. There are four rules. One subject is
better than another if `intervals` says so, or if it is better than one that is. A subject for
which the load generator was the limit is never worse than another. A subject that failed requests
is never better. The best is surely better than every other one; or the best are a group that are
level with each other, each of them surely better than all that are not in it. Where neither is so,
nobody is the best: the rounds do not bear it.

No I/O, no clock.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from penstock_supervisor.compare.report.figures import (
    Cell,
    Figure,
    figures,
    interval_of,
    judge,
    margin_in,
)
from penstock_supervisor.compare.report.intervals import is_settled
from penstock_supervisor.compare.report.result import Comparison, Noise

COST: Final = ("keepalive.cpu", "connect.cpu")
"""What a scheme costs, and the order in which subjects are shown follows from."""
SETTLING: Final = (
    "keepalive.requests_per_s", "keepalive.cpu", "connect.requests_per_s", "connect.cpu",
    "rate.p99",
)  # fmt: skip
"""The figures that rounds are added for."""
NOISY: Final = 0.1
"""Noise from which on it is said beside the result, as a share."""


class FigureRow(NamedTuple):
    """One figure of all subjects."""

    figure: Figure
    cells: tuple[Cell | None, ...]
    """In the order of the subjects; None: not measured."""
    better: tuple[frozenset[int], ...]
    """For each column, those that are better. Empty for a part."""

    @property
    def valid(self) -> frozenset[int]:
        """The columns with a value that says something."""
        return frozenset(n for n, cell in enumerate(self.cells) if cell and cell.doubt != "errors")

    @property
    def best(self) -> frozenset[int]:
        """The one column that is better than every other, or all that are level at the top.

        Empty if it is not sure who that is, or if no column is better than another.
        """
        beaten = frozenset(n for n, others in enumerate(self.better) if others)
        first = self.valid - beaten
        sure = bool(beaten) and all(first <= self.better[n] for n in beaten)
        return first if sure else frozenset()

    @property
    def last(self) -> int | None:
        """The one column than which every other is better."""
        return next((n for n in self.valid if 1 < len(self.valid) == len(self.better[n]) + 1), None)

    def level(self, column: int) -> frozenset[int]:
        """The other columns that are neither better nor worse than this one."""
        return self.valid - {column} - self.better[column] - self.worse(column)

    def worse(self, column: int) -> frozenset[int]:
        """The columns that are worse than this one."""
        return frozenset(n for n, others in enumerate(self.better) if column in others)


def rows(comparison: Comparison) -> tuple[FigureRow, ...]:
    """Every figure that was measured, and who is better than whom."""
    return tuple(
        row(figure, tuple(map(figure.read, comparison.subjects)), comparison.noise)
        for figure in figures(comparison)
    )


def row(figure: Figure, cells: tuple[Cell | None, ...], noise: Noise | None = None) -> FigureRow:
    columns = range(0 if figure.role else len(cells))
    better = [
        frozenset(n for n in columns if n != column and _is_better(figure, cells, n, column, noise))
        for column in range(len(cells))
    ]
    return FigureRow(figure, cells, _closed(better))


def _closed(better: Sequence[frozenset[int]]) -> tuple[frozenset[int], ...]:
    """With those that are better than somebody who is: each pair alone may not be sure of it.

    Better is beyond a margin in what is shown of the two, so nothing is better than itself.
    """
    found = list(better)
    for through in range(len(found)):
        found = [one | found[through] if through in one else one for one in found]
    return tuple(found)


def _is_better(
    figure: Figure, cells: Sequence[Cell | None], one: int, other: int, noise: Noise | None
) -> bool:
    mine, theirs = cells[one], cells[other]
    if mine is None or theirs is None or mine.doubt == "errors":
        return False
    if theirs.doubt == "errors":
        # Requests that failed were quick.
        return True
    return theirs.doubt != "limited" and judge(figure, mine, theirs, noise) == "better"


def order(comparison: Comparison, all_rows: Sequence[FigureRow]) -> list[int]:
    """The columns, those that cost least first. Level ones stay in the order of the subjects."""
    costs = [one for one in all_rows if one.figure.key in COST]
    beaten = [
        sum(len(one.better[column]) for one in costs) for column in range(len(comparison.subjects))
    ]
    measured = [any(one.cells[n] for one in costs) for n in range(len(comparison.subjects))]
    return sorted(range(len(comparison.subjects)), key=lambda n: (not measured[n], beaten[n]))


def is_settled_by(comparison: Comparison) -> bool:
    """Would more rounds hardly change who is better than whom?"""
    for figure in figures(comparison):
        if figure.key not in SETTLING:
            continue
        cells = [cell for one in comparison.subjects if (cell := figure.read(one))]
        margin = margin_in(figure, comparison.noise)
        for n, one in enumerate(cells):
            for other in cells[n + 1 :]:
                if abs(one.value - other.value) <= figure.least:
                    continue
                if not is_settled(interval_of(one, other), margin):
                    return False
    return True
