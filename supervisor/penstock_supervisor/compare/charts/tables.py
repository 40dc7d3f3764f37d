"""The tables of the page: all figures, and what differs from an earlier run.

The best of a row, one or a group that is level, have a star. No I/O, no clock.
"""

from collections.abc import Iterator
from html import escape

from penstock_supervisor.compare.charts.theme import subject_colours
from penstock_supervisor.compare.report import baseline as baselines
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import Cell, sections
from penstock_supervisor.compare.report.result import Comparison
from penstock_supervisor.compare.report.units import Scale, scale


def figures(comparison: Comparison) -> Iterator[str]:
    yield '<h2 id="figures">All figures</h2>'
    yield '<p class="faint">★ surely the best, or a group that is level and surely better than '
    yield "all others; a row without a star has no clear winner."
    if comparison.rounds > 1:
        yield f"± half of the range of {comparison.rounds} rounds; the figure is their median."
    yield "</p>"
    yield from _table_head(comparison)
    titles = sections(comparison)
    section = ""
    unit: Scale | None = None
    for row in evaluation.rows(comparison):
        figure = row.figure
        if figure.section != section:
            section = figure.section
            yield _section_row(titles[section], len(comparison.subjects))
        if unit is None or not figure.role:
            unit = scale(figure.quantity, [cell.value for cell in row.cells if cell])
        label = figure.label.strip()
        if unit.suffix and not figure.role:
            label += f", {unit.suffix}"
        cells = "".join(
            _cell(cell, unit, column in row.best, figure.more_is_better, bool(figure.role))
            for column, cell in enumerate(row.cells)
        )
        part = ' class="part"' if figure.role else ""
        yield f"<tr{part}><th>{escape(label)}</th>{cells}</tr>"
    yield "</tbody></table></div>"


def _table_head(comparison: Comparison) -> Iterator[str]:
    colours = subject_colours(comparison)
    yield '<div class="scroll"><table><thead><tr><th></th>'
    for subject in comparison.subjects:
        name, colour = escape(subject.name), colours[subject.name]
        yield f'<th class="chip" style="--colour:{colour}">{name}</th>'
    yield "</tr></thead><tbody>"


def _section_row(title: str, columns: int) -> str:
    return f'<tr class="section"><th colspan="{columns + 1}"><span>{escape(title)}</span></th></tr>'


def _cell(cell: Cell | None, unit: Scale, best: bool, more_is_better: bool, part: bool) -> str:
    if cell is None:
        return '<td class="missing" title="not measured">-</td>'
    text = unit.number(cell.value)
    hint = ""
    if cell.doubt == "limited" and more_is_better:
        text, hint = f"≥ {text}", ' title="the load generator was the limit"'
    if cell.doubt == "errors":
        text, hint = f"{text} !", ' title="too many requests failed: this says little"'
    spread = f" <small>±{cell.spread * 100:.0f} %</small>" if cell.rounds > 1 and not part else ""
    mark = ' class="best"' if best else ""
    return f"<td{mark}{hint}>{text}{spread}</td>"


def baseline(comparison: Comparison, earlier: Comparison) -> Iterator[str]:
    names = [subject.name for subject in comparison.subjects]
    build = f", {escape(earlier.build)}" if earlier.build else ""
    yield '<h2 id="baseline">Against the baseline</h2>'
    yield (
        f'<p class="faint">{escape(earlier.started)}, penstock {escape(earlier.penstock)}{build}. '
        "= means within the spread of the two runs.</p>"
    )
    for caveat in baselines.caveats(comparison, earlier):
        yield f'<p class="warning">{escape(caveat[0].upper() + caveat[1:])}.</p>'
    differences = {
        (one.figure.key, one.subject): one for one in baselines.differences(comparison, earlier)
    }
    yield from _table_head(comparison)
    titles = sections(comparison)
    section = ""
    for row in evaluation.rows(comparison):
        in_row = [differences.get((row.figure.key, name)) for name in names]
        if row.figure.role or not any(in_row):
            continue
        if row.figure.section != section:
            section = row.figure.section
            yield _section_row(titles[section], len(names))
        cells = "".join(
            f'<td class="{one.sign}">{escape(one.text)}</td>'
            if one
            else '<td class="missing">-</td>'
            for one in in_row
        )
        yield f"<tr><th>{escape(row.figure.label)}</th>{cells}</tr>"
    yield "</tbody></table></div>"
