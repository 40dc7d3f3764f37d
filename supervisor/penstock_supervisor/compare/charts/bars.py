"""Bar charts: a panel for each figure, and the split across workers.

Each figure has a panel with an axis of its own that begins at zero, because a bar cannot be seen
on the axis of values a hundred times larger. The value is written beside its bar, so the axes
have no numbers. No I/O, no clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Final

from penstock_supervisor.compare.charts.theme import (
    OPACITIES,
    Panel,
    Plot,
    axes,
    escaped,
    shortened,
    with_opacity,
)
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import Cell
from penstock_supervisor.compare.report.result import Comparison, Subject
from penstock_supervisor.compare.report.units import Scale, format_share, scale

_BAR: Final = 25
"""Pixels of a bar and the gap beside it."""
_FLAT: Final = {"l": 8, "r": 8, "t": 4, "b": 8}
_SHOWN_BY_ROLE: Final = ("cpu", "fds", "memory")
"""Figures whose bars are divided by role, by the last part of their keys."""


def bars(
    comparison: Comparison,
    row: evaluation.FigureRow,
    rows: Sequence[evaluation.FigureRow],
    colours: Mapping[str, str],
) -> Panel:
    figure = row.figure
    unit = scale(figure.quantity, [cell.value for cell in row.cells if cell])
    names = [subject.name for subject in comparison.subjects]
    parts = [one for one in rows if one.figure.key.startswith(f"{figure.key}.")]
    if figure.key.rpartition(".")[2] in _SHOWN_BY_ROLE and parts:
        data = [
            _bar(names, part.cells, unit, colours, OPACITIES.get(part.figure.role, 0.8),
                 part.figure.role)
            for part in parts
        ]  # fmt: skip
        data.append(_spreads(names, row.cells, unit))
    else:
        data = [_bar(names, row.cells, unit, colours) | {"error_x": _error(row.cells, unit)}]
    data.append(_values(names, row, unit))
    # The axis is longer than the longest bar, to leave space for the values.
    largest = max(map(_end, row.cells), default=0.0)
    layout = {
        "height": _BAR * len(names) + 16,
        "margin": _FLAT,
        "barmode": "stack",
        "bargap": 0.32,
        "xaxis": {
            "visible": False,
            "range": [0, largest * unit.factor * 1.42 or 1.0],
            "fixedrange": True,
        },
        "yaxis": {
            "autorange": "reversed",
            "automargin": True,
            "fixedrange": True,
            "showgrid": False,
            "ticks": "",
            "type": "category",
            "tickvals": [escaped(name) for name in names],
            "ticktext": [f"{escaped(shortened(name))}\u00a0" for name in names],
        },
    }
    better = "more is better" if figure.more_is_better else "less is better"
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
    colours: Mapping[str, str],
    opacity: float = 1.0,
    role: str = "",
) -> Plot:
    values = [cell.value if cell and isfinite(cell.value) else None for cell in cells]
    tail = f" {unit.suffix}" if unit.suffix else ""
    of_role = f", {role}" if role else ""
    return {
        "type": "bar",
        "orientation": "h",
        "name": role,
        "y": [escaped(name) for name in names],
        "x": [None if value is None else value * unit.factor for value in values],
        "marker": {
            "color": [with_opacity(colours[name], opacity) for name in names],
            "line": {"width": 0},
        },
        "customdata": ["" if value is None else unit.number(value) for value in values],
        "hovertemplate": f"%{{y}}{of_role}: %{{customdata}}{tail}<extra></extra>",
        "showlegend": False,
    }


def _error(cells: Sequence[Cell | None], unit: Scale) -> Plot:
    spread_cells = [cell if cell and cell.rounds > 1 else None for cell in cells]
    return {
        "type": "data",
        "symmetric": False,
        "array": [(one.high - one.value) * unit.factor if one else 0 for one in spread_cells],
        "arrayminus": [(one.value - one.low) * unit.factor if one else 0 for one in spread_cells],
        "color": "--ink",
        "thickness": 1.2,
        "width": 4,
        "visible": any(spread_cells),
    }


def _spreads(names: Sequence[str], cells: Sequence[Cell | None], unit: Scale) -> Plot:
    """The spread of the sum, at the end of a bar that is divided by role."""
    return {
        "type": "scatter",
        "mode": "markers",
        "marker": {"opacity": 0, "size": 1},
        "y": [escaped(name) for name in names],
        "x": [cell.value * unit.factor if cell else None for cell in cells],
        "error_x": _error(cells, unit),
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _end(cell: Cell | None) -> float:
    """Where the bar of this cell ends, or the line that shows its spread."""
    if cell is None or not isfinite(cell.value):
        return 0.0
    return cell.high if cell.rounds > 1 else cell.value


def _values(names: Sequence[str], row: evaluation.FigureRow, unit: Scale) -> Plot:
    """The values as labels to the right of the bars; the best in bold."""
    texts, positions = [], []
    for column, cell in enumerate(row.cells):
        text = "not measured" if cell is None else unit.number(cell.value)
        if cell and cell.doubt == "limited" and row.figure.more_is_better:
            text = f"≥ {text}"
        if cell and cell.doubt == "errors":
            text = f"{text} (errors)"
        texts.append(f"<b>{text}</b>" if column in row.best else text)
        positions.append(_end(cell) * unit.factor)
    return {
        "type": "scatter",
        "mode": "text",
        "y": [escaped(name) for name in names],
        "x": positions,
        "text": [f" {text}" for text in texts],
        "textposition": "middle right",
        "textfont": {"color": "--ink", "size": 12},
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def splits(comparison: Comparison, colours: Mapping[str, str]) -> Iterator[Panel]:
    subjects = [one for one in comparison.subjects if sum(one.split.values())]
    largest = max(
        (max(one.split.values()) / sum(one.split.values()) for one in subjects), default=0.0
    )
    for number, subject in enumerate(subjects):
        yield _split(subject, number, largest, colours[subject.name])


def _split(subject: Subject, number: int, largest: float, colour: str) -> Panel:
    total = sum(subject.split.values())
    slots = sorted(subject.split, key=lambda slot: (len(slot), slot))
    even = 1 / len(slots)
    shares = [subject.split[slot] / total for slot in slots]
    data = [
        {
            "type": "bar",
            "x": [escaped(slot) for slot in slots],
            "y": shares,
            "text": [format_share(one) for one in shares] if len(slots) <= 8 else None,
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
        {"range": [0, largest * 1.22], "tickformat": ".0%", "nticks": 5},
        220,
    )
    layout["bargap"] = 0.35
    layout["shapes"] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": even, "y1": even,
         "line": {"color": "--faint", "width": 1, "dash": "dash"}}
    ]  # fmt: skip
    jain = "" if subject.jain is None else f", Jain {subject.jain:.3f}"
    hint = f"share of the {subject.split_of}{jain}"
    plot = {"data": data, "layout": layout}
    return Panel(f"split-{number}", "split", subject.name, hint, plot)
