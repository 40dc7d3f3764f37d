"""A comparison as one HTML page that needs nothing else: no server, no network, no other file.

The page contains the library for charts (four megabytes), and its Content-Security-Policy
forbids it to load anything. So it can be mailed, and will look the same in ten years. Names and
notes may come from a file that somebody else wrote. All texts are escaped here and nowhere else,
and scripts read them as data and never as code.

Plotly is an extra. Only this module imports it, and only when a page is written.
"""

import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from penstock_supervisor.compare.charts.charts import panels
from penstock_supervisor.compare.charts.theme import OPACITIES, Panel, subject_colours
from penstock_supervisor.compare.report import baseline as baselines
from penstock_supervisor.compare.report import evaluation
from penstock_supervisor.compare.report.figures import Cell, sections
from penstock_supervisor.compare.report.result import Comparison
from penstock_supervisor.compare.report.units import Scale, scale

_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)
_NUMBER_WITH_UNIT: Final = re.compile(r"(\d) (%|times|ms|µs|s|B|KiB|MiB)(?!\w)")
_BARS_HINT: Final = "rounds: bars are medians, the thin lines reach from the lowest to the highest"


def available() -> bool:
    """Is the extra `report` installed?"""
    return find_spec("plotly") is not None


def write(comparison: Comparison, baseline: Comparison | None, path: Path) -> None:
    """Write the page to `path`. OSError."""
    path.write_text(_page(comparison, baseline), encoding="utf-8")


def _page(comparison: Comparison, baseline: Comparison | None) -> str:
    from plotly.offline import get_plotlyjs

    charts = list(panels(comparison))
    content = [{"name": panel.name, "plot": panel.plot} for panel in charts]
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>penstock compare: {_title(comparison)}</title>",
        f"<style>{_read_resource('page.css')}</style></head><body>",
        *_head(comparison),
        *_schemes(comparison),
        *_table(comparison),
        *(_baseline(comparison, baseline) if baseline else ()),
        *_sections(comparison, charts),
        *_setup(comparison),
        f'<script type="application/json" id="panels">{data}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{_read_resource('page.js')}</script>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _read_resource(name: str) -> str:
    return resources.files("penstock_supervisor.compare.charts").joinpath(name).read_text("utf-8")


def _title(comparison: Comparison) -> str:
    return escape(", ".join(subject.name for subject in comparison.subjects))


def _head(comparison: Comparison) -> Iterator[str]:
    machine = " · ".join(
        comparison.machine[key] for key in ("cpu", "memory", "kernel") if key in comparison.machine
    )
    rounds = f"{comparison.rounds} round{'' if comparison.rounds == 1 else 's'}"
    yield "<header><h1>Cluster schemes compared</h1>"
    yield f"<p><code>{escape(comparison.command)}</code></p>"
    yield (
        f'<p class="faint">{escape(machine)}<br>{comparison.workers} workers · {rounds} of '
        f"{comparison.seconds:g} s for each load · {escape(comparison.started)} · penstock "
        f"{escape(comparison.penstock)}</p>"
    )
    warnings = [
        *(["Interrupted: what is missing was not measured."] if comparison.interrupted else []),
        *(["Quick: one short round, so only large differences mean anything."] * comparison.quick),
        *comparison.notes,
    ]
    yield from (f'<p class="warning">{escape(warning)}</p>' for warning in warnings)
    links = {"schemes": "When to choose which", "figures": "All figures"}
    links |= {
        key: title
        for key, title in sections(comparison).items()
        if key in _measured_sections(comparison)
    }
    links |= {"circumstances": "Machine and configuration"}
    yield "<nav>"
    yield from (f'<a href="#{key}">{escape(title)}</a>' for key, title in links.items())
    yield "</nav></header>"


def _measured_sections(comparison: Comparison) -> set[str]:
    return {row.figure.section for row in evaluation.rows(comparison)}


