"""A comparison in the terminal: all figures in a table, and what has to be known of them.

The best of a row, one or a group that is level, have an asterisk as well as a colour, because
output also goes into files and mails. Columns that do not fit beside each other become a second
table below, because numbers that wrap cannot be read. Must not know how figures are measured.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock_supervisor.compare.report import baseline as baselines
from penstock_supervisor.compare.report import evaluation, sentences
from penstock_supervisor.compare.report.figures import Cell, sections
from penstock_supervisor.compare.report.result import Comparison
from penstock_supervisor.compare.report.units import Scale, scale

GAP: Final = 2
"""Spaces between columns."""
MAX_NAME_WIDTH: Final = 21
"""Of a subject: an IPv4 address with its port. A longer name is folded."""
MIN_WIDTH: Final = 40
"""In a narrower terminal the table is wider than it."""

MISSING: Final = "-"

_BEST: Final = "bold green"
_SIGN_STYLES: Final = {"better": "green", "worse": "red", "alike": "dim"}


class _Line(NamedTuple):
    section: str
    label: str
    cells: tuple[Text, ...]
    part: bool = False


def render(comparison: Comparison, baseline: Comparison | None, width: int) -> RenderableType:
    """The whole report for a terminal of `width` columns."""
    width = max(width, MIN_WIDTH)
    rows = evaluation.rows(comparison)
    names = [subject.name for subject in comparison.subjects]
    parts: list[RenderableType] = list(_headline(comparison))
    lines = list(_lines(rows))
    parts += _tables(sections(comparison), names, lines, width)
    parts += [Text(note, "dim") for note in _legend(comparison, rows)]
    parts += list(_doubts(comparison))
    if baseline is not None:
        parts += list(_baseline(comparison, baseline, names, width))
    return Group(*parts)


def _headline(comparison: Comparison) -> Iterator[RenderableType]:
    yield Text(", ".join(sentences.origin(comparison)))
    yield Text(sentences.circumstances(comparison))
    if comparison.interrupted:
        yield Text("Interrupted: what is missing was not measured.", "bold yellow")
    if comparison.quick:
        yield Text(f"{sentences.QUICK}.", "yellow")
    if noise := sentences.noise(comparison):
        yield Text(noise, "yellow" if sentences.is_noisy(comparison) else "dim")
    for note in comparison.notes:
        yield Text(note, "yellow")
    yield Text("")


def _lines(rows: Sequence[evaluation.FigureRow]) -> Iterator[_Line]:
    unit: Scale | None = None
    for row in rows:
        figure = row.figure
        if not figure.role or unit is None:
            unit = scale(figure.quantity, [cell.value for cell in row.cells if cell])
        # A part has the unit of its whole, so that the two can be compared.
        label = figure.label if figure.role or not unit.suffix else f"{figure.label}, {unit.suffix}"
        cells = tuple(
            _cell(figure.more_is_better, cell, unit, _style(row, column))
            for column, cell in enumerate(row.cells)
        )
        yield _Line(figure.section, label, cells, bool(figure.role))


def _style(row: evaluation.FigureRow, column: int) -> str | None:
    """Of the best one; "" for a part, which is dim; None for the others."""
    if row.figure.role:
        return ""
    return _BEST if column in row.best else None


def _cell(more_is_better: bool, cell: Cell | None, unit: Scale, style: str | None) -> Text:
    if cell is None:
        return Text(MISSING, "dim")
    if style == "":
        return Text(unit.number(cell.value), "dim")
    at_least = "≥" if cell.doubt == "limited" and more_is_better else ""
    text = Text(f"{'*' if style else ''}{at_least}{unit.number(cell.value)}", style or "")
    if cell.doubt == "errors":
        text = Text(f"{text.plain}!", "red")
    if cell.rounds > 1:
        text.append(f" ±{cell.spread * 100:.0f}%", "dim" if not style else "not bold dim")
    return text


def _tables(
    titles: dict[str, str], names: Sequence[str], lines: Sequence[_Line], width: int
) -> Iterator[RenderableType]:
    if not lines:
        yield Text("Nothing was measured.")
        return
    label_width = max(len(line.label) for line in lines) + 2
    widths = [
        max(min(len(name), MAX_NAME_WIDTH), *(line.cells[column].cell_len for line in lines))
        for column, name in enumerate(names)
    ]
    for columns in _chunks(widths, width - label_width):
        yield from _table(titles, names, lines, columns, (label_width, widths))


def _chunks(widths: Sequence[int], available: int) -> Iterator[list[int]]:
    """The columns of each table: as many as fit beside each other, at least one."""
    chunk: list[int] = []
    remaining = available
    for column, width in enumerate(widths):
        if chunk and width + GAP > remaining:
            yield chunk
            chunk, remaining = [], available
        chunk.append(column)
        remaining -= width + GAP
    yield chunk


def _table(
    titles: dict[str, str],
    names: Sequence[str],
    lines: Sequence[_Line],
    columns: Sequence[int],
    all_widths: tuple[int, Sequence[int]],
) -> Iterator[RenderableType]:
    """`all_widths`: of the labels, and of all columns."""
    label_width, widths = all_widths
    head = _grid(label_width, [widths[column] for column in columns])
    head.add_row("", *(Text(names[column], "bold") for column in columns))
    yield head
    for section, title in titles.items():
        # A figure may be measured only for subjects of another table.
        section_lines = [
            line
            for line in lines
            if line.section == section
            and any(line.cells[column].plain != MISSING for column in columns)
        ]
        if not section_lines:
            continue
        yield Text(title, "bold cyan")
        body = _grid(label_width, [widths[column] for column in columns])
        for line in section_lines:
            label = Text(f"  {line.label}", "dim" if line.part else "")
            body.add_row(label, *(line.cells[column] for column in columns))
        yield body
    yield Text("")


def _grid(label_width: int, widths: Sequence[int]) -> Table:
    table = Table.grid(padding=(0, 0, 0, GAP), pad_edge=False)
    table.add_column(width=label_width, no_wrap=True)
    for width in widths:
        # Rich counts the padding as part of the column.
        table.add_column(width=width + GAP, justify="right", overflow="fold")
    return table


def _legend(comparison: Comparison, rows: Sequence[evaluation.FigureRow]) -> Iterator[str]:
    cells = [cell for row in rows for cell in row.cells if cell]
    if any(row.best for row in rows):
        yield "* surely the best, or a group that is level and surely better than all others"
    if any(cell.rounds > 1 for cell in cells):
        yield f"± half of the range of {comparison.rounds} rounds; the figure is their median"
    if any(cell.doubt == "limited" for cell in cells):
        yield "≥ the load generator was the limit: it may be more"
    if any(cell.doubt == "errors" for cell in cells):
        yield "! too many requests failed: the figure says little"
    if any(cell is None for row in rows for cell in row.cells):
        yield "- not measured"


def _doubts(comparison: Comparison) -> Iterator[RenderableType]:
    for subject in comparison.subjects:
        for text in sentences.doubts(comparison, subject):
            yield Text.assemble((subject.name, "bold"), "  ", text)
    for one in comparison.verification:
        yield Text.assemble((one.subject, "bold"), "  ", sentences.verification(one))


def _baseline(
    comparison: Comparison, baseline: Comparison, names: Sequence[str], width: int
) -> Iterator[RenderableType]:
    yield Text("")
    started = baseline.started.replace("T", " ")
    build = f", {baseline.build}" if baseline.build else ""
    yield Text(f"Against the baseline of {started}, penstock {baseline.penstock}{build}", "bold")
    for caveat in baselines.caveats(comparison, baseline):
        yield Text(f"{caveat[0].upper()}{caveat[1:]}.", "yellow")
    yield Text("")
    differences = {
        (one.figure.key, one.subject): one for one in baselines.differences(comparison, baseline)
    }
    lines = []
    for row in evaluation.rows(comparison):
        in_row = [differences.get((row.figure.key, name)) for name in names]
        if not any(in_row) or row.figure.role:
            continue
        cells = tuple(
            Text(one.text, _SIGN_STYLES[one.sign]) if one else Text(MISSING, "dim")
            for one in in_row
        )
        lines.append(_Line(row.figure.section, row.figure.label, cells))
    yield from _tables(sections(comparison), names, lines, width)
    yield Text("= within the spread of the two runs", "dim")
