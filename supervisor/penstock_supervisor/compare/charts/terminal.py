"""The first picture in the terminal: a bar for each cost, and a sentence for each subject.

It comes before all figures, because most people read no further. A bar is made of eighths of a
character, so that small differences show; the best are in colour and have an asterisk. Costs that
do not fit beside each other are left out, the least important first: the table below has all.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from penstock_supervisor.compare.charts import costs
from penstock_supervisor.compare.charts.costs import Bar, Column, Picture
from penstock_supervisor.compare.report import evaluation, sentences
from penstock_supervisor.compare.report.result import Comparison

_BAR: Final = 9
"""Characters of the longest bar."""
_GAP: Final = 2
_MAX_NAME: Final = 24
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_BEST: Final = "bold green"
_BESIDE: Final = "cyan"


def render(comparison: Comparison, width: int) -> RenderableType:
    """For a terminal of `width` columns. Nothing if nothing was measured."""
    rows = evaluation.rows(comparison)
    picture = costs.picture(comparison, rows)
    if not picture.columns:
        return Group()
    names = [comparison.subjects[n].name for n in picture.order]
    said = sentences.sentences(comparison, rows)
    parts: list[RenderableType] = [
        Text.assemble(
            (sentences.headline(comparison, rows) or "What it costs.", "bold"), f" {costs.RULE}"
        ),
        Text(""),
        *_bars(picture, names, width),
        Text(""),
    ]
    for name in names:
        parts.append(Text(name, "bold"))
        parts.append(Padding(Text(said[name]), (0, 0, 0, 2)))
    parts.append(Text(""))
    return Group(*parts)


def _bars(picture: Picture, names: Sequence[str], width: int) -> Iterator[RenderableType]:
    label = min(_MAX_NAME, max(map(len, names)))
    columns = costs.fitting(picture.columns, lambda one: _width(one) + _GAP, width - label)
    widths = [_width(column) for column in columns]
    for head in _heads(columns, widths):
        yield Text(" " * (label + _GAP) + head.rstrip(), "dim")
    for position, name in enumerate(names):
        line = Text(f"{name[-label:]:{label}}{' ' * _GAP}")
        for column, column_width in zip(columns, widths, strict=True):
            line.append_text(_cell(column.bars[position], column_width))
            line.append(" " * _GAP)
        line.rstrip()
        yield line


def _width(column: Column) -> int:
    words = max(map(len, _lines(column)))
    return max(_BAR + 2 + max((len(bar.text) for bar in column.bars if bar), default=1), words)


def _heads(columns: Sequence[Column], widths: Sequence[int]) -> Iterator[str]:
    """Titles in two lines."""
    for line in range(2):
        parts = [
            f"{_lines(column)[line]:{width}}" for column, width in zip(columns, widths, strict=True)
        ]
        yield (" " * _GAP).join(parts)


def _lines(column: Column) -> tuple[str, str]:
    unit = f", {column.unit}" if column.unit else ""
    first, _, rest = column.title.partition(" ")
    return first, f"{rest}{unit}".removeprefix(", ")


def _cell(bar: Bar | None, width: int) -> Text:
    if bar is None:
        return Text(f"{'-':{width}}", "dim")
    eighths = max(1, round(bar.length * _BAR * 8)) if bar.length else 0
    whole, part = divmod(eighths, 8)
    drawn = "█" * whole + (_EIGHTHS[part] if part else "")
    style = _BEST if bar.best else ""
    text = Text(drawn, _BEST if bar.best else _BESIDE)
    text.append(f"{' ' if drawn else ''}{'*' if bar.best else ''}{bar.text}", style)
    text.append(" " * max(0, width - text.cell_len))
    return text
