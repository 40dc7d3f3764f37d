"""A comparison as one HTML page that needs nothing else: no server, no network, no other file.

The page contains the library for charts (four megabytes), and its Content-Security-Policy
forbids it to load anything. So it can be mailed, and will look the same in ten years. Names and
notes may come from a file that somebody else wrote. All texts are escaped here and nowhere else,
and scripts read them as data and never as code.

Plotly is an extra. Only this module imports it, and only when a page is written.
"""

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from penstock_supervisor.compare.charts import summary, tables
from penstock_supervisor.compare.charts.charts import panels
from penstock_supervisor.compare.charts.theme import OPACITIES, Panel, subject_colours
from penstock_supervisor.compare.report import evaluation, sentences
from penstock_supervisor.compare.report.figures import sections
from penstock_supervisor.compare.report.result import Comparison

_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)
_RULE: Final = (
    "The subjects take turns, so that a slower minute is everybody's. A difference is said only if "
    "the whole interval of its ratio, by a bootstrap over the rounds, is beyond what is too small "
    "to matter and what the machine varies by. Everything else is level, and so is in a sentence "
    "who is not named. A star, least and most are sure against every other subject."
)
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
        '<main id="picture">',
        *_head(comparison),
        *summary.render(comparison),
        *_warnings(comparison),
        "</main>",
        *_nav(comparison),
        *tables.figures(comparison),
        *(tables.baseline(comparison, baseline) if baseline else ()),
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
    yield "<header><h1>What a request costs, and how its connection gets to a worker</h1>"
    facts = " · ".join(sentences.origin(comparison))
    yield f'<p class="faint">{escape(facts)}<br>{escape(sentences.circumstances(comparison))}</p>'
    yield "</header>"


def _warnings(comparison: Comparison) -> Iterator[str]:
    """In one box below the picture, which they are about."""
    warnings = [
        *(["Interrupted: what is missing was not measured."] if comparison.interrupted else []),
        *([f"{sentences.QUICK}."] if comparison.quick else []),
        *([sentences.noise(comparison)] if sentences.is_noisy(comparison) else []),
        *comparison.notes,
    ]
    if warnings:
        yield f'<p class="warning">{"<br>".join(map(escape, warnings))}</p>'


def _nav(comparison: Comparison) -> Iterator[str]:
    links = {"figures": "All figures"}
    links |= {
        key: title
        for key, title in sections(comparison).items()
        if key in _measured_sections(comparison)
    }
    links |= {"circumstances": "How it was measured"}
    yield "<nav>"
    yield from (f'<a href="#{key}">{escape(title)}</a>' for key, title in links.items())
    yield "</nav>"


def _measured_sections(comparison: Comparison) -> set[str]:
    return {row.figure.section for row in evaluation.rows(comparison)}


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
    if section not in ("keepalive", "connect", "rate", "held", "scaling"):
        return
    yield '<ul class="legend">'
    for name, colour in subject_colours(comparison).items():
        yield f'<li class="chip" style="--colour:{colour}">{escape(name)}</li>'
    yield "</ul>"


def _setup(comparison: Comparison) -> Iterator[str]:
    yield '<h2 id="circumstances">How it was measured</h2>'
    if noise := sentences.noise(comparison):
        yield f"<p>{escape(noise)}</p>"
    yield f"<p>{_RULE}</p>"
    for one in comparison.verification:
        yield f"<p>{escape(one.subject)}: {escape(sentences.verification(one))}</p>"
    for subject in comparison.subjects:
        for text in sentences.doubts(comparison, subject):
            yield f'<p class="warning">{escape(subject.name)}: {escape(text)}</p>'
    yield f"<h3>Command</h3><pre>{escape(comparison.command)}</pre>"
    yield "<h3>What was run, the scheme aside</h3>"
    yield f"<pre>{escape(comparison.config)}</pre>"
    for subject in comparison.subjects:
        if subject.setup:
            yield f"<h3>{escape(subject.name)}</h3><pre>{escape(subject.setup)}</pre>"
    yield "<h3>Machine</h3><dl>"
    ours = {"penstock": comparison.penstock, "build": comparison.build or "not known"}
    for key, value in {**comparison.machine, **ours}.items():
        yield f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>"
    yield "</dl>"