def _schemes(comparison: Comparison) -> Iterator[str]:
    colours = subject_colours(comparison)
    yield '<h2 id="schemes">When to choose which</h2>'
    yield '<p class="faint">Made from the figures below, and from nothing else.</p>'
    yield '<div class="schemes">'
    for name, text in evaluation.paragraphs(comparison).items():
        advice, _, figures = (
            text.partition(". ") if text.startswith(evaluation.ADVICE) else ("", "", text)
        )
        body = (
            f'<p class="choose">{_escaped_with_units(advice)}.</p>' if advice else ""
        ) + f"<p>{_escaped_with_units(figures)}</p>"
        yield f'<div class="scheme" style="--colour:{colours[name]}">'
        yield f"<h3>{escape(name)}</h3>{body}</div>"
    yield "</div>"


def _escaped_with_units(text: str) -> str:
    """Escaped, and without line breaks between numbers and their units."""
    return _NUMBER_WITH_UNIT.sub("\\1&nbsp;\\2", escape(text))


def _table(comparison: Comparison) -> Iterator[str]:
    yield '<h2 id="figures">All figures</h2>'
    yield '<p class="faint">★ best, or not to be told from the best; no star where all are alike.'
    if comparison.rounds > 1:
        yield f"± half of the spread over {comparison.rounds} rounds; the figure is their median."
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


def _baseline(comparison: Comparison, baseline: Comparison) -> Iterator[str]:
    names = [subject.name for subject in comparison.subjects]
    yield '<h2 id="baseline">Against the baseline</h2>'
    yield (
        f'<p class="faint">{escape(baseline.started)}, penstock {escape(baseline.penstock)}. '
        "= means within the spread of the two runs.</p>"
    )
    for caveat in baselines.caveats(comparison, baseline):
        yield f'<p class="warning">{escape(caveat[0].upper() + caveat[1:])}.</p>'
    differences = {
        (one.figure.key, one.subject): one for one in baselines.differences(comparison, baseline)
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


def _sections(comparison: Comparison, charts: Sequence[Panel]) -> Iterator[str]:
    for section, title in sections(comparison).items():
        inside = [panel for panel in charts if panel.section == section]
        if not inside:
            continue
        yield f'<h2 id="{section}">{escape(title)}</h2>'
        if comparison.rounds > 1 and section in ("keepalive", "connect", "rate"):
            yield f'<p class="faint">{comparison.rounds} {_BARS_HINT}.</p>'
        yield from _legend(comparison, section)
        yield '<div class="panels">'
        yield from map(_panel, inside)
        yield "</div>"


def _panel(panel: Panel) -> str:
    wide = ' class="wide"' if panel.wide else ""
    roles = "".join(
        f'<span class="chip" style="--colour:var(--faint);'
        f'--opacity:{OPACITIES.get(role, 0.8):g}">{escape(role)}</span>'
        for role in panel.roles
    )
    roles = f'<span class="legend">{roles}</span>' if roles else ""
    return (
        f"<figure{wide}><figcaption>{escape(panel.title)} <span>{escape(panel.hint)}</span>{roles}"
        f'</figcaption><div class="chart" id="{panel.name}"></div></figure>'
    )


def _legend(comparison: Comparison, section: str) -> Iterator[str]:
    if section not in ("keepalive", "connect", "rate", "held"):
        return
    yield '<ul class="legend">'
    for name, colour in subject_colours(comparison).items():
        yield f'<li class="chip" style="--colour:{colour}">{escape(name)}</li>'
    yield "</ul>"


def _setup(comparison: Comparison) -> Iterator[str]:
    yield '<h2 id="circumstances">Machine and configuration</h2><dl>'
    for key, value in {**comparison.machine, "penstock": comparison.penstock}.items():
        yield f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>"
    yield "</dl><h3>What was run, the scheme aside</h3>"
    yield f"<pre>{escape(comparison.config)}</pre>"
    yield f"<h3>Command</h3><pre>{escape(comparison.command)}</pre>"
    for subject in comparison.subjects:
        for note in subject.notes:
            yield f'<p class="faint">{escape(subject.name)}: {escape(note)}</p>'
