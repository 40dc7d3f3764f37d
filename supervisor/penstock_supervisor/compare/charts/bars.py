"""Bars: a panel for each figure, and the split across workers.

One panel for one figure, each with its own axis from zero: bars that share an axis with
something a hundred times larger show nothing. The figure itself stands beside its bar, so
no axis needs numbers. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Final

from penstock_supervisor.compare.charts.theme import (
    ROLE_DEPTHS,
    Figure,
    Panel,
    axes,
    faded,
    plain,
    shortened,
)
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import Cell
from penstock_supervisor.compare.report.result import Comparison, Subject
from penstock_supervisor.compare.report.units import Scale, scale, share

_BAR: Final = 25
"""Pixels of a bar and the gap beside it."""
_FLAT: Final = {"l": 8, "r": 8, "t": 4, "b": 8}
_PARTED: Final = ("cpu", "fds", "memory")
"""Figures that are drawn by role."""


def bars(
    comparison: Comparison,
    row: evaluation.FigureRow,
    rows: Sequence[evaluation.FigureRow],
    paint: Mapping[str, str],
) -> Panel:
    figure = row.figure
    unit = scale(figure.quantity, [cell.value for cell in row.cells if cell])
    names = [subject.name for subject in comparison.subjects]
    parts = [one for one in rows if one.figure.key.startswith(f"{figure.key}.")]
    if figure.key.rpartition(".")[2] in _PARTED and parts:
        data = [
            _bar(names, part.cells, unit, paint, ROLE_DEPTHS.get(part.figure.role, 0.8),
                 part.figure.role)
            for part in parts
        ]  # fmt: skip
        data.append(_spreads(names, row.cells, unit))
    else:
        data = [_bar(names, row.cells, unit, paint) | {"error_x": _error(row.cells, unit)}]
    data.append(_values(names, row, unit))
    # Room for the figures at the ends of the bars.
    most = max(map(_end, row.cells), default=0.0)
    layout = {
        "height": _BAR * len(names) + 16,
        "margin": _FLAT,
        "barmode": "stack",
        "bargap": 0.32,
        "xaxis": {
            "visible": False,
            "range": [0, most * unit.factor * 1.42 or 1.0],
            "fixedrange": True,
        },
        "yaxis": {
            "autorange": "reversed",
            "automargin": True,
            "fixedrange": True,
            "showgrid": False,
            "ticks": "",
            "type": "category",
            "tickvals": [plain(name) for name in names],
            "ticktext": [f"{plain(shortened(name))}\u00a0" for name in names],
        },
    }
    better = "more is better" if figure.more else "less is better"
    unit_name = f"{unit.suffix}, " if unit.suffix else ""
    title = figure.label.strip()
    return Panel(
        f"bar-{figure.key}".replace(".", "-"),
        figure.section,
        title if title.startswith("p") and title[1:2].isdigit() else title[0].upper() + title[1:],
        f"{unit_name}{better}",
        {"data": data, "layout": layout},
        roles=tuple(trace["name"] for trace in data if trace.get("name")),
    )


def _bar(
    names: Sequence[str],
    cells: Sequence[Cell | None],
    unit: Scale,
    paint: Mapping[str, str],
    depth: float = 1.0,
    role: str = "",
) -> Figure:
    values = [cell.value if cell and isfinite(cell.value) else None for cell in cells]
    tail = f" {unit.suffix}" if unit.suffix else ""
    of_role = f", {role}" if role else ""
    return {
        "type": "bar",
        "orientation": "h",
        "name": role,
        "y": [plain(name) for name in names],
        "x": [None if value is None else value * unit.factor for value in values],
        "marker": {
            "color": [faded(paint[name], depth) for name in names],
            "line": {"width": 0},
        },
        "customdata": ["" if value is None else unit.number(value) for value in values],
        "hovertemplate": f"%{{y}}{of_role}: %{{customdata}}{tail}<extra></extra>",
        "showlegend": False,
    }


def _error(cells: Sequence[Cell | None], unit: Scale) -> Figure:
    known = [cell if cell and cell.rounds > 1 else None for cell in cells]
    return {
        "type": "data",
        "symmetric": False,
        "array": [(one.high - one.value) * unit.factor if one else 0 for one in known],
        "arrayminus": [(one.value - one.low) * unit.factor if one else 0 for one in known],
        "color": "--ink",
        "thickness": 1.2,
        "width": 4,
        "visible": any(known),
    }


def _spreads(names: Sequence[str], cells: Sequence[Cell | None], unit: Scale) -> Figure:
    """The spread of the whole, at the end of a bar that is made of parts."""
    return {
        "type": "scatter",
        "mode": "markers",
        "marker": {"opacity": 0, "size": 1},
        "y": [plain(name) for name in names],
        "x": [cell.value * unit.factor if cell else None for cell in cells],
        "error_x": _error(cells, unit),
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _end(cell: Cell | None) -> float:
    """How far its bar reaches, or the line that shows its spread."""
    if cell is None or not isfinite(cell.value):
        return 0.0
    return cell.high if cell.rounds > 1 else cell.value


def _values(names: Sequence[str], row: evaluation.FigureRow, unit: Scale) -> Figure:
    """The figures, as text behind the bars; the best in bold."""
    texts, places = [], []
    for at, cell in enumerate(row.cells):
        text = "not measured" if cell is None else unit.number(cell.value)
        if cell and cell.doubt == "limited" and row.figure.more:
            text = f"≥ {text}"
        if cell and cell.doubt == "errors":
            text = f"{text} (errors)"
        texts.append(f"<b>{text}</b>" if at in row.best else text)
        places.append(_end(cell) * unit.factor)
    return {
        "type": "scatter",
        "mode": "text",
        "y": [plain(name) for name in names],
        "x": places,
        "text": [f" {text}" for text in texts],
        "textposition": "middle right",
        "textfont": {"color": "--ink", "size": 12},
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def splits(comparison: Comparison, paint: Mapping[str, str]) -> Iterator[Panel]:
    shared = [one for one in comparison.subjects if sum(one.split.values())]
    most = max((max(one.split.values()) / sum(one.split.values()) for one in shared), default=0.0)
    for at, subject in enumerate(shared):
        yield _split(subject, at, most, paint[subject.name])


def _split(subject: Subject, at: int, most: float, colour: str) -> Panel:
    total = sum(subject.split.values())
    slots = sorted(subject.split, key=lambda slot: (len(slot), slot))
    even = 1 / len(slots)
    shares = [subject.split[slot] / total for slot in slots]
    data = [
        {
            "type": "bar",
            "x": [plain(slot) for slot in slots],
            "y": shares,
            "text": [share(one) for one in shares] if len(slots) <= 8 else None,
            "textposition": "auto",
            "insidetextfont": {"color": "#10141a", "size": 12},
            "outsidetextfont": {"color": "--ink", "size": 12},
            "cliponaxis": False,
            "marker": {"color": colour},
            "hovertemplate": "worker %{x}: %{y:.1%}<extra></extra>",
            "showlegend": False,
        }
    ]
    layout = axes(
        {"title": {"text": "Worker", "standoff": 6}, "type": "category", "showgrid": False},
        {"range": [0, most * 1.22], "tickformat": ".0%", "nticks": 5},
        220,
    )
    layout["bargap"] = 0.35
    layout["shapes"] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": even, "y1": even,
         "line": {"color": "--faint", "width": 1, "dash": "dash"}}
    ]  # fmt: skip
    jain = "" if subject.jain is None else f", Jain {subject.jain:.3f}"
    return Panel(f"split-{at}", "split", subject.name, f"share of the {subject.split_of}{jain}",
                 {"data": data, "layout": layout})  # fmt: skip
