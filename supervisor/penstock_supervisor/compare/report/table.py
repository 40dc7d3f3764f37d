"""A comparison in the terminal: a table, and a paragraph for each subject.

The best of a row, and whoever cannot be told from it, has an asterisk as well as a colour,
since output goes into files and mails too. Columns that do not fit beside each other go
below each other: a table that wraps its figures can be read by nobody. Knows nothing of
how figures are measured.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock_supervisor.compare.report import baseline as earlier
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import Cell, sections
from penstock_supervisor.compare.report.result import Comparison
from penstock_supervisor.compare.report.units import Scale, scale

GAP: Final = 2
"""Spaces between columns."""
WIDEST_NAME: Final = 21
"""Of a subject: an IPv4 address with its port; a longer one is folded."""
NARROWEST: Final = 40
"""Below this nothing is arranged any more."""

MISSING: Final = "-"

_BEST: Final = "bold green"
_SIGNS: Final = {"better": "green", "worse": "red", "alike": "dim"}


class _Line(NamedTuple):
    section: str
    label: str
    cells: tuple[Text, ...]
    part: bool = False


def render(comparison: Comparison, baseline: Comparison | None, width: int) -> RenderableType:
    """Everything that a terminal of `width` columns shows of it."""
    width = max(width, NARROWEST)
    rows = evaluation.rows(comparison)
    names = [subject.name for subject in comparison.subjects]
    parts: list[RenderableType] = list(_headline(comparison))
    lines = list(_lines(rows))
    parts += _tables(sections(comparison), names, lines, width)
    parts += [Text(note, "dim") for note in _legend(comparison, rows)]
    parts += list(_paragraphs(comparison))
    if baseline is not None:
        parts += list(_against(comparison, baseline, names, width))
    return Group(*parts)


def _headline(comparison: Comparison) -> Iterator[RenderableType]:
    rounds = f"{comparison.rounds} round{'' if comparison.rounds == 1 else 's'}"
    text = f"{comparison.workers} workers, {rounds} of {comparison.seconds:g} s each"
    machine = ", ".join(
        comparison.machine[key] for key in ("cpu", "kernel") if comparison.machine.get(key)
    )
    yield Text(f"{text}; {machine}" if machine else text)
    if comparison.interrupted:
        yield Text("Interrupted: what is missing was not measured.", "bold yellow")
    if comparison.quick:
        yield Text("Quick: one short round, so only large differences mean anything.", "yellow")
    for note in comparison.notes:
        yield Text(note, "yellow")
    yield Text("")


def _lines(rows: Sequence[evaluation.FigureRow]) -> Iterator[_Line]:
    unit: Scale | None = None
    for row in rows:
        figure = row.figure
        if not figure.role or unit is None:
            unit = scale(figure.quantity, [cell.value for cell in row.cells if cell])
        # A part is read against its whole, so it has the unit of the whole.
        label = figure.label if figure.role or not unit.suffix else f"{figure.label}, {unit.suffix}"
        cells = tuple(
            _cell(figure.more, cell, unit, "" if figure.role else _BEST if at in row.best else None)
            for at, cell in enumerate(row.cells)
        )
        yield _Line(figure.section, label, cells, bool(figure.role))


def _cell(more: bool, cell: Cell | None, unit: Scale, style: str | None) -> Text:
    """`style`: of the best; "" for a part, which is faint; None for the others."""
    if cell is None:
        return Text(MISSING, "dim")
    if style == "":
        return Text(unit.number(cell.value), "dim")
    least = "≥" if cell.doubt == "limited" and more else ""
    text = Text(f"{'*' if style else ''}{least}{unit.number(cell.value)}", style or "")
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
    first = max(len(line.label) for line in lines) + 2
    widths = [
        max(min(len(name), WIDEST_NAME), *(line.cells[at].cell_len for line in lines))
        for at, name in enumerate(names)
    ]
    for chunk in _chunks(widths, width - first):
        yield from _table(titles, names, lines, chunk, (first, widths))


def _chunks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns that fit beside each other, at least one."""
    chunk: list[int] = []
    left = room
    for at, needed in enumerate(widths):
        if chunk and needed + GAP > left:
            yield chunk
            chunk, left = [], room
        chunk.append(at)
        left -= needed + GAP
    yield chunk


def _table(
    titles: dict[str, str],
    names: Sequence[str],
    lines: Sequence[_Line],
    chunk: Sequence[int],
    sizes: tuple[int, Sequence[int]],
) -> Iterator[RenderableType]:
    first, widths = sizes
    head = _grid(first, [widths[at] for at in chunk])
    head.add_row("", *(Text(names[at], "bold") for at in chunk))
    yield head
    for section, title in titles.items():
        # A subject of another chunk may have what nobody here has.
        inside = [
            line
            for line in lines
            if line.section == section and any(line.cells[at].plain != MISSING for at in chunk)
        ]
        if not inside:
            continue
        yield Text(title, "bold cyan")
        body = _grid(first, [widths[at] for at in chunk])
        for line in inside:
            label = Text(f"  {line.label}", "dim" if line.part else "")
            body.add_row(label, *(line.cells[at] for at in chunk))
        yield body
    yield Text("")


def _grid(first: int, widths: Sequence[int]) -> Table:
    table = Table.grid(padding=(0, 0, 0, GAP), pad_edge=False)
    table.add_column(width=first, no_wrap=True)
    for width in widths:
        # Rich counts the padding as a part of the column.
        table.add_column(width=width + GAP, justify="right", overflow="fold")
    return table


def _legend(comparison: Comparison, rows: Sequence[evaluation.FigureRow]) -> Iterator[str]:
    cells = [cell for row in rows for cell in row.cells if cell]
    if any(row.best for row in rows):
        yield "* best, or not to be told from the best; no mark: all are alike"
    if any(cell.rounds > 1 for cell in cells):
        yield f"± half of the spread over {comparison.rounds} rounds; the figure is their median"
    if any(cell.doubt == "limited" for cell in cells):
        yield "≥ the load generator was the limit: it may be more"
    if any(cell.doubt == "errors" for cell in cells):
        yield "! too many requests failed: the figure says little"
    if any(cell is None for row in rows for cell in row.cells):
        yield "- not measured"


def _paragraphs(comparison: Comparison) -> Iterator[RenderableType]:
    for name, text in evaluation.paragraphs(comparison).items():
        yield Text("")
        yield Text.assemble((name, "bold"), "  ", text)


def _against(
    comparison: Comparison, baseline: Comparison, names: Sequence[str], width: int
) -> Iterator[RenderableType]:
    yield Text("")
    when = baseline.started.replace("T", " ")
    yield Text(f"Against the baseline of {when}, penstock {baseline.penstock}", "bold")
    for caveat in earlier.caveats(comparison, baseline):
        yield Text(f"{caveat[0].upper()}{caveat[1:]}.", "yellow")
    yield Text("")
    found = {
        (one.figure.key, one.subject): one for one in earlier.differences(comparison, baseline)
    }
    lines = []
    for row in evaluation.rows(comparison):
        here = [found.get((row.figure.key, name)) for name in names]
        if not any(here) or row.figure.role:
            continue
        cells = tuple(
            Text(one.text, _SIGNS[one.sign]) if one else Text(MISSING, "dim") for one in here
        )
        lines.append(_Line(row.figure.section, row.figure.label, cells))
    yield from _tables(sections(comparison), names, lines, width)
    yield Text("= within the spread of the two runs", "dim")
